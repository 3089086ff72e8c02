"""The launcher of a Slurm cluster: each job of a sweep is a job of Slurm, submitted by submitit.

All that may start is submitted at once, as an array; which of it runs, where and when, is Slurm's
affair. A job that comes to its time limit, is preempted or loses its node is requeued under its id,
by submitit or by Slurm, and its run goes on from the last epoch, as any run that was interrupted.

RUNS/slurm/ holds what submitit writes of each job, and a file for each job that was submitted, by
which a sweep finds the jobs again that an earlier one has left in the queue.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.files import whole
from fairseq_peft.runs.log import logging_to
from fairseq_peft.sweeps import finetune, job
from fairseq_peft.sweeps.slurm_arguments import Wishes

logger = logging.getLogger(__name__)

#: Seconds between two questions to Slurm.
LOOK_S = 10
#: Seconds that the result of a job which has ended may take to be seen, over a network's disk.
RESULT_S = 15
#: What Slurm sends to every process of a job that is to end or to be requeued.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
#: States that a job does not come back from once it stays in them, and what to do about some.
ENDED = {
    "BOOT_FAIL": "",
    "CANCELLED": "",
    "COMPLETED": "",
    "DEADLINE": "",
    "FAILED": "",
    "NODE_FAIL": "",
    "OUT_OF_MEMORY": "Give more --slurm-mem.",
    "PREEMPTED": "This cluster ends what it preempts: give the same line again.",
    "REVOKED": "",
    "TIMEOUT": "Give more --slurm-time.",
}


@dataclass
class Task:
    """What a job of Slurm does, pickled by submitit: a ``Job`` as JSON."""

    text: str

    def __call__(self) -> list[str | None]:
        """What ``job.run`` returns."""
        given = job.Job.from_json(self.text)
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        with logging_to(given.log), finetune.deaf_children(*SIGNALS):
            return job.run(given)

    def checkpoint(self):
        """What submitit queues again: the same, as every epoch is on the disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Slurm:
    """Starts jobs by submitting them; those that are started together are one array.

    Args:
        runs: where runs land, on a disk that the nodes share with this machine.
        executor: submitit's; ``executor`` makes one.
        look: job id -> Slurm's word for its state, of all that it knows; None where it does not
            answer.
    """

    def __init__(self, runs: str, executor, look: Callable[[], dict | None] | None = None):
        self.folder = Path(runs) / "slurm"
        self._executor = executor
        self._look = look or squeue
        self._new = []
        self._states, self._looked = {}, None

    def start(self, started: job.Job) -> Submitted:
        submitted = Submitted(self, started)
        self._new.append(submitted)
        return submitted

    def submit(self) -> None:
        """Submit what was started since, but what an earlier sweep has submitted.

        Raises:
            InputError: Slurm does not take it.
        """
        new, self._new = self._new, []
        new = [one for one in new if not one.find()]
        if not new:
            return
        tasks = [Task(one.text) for one in new]
        for one, submitted in zip(new, self._submitted(tasks)):
            one.take(submitted)
        self._looked = None
        logger.info(f"submitted to Slurm: {', '.join(one.id for one in new)}")

    def _submitted(self, tasks):
        from submitit.core.utils import FailedJobError

        try:
            with _outside(), open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
                return self._executor.submit_array(tasks)
        except FailedJobError as error:
            lines = [line for line in str(error).splitlines() if "error: " in line]
            text = lines[-1].rpartition("error: ")[2] if lines else str(error)
            raise InputError(
                f"Slurm does not take the jobs: {text}. See --slurm-..., and --dry-run."
            ) from error

    def forget(self, submitted: Submitted) -> None:
        """It is not to be submitted any more."""
        self._new = [one for one in self._new if one is not submitted]

    def attach(self, job_id: str):
        """submitit's view of a job that another process has submitted."""
        return self._executor.job_class(self._executor.folder, job_id, [0])

    def state(self, job_id: str) -> str | None:
        """Slurm's word for it; empty where it does not know the job; None: it does not answer."""
        now = time.monotonic()
        if self._looked is None or now - self._looked >= LOOK_S:
            self._states, self._looked = self._look(), now
        return None if self._states is None else self._states.get(job_id, "")


class Submitted:
    """A job that is Slurm's, or will be."""

    def __init__(self, launcher: Slurm, started: job.Job):
        self.text = started.to_json()
        self._launcher, self._num_runs, self._log = launcher, len(started.runs), started.log
        digest = hashlib.sha256(self.text.encode()).hexdigest()[:16]
        self._note = launcher.folder / f"{digest}.job"  # holds its id
        self._job = self._stopped = self._gone = None

    @property
    def id(self) -> str:
        return self._job.job_id

    def find(self) -> bool:
        """Whether an earlier sweep has submitted it and Slurm still has it."""
        try:
            job_id = self._note.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return False
        if self._launcher.state(job_id) in (None, "", *ENDED):
            return False
        self._job = self._launcher.attach(job_id)
        logger.info(f"Slurm has it already, as job {job_id}: {self._log}")
        return True

    def take(self, submitted) -> None:
        """It was submitted."""
        self._job = submitted
        self._note.parent.mkdir(parents=True, exist_ok=True)
        with whole(self._note) as temporary:
            temporary.write_text(f"{submitted.job_id}\n", encoding="utf-8")

    def poll(self) -> list[str | None] | None:
        self._launcher.submit()
        if self._stopped:
            return [f"it was stopped (log: {self._log})"] * self._num_runs
        if self._job.paths.result_pickle.exists():
            return self._result()
        state = self._launcher.state(self.id)
        if state is None or (state and state not in ENDED):
            self._gone = None
            return None
        now = time.monotonic()
        self._gone = self._gone or now
        if now - self._gone < RESULT_S:
            with contextlib.suppress(OSError):  # so that a network's disk looks again
                self._job.paths.folder.chmod(self._job.paths.folder.stat().st_mode)
            return None
        why = f"Slurm has ended its job {self.id} ({state or 'unknown by now'})"
        return self._failed(f"{why}. {ENDED[state]}" if ENDED.get(state) else why)

    def _result(self):
        from submitit.core.utils import UncompletedJobError

        try:
            return self._job.result()
        except UncompletedJobError as error:
            if "timed-out too many times" in str(error):
                return self._failed(
                    f"its job {self.id} came to its time limit again, after as many requeues as "
                    "it may have. Give more --slurm-time or --slurm-max-requeues"
                )
            lines = [line for line in str(error).splitlines() if "Error" in line]
            return self._failed(f"its job {self.id} has failed: {lines[-1] if lines else error}")

    def _failed(self, text):
        return [f"{text} (log: {self._job.paths.stderr})"] * self._num_runs

    def stop(self) -> None:
        """Cancel it."""
        self._stopped = True
        self._launcher.forget(self)
        if self._job is not None:
            self._note.unlink(missing_ok=True)
            self._job.cancel(check=False)


def executor(runs: str, wanted: Wishes):
    """submitit's executor of jobs that ask for what is ``wanted``.

    Raises:
        InputError: submitit is not installed, or there is no Slurm here.
    """
    submitit = _submitit()
    for program in ("sbatch", "srun", "squeue", "scancel"):
        if shutil.which(program) is None:
            raise InputError(
                f"--launcher slurm: {program} is not found, so this machine submits nothing to "
                "Slurm. Run the line where sbatch works, or leave --launcher out."
            )
    made = submitit.SlurmExecutor(
        folder=Path(runs) / "slurm" / "%j", max_num_timeout=wanted.max_requeues
    )
    made.update_parameters(**wanted.parameters())
    return made


def script(runs: str, wanted: Wishes, num_jobs: int) -> str:
    """The script that sbatch gets for ``num_jobs`` jobs."""
    _submitit()
    from submitit.slurm import slurm

    folder = (Path(runs) / "slurm").absolute() / "%j"
    command = f"{sys.executable} -u -m submitit.core._submit {folder}"
    count = {"map_count": num_jobs} if num_jobs > 1 else {}
    return slurm._make_sbatch_string(command, folder, **wanted.parameters(), **count)


def _submitit():
    try:
        import submitit
    except ImportError:
        raise InputError(
            "--launcher slurm needs submitit, which is not installed: pip install submitit."
        ) from None
    return submitit


def squeue() -> dict | None:
    """Job id -> state of all jobs of this user that Slurm knows; None where it does not answer."""
    words = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T"]
    try:
        done = subprocess.run(
            [*words, f"--user={getpass.getuser()}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError) as error:
        told = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        logger.warning(f"Slurm does not answer, asking again: {told[-1] if told else error}")
        return None
    return dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)


@contextlib.contextmanager
def _outside():
    """Submit as if outside of Slurm: a job that submits others would hand its own limits on."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    from submitit.helpers import clean_env

    conf = os.environ.get("SLURM_CONF")
    with clean_env():
        if conf:
            os.environ["SLURM_CONF"] = conf
        yield

"""The launcher of a cluster without one: flags, the script, and what becomes of jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

submitit = pytest.importorskip("submitit")
pytest.importorskip("fairseq")

from fairseq_peft import cli  # noqa: E402
from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.sweeps import finetune, slurm  # noqa: E402
from fairseq_peft.sweeps.job import Job  # noqa: E402
from fairseq_peft.sweeps.knobs import Knobs  # noqa: E402
from fairseq_peft.sweeps.slurm_arguments import Wishes  # noqa: E402


@pytest.fixture
def job(tmp_path):
    """``job(seed)``: a run that cannot be, as there is no such data."""

    def make(seed):
        knobs = Knobs(
            **{"data": "nowhere", "runs": str(tmp_path), "method": "lora", "label": "lora"},
            **{"base": None, "size": "roberta_small", "seed": seed, "lr": "1e-3", "epochs": 1},
            **{"batch_size": 8, "warmup": 0, "precision": "fp32", "subsets": "valid"},
            **{"threads": 1, "arch_args": [], "flags": []},
        )
        log = str(tmp_path / "logs" / f"{seed}.log")
        return Job([knobs], None, log, [log])

    return make


class Queue:
    """A Slurm of which the test says what it answers: ``states``, job id -> state."""

    def __init__(self, folder):
        self.folder, self.job_class = folder / "slurm" / "%j", self.Job
        self.arrays, self.cancelled, self.states = [], [], {}

    def submit_array(self, tasks):
        self.arrays.append(tasks)
        ids = [f"{len(self.arrays)}_{place}" for place in range(len(tasks))]
        self.states.update(dict.fromkeys(ids, "PENDING"))
        return [self.Job(self.folder, job_id, [0]) for job_id in ids]

    @property
    def Job(self):
        queue = self

        class Made(submitit.SlurmJob):
            def cancel(self, check=True):
                queue.cancelled.append(self.job_id)

        return Made


@pytest.fixture
def queue(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "LOOK_S", 0)
    monkeypatch.setattr(slurm, "RESULT_S", 0.05)
    return Queue(tmp_path)


@pytest.fixture
def launcher(queue, tmp_path):
    return lambda: slurm.Slurm(str(tmp_path), queue, lambda: queue.states)


def ends(submitted):
    """What ``poll`` says in the end."""
    assert submitted.poll() is None
    time.sleep(0.1)
    return submitted.poll()


def test_what_starts_together_is_one_array(launcher, queue, job):
    one = launcher()
    submitted = [one.start(job(seed)) for seed in (1, 2, 3)]
    assert queue.arrays == []
    assert [each.poll() for each in submitted] == [None] * 3
    assert [len(tasks) for tasks in queue.arrays] == [3]
    assert [each.id for each in submitted] == ["1_0", "1_1", "1_2"]


@pytest.mark.parametrize("state", ["CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", ""])
def test_a_job_that_ends_without_a_result_has_failed(launcher, queue, job, state):
    submitted = launcher().start(job(1))
    assert submitted.poll() is None
    queue.states["1_0"] = state
    (told,) = ends(submitted)
    assert "Slurm has ended its job 1_0" in told and (state or "unknown") in told
    assert ("--slurm-mem" in told) == (state == "OUT_OF_MEMORY")


@pytest.mark.parametrize(
    "state", ["RUNNING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED"]
)
def test_a_job_that_comes_back_is_waited_for(launcher, queue, job, state):
    """As one is that Slurm calls preempted for a moment, and one of which it says nothing."""
    submitted = launcher().start(job(1))
    assert submitted.poll() is None
    queue.states["1_0"] = "PREEMPTED"
    assert submitted.poll() is None
    queue.states["1_0"] = state
    assert ends(submitted) is None
    queue.states = None
    assert ends(submitted) is None


def test_a_sweep_that_is_given_again_finds_its_jobs(launcher, queue, job):
    first = [launcher().start(job(seed)) for seed in (1, 2)]
    assert [each.poll() for each in first] == [None, None]
    queue.states["2_0"] = "CANCELLED"  # of seed 2
    again = launcher()
    submitted = [again.start(job(seed)) for seed in (1, 2, 3)]
    assert submitted[0].poll() is None
    assert [each.id for each in submitted] == ["1_0", "3_0", "3_1"]


def test_what_is_stopped_is_cancelled_and_not_found_again(launcher, queue, job):
    one = launcher()
    submitted, never = one.start(job(1)), None
    assert submitted.poll() is None
    never = one.start(job(2))
    never.stop()
    submitted.stop()
    assert submitted.poll() and never.poll()
    assert queue.cancelled == ["1_0"] and len(queue.arrays) == 1
    after = launcher().start(job(1))
    assert after.poll() is None and after.id == "2_0"


def test_what_slurm_refuses_is_a_sentence(launcher, queue, job, monkeypatch, capfd):
    def refuse(tasks):
        sys.stderr.write("what submitit prints")
        text = "sbatch: error: invalid partition specified: x\nsbatch: error: Batch job failed"
        raise submitit.core.utils.FailedJobError(text)

    monkeypatch.setattr(queue, "submit_array", refuse)
    submitted = launcher().start(job(1))
    with pytest.raises(InputError, match="does not take the jobs: Batch job failed. See --slurm"):
        submitted.poll()
    assert capfd.readouterr().err == ""


def test_a_task_runs_its_job_and_logs(tmp_path, job):
    """In a process of submitit's, which has to read it."""
    executor = submitit.LocalExecutor(tmp_path / "local")
    submitted = slurm.Slurm(str(tmp_path), executor, lambda: {}).start(job(1))
    deadline = time.monotonic() + 100
    while (told := submitted.poll()) is None or "unknown by now" in told[0]:
        assert time.monotonic() < deadline
        submitted._gone = None
        time.sleep(0.1)
    (error,) = told
    assert "nowhere/label/train.idx does not exist" in error
    assert error in (tmp_path / "logs" / "1.log").read_text()


def test_what_is_queued_again_is_the_same(job):
    task = slurm.Task(job(1).to_json())
    again = task.checkpoint()
    assert again.function == task and not again.done()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_children_do_not_hear_what_a_queue_sends(tmp_path):
    """The training goes on while its parent takes the signal, and ends when that does."""
    (tmp_path / "sleeps.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(100)\n")
    started, popen = [], subprocess.Popen

    class Seen(popen):
        def __init__(self, *args, **more):
            super().__init__(*args, cwd=tmp_path, **more)
            started.append(self)

    def meanwhile():
        if (tmp_path / "log").read_text():
            for number in slurm.SIGNALS:
                os.kill(started[0].pid, number)
            time.sleep(0.2)
            assert started[0].poll() is None
            raise KeyboardInterrupt

    finetune.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": Seen})
    try:
        deaf, ends = finetune.deaf_children(*slurm.SIGNALS), pytest.raises(KeyboardInterrupt)
        with open(tmp_path / "log", "w") as log, deaf, ends:
            finetune.process(["sleeps"], log, 1, meanwhile)
    finally:
        finetune.subprocess = subprocess
    assert started[0].returncode == -signal.SIGKILL


def test_the_script_says_what_is_asked_for(tmp_path):
    wanted = Wishes(
        **{"partition": "gpu", "account": "me", "qos": "low", "constraint": "a100"},
        **{"minutes": 90, "cpus": 3, "gpus": 2, "memory": "8G", "at_once": 5},
        **{"setup": ["module load cuda"], "extra": {"exclude": "node7", "exclusive": True}},
    )
    text = slurm.script(str(tmp_path), wanted, 12)
    for flag in (
        *("partition=gpu", "account=me", "qos=low", "constraint=a100", "time=90"),
        *("cpus-per-task=3", "gpus-per-node=2", "mem=8G", "array=0-11%5", "exclude=node7"),
        *("exclusive", "requeue", "signal=USR2@90"),
    ):
        assert f"#SBATCH --{flag}\n" in text, flag
    assert "\nmodule load cuda\n" in text and "srun" in text.splitlines()[-1]
    assert "--cpus-per-task=3 " in text.splitlines()[-1]  # srun's own


ON_SLURM = ("--launcher", "slurm", "--precision", "fp32")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--slurm-gpus", "1"], "--slurm-gpus would be ignored.*Give --launcher slurm"),
        (["--launcher", "slurm", "--precision", "auto"], "--precision auto asks this machine"),
        ([*ON_SLURM, "--jobs", "2"], "Give --slurm-array-parallelism"),
        ([*ON_SLURM, "--worker", "here"], "--worker here is of this machine"),
        ([*ON_SLURM, "--slurm-time", "1"], "--slurm-time 1: give 3 or more minutes"),
        ([*ON_SLURM, "--slurm-cpus", "0"], "--slurm-cpus 0: give 1 or more"),
        ([*ON_SLURM, "--slurm-max-requeues", "-1"], "give 0 or more"),
        ([*ON_SLURM, "--slurm-extra", "=x"], "expected NAME=VALUE"),
        (
            [*ON_SLURM, "--slurm-extra", "nice=1", "--slurm-extra=--nice=2"],
            "--slurm-extra nice was given twice",
        ),
        (list(ON_SLURM), "sbatch is not found"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_a_sentence(words, message, tmp_path, monkeypatch, capsys):
    import re

    monkeypatch.delenv("FAIRSEQ_PEFT_PRECISION", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    given = ["--data", str(tmp_path), "--cells", "scratch/lora", "--runs", str(tmp_path / "runs")]
    assert cli.main(["sweep", *given, *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert not (tmp_path / "runs").exists()


def test_without_the_extra_it_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match="needs submitit, .*: pip install submitit"):
        slurm.executor("runs", Wishes())

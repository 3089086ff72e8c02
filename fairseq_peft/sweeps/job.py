"""What one process of a sweep does: one run, or several runs as members of one process.

``python -m fairseq_peft.sweeps.job JOB`` with a ``Job`` as JSON logs to standard error, and prints
what has become of each run as a list of JSON: null, or why it failed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import sys
from dataclasses import asdict, dataclass

from fairseq_peft.errors import InputError, sentence
from fairseq_peft.runs import plan
from fairseq_peft.runs.log import logging_to
from fairseq_peft.sweeps import finetune
from fairseq_peft.sweeps.knobs import Knobs, command

logger = logging.getLogger(__name__)


@dataclass
class Job:
    """Runs that one process trains.

    Attributes:
        runs: their knobs; several are members of one process.
        change: what to do with a run of another plan that is there (``finetune.run``).
        log: file of what the process logs.
        logs: file of what is told of each run.
    """

    runs: list[Knobs]
    change: str | None
    log: str
    logs: list[str]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        given = json.loads(text)
        return cls(**{**given, "runs": [Knobs(**knobs) for knobs in given["runs"]]})


def run(job: Job) -> list[str | None]:
    """Do the job, in this process.

    Returns:
        For each run None, or why it failed.
    """
    if len(job.runs) > 1:
        return _run_members(job)
    try:
        logger.info(finetune.run(job.runs[0], job.change, wait=True))
        return [None]
    except (InputError, OSError) as error:
        return [_told(error)]


def _run_members(job):
    # All of them from the beginning to the end, in an order in which two jobs never wait for each
    # other.
    folders = sorted({knobs.folder for knobs in job.runs})
    errors = [None] * len(job.runs)
    with contextlib.ExitStack() as owned:
        for folder in folders:
            owned.enter_context(finetune.owned(folder, wait=True))
        begun = {}
        for number, knobs in enumerate(job.runs):
            try:
                words = command(knobs)
                now = plan.make(words)
                if finetune.begin(knobs.folder, now, job.change, wait=True):
                    logger.info(f"{knobs.folder} is done.")
                else:
                    begun[number] = words, now
            except (InputError, OSError) as error:
                errors[number] = _told(error)
        if begun:
            first = job.runs[0]
            finetune.process(
                [*finetune.way(first.worker, "sweep-members"), "-"],
                sys.stderr,
                first.threads,
                lambda: None,
                "".join(f"{shlex.join(words)}\n" for words, _ in begun.values()),
            )
        for number, (_, now) in begun.items():
            with logging_to(job.logs[number], "w"):
                errors[number] = _end(job.runs[number], now)
    return errors


def _end(knobs, now):
    """Take the result of a member; the process may have ended before it was trained."""
    try:
        if finetune.why_ended(knobs.folder, now) is None:
            raise InputError(finetune.failure(knobs.folder / "train.log"))
        logger.info(finetune.finish(knobs, now, wait=True))
        return None
    except (InputError, OSError) as error:
        return _told(error)


def _told(error):
    text = sentence(error) or f"{type(error).__name__}: {error}"
    logger.error(f"error: {text}")
    return text


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        with finetune.ending_on_sigterm():
            sys.stdout.write(json.dumps(run(Job.from_json(sys.argv[1]))))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

"""What starts the jobs of a sweep.

A launcher has ``start(job)``; what that returns has ``poll()``, None while the job runs and then,
once, what ``job.run`` returns, and ``stop()``, which tells it to end. Here is this machine's; a
cluster's is in ``slurm``.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from fairseq_peft.sweeps.job import Job


class Local:
    """Starts jobs as processes of this machine."""

    def start(self, job: Job) -> Process:
        return Process(job)


class Process:
    """A job as a process of its own."""

    def __init__(self, job: Job):
        self._num_runs = len(job.runs)
        Path(job.log).parent.mkdir(parents=True, exist_ok=True)
        with open(job.log, "w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fairseq_peft.sweeps.job", job.to_json()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._log = job.log

    def poll(self) -> list[str | None] | None:
        status = self._process.poll()
        if status is None:
            return None
        with self._process.stdout as told:
            text = told.read()
        if status == 0:
            return json.loads(text)
        return [f"{ended_by(status)} (log: {self._log})"] * self._num_runs

    def stop(self) -> None:
        """Tell it to end, with what it has started."""
        if self._process.poll() is None:
            self._process.terminate()


def ended_by(status: int) -> str:
    """What a process's exit status says."""
    if status < 0:
        return f"its process was ended by {signal.Signals(-status).name}"
    return f"its process ended with status {status}"

"""A worker that a test has started, and looking at its processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from helpers import ROOT

ENVIRON = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def cli(*words):
    return [sys.executable, "-m", "fairseq_peft.cli", *map(str, words)]


@contextlib.contextmanager
def serving(command, **more):
    """The address of a worker, and its process."""
    with tempfile.TemporaryDirectory(prefix="fairseq-peft.") as folder:
        address = os.path.join(folder, "worker")
        process = subprocess.Popen(command(address), stdin=subprocess.DEVNULL, **more)
        until(lambda: os.path.exists(address) or process.poll() is not None, 600)
        assert process.poll() is None
        try:
            yield address, process
        finally:
            process.terminate()
            process.wait(timeout=30)


def until(condition, seconds=100, every_s=0.02):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(every_s)


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def session(leader):
    """The living processes that a terminal would have started together with ``leader``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, its_session = path.read_text().rsplit(")", 1)[1].split()[:4]
            if its_session == str(leader) and state != "Z":
                found.append(int(path.parent.name))
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second if it ends while it is read
        return False

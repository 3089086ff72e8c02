"""The imports of a sweep, made once, and the worker that its runs are children of."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.sweeps import worker

#: What the worker imports beside its programs.
MODULES = (*worker.LATE, "fairseq_peft.plugin", "fairseq_peft.sweeps.members.runs")

logger = logging.getLogger(__name__)


def imports(threads: int) -> None:
    """Import what a run imports, before anything is computed, as the worker of ``threads`` CPU
    threads a run has to."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    logging.disable(logging.INFO)  # what fairseq would recommend to install
    try:
        with _logging_of_runs():
            for module in (*worker.PLUGIN_PROGRAMS.values(), *MODULES):
                try:
                    importlib.import_module(module)
                except ImportError:
                    if module not in worker.LATE:
                        raise
    finally:
        logging.disable(logging.NOTSET)


def precision(name: str) -> str:
    """What ``--precision name`` means here. Another process finds out, because a worker's parent
    must not have asked for a GPU."""
    if name != "auto":
        return name
    code = "from fairseq_peft.precision import resolve; print(resolve('auto'))"
    words = [sys.executable, "-c", code, *sys.argv[1:]]  # they tell whether --cpu is among them
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise InputError(done.stderr.strip().splitlines()[-1].partition("InputError: ")[2])
    return done.stdout.split()[-1]


@contextlib.contextmanager
def forked_worker() -> Iterator[str | None]:
    """The address of a worker, a fork of this process; None, with a word of warning, where there
    can be none."""
    folder = tempfile.mkdtemp(prefix="fairseq-peft.")  # for this user alone
    address = os.path.join(folder, "worker")
    try:
        worker.check_address(address)
        process = _fork(address, os.path.join(folder, "log"))
    except worker.Declined as reason:
        logger.warning(f"no worker, so each run is a process of its own: {reason}")
        shutil.rmtree(folder)
        yield None
        return
    try:
        yield address
    finally:  # it ends its runs, if there are any left
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process, 0)
        shutil.rmtree(folder, ignore_errors=True)


def _fork(address, log):
    parent = os.getpid()
    process = worker.fork()
    if process == 0:
        _serve(address, log, parent)
    while not os.path.exists(address):
        if os.waitpid(process, os.WNOHANG)[0]:
            text = Path(log).read_text(encoding="utf-8", errors="replace").strip()
            raise worker.Declined((text.splitlines() or ["it has ended"])[-1])
        time.sleep(0.01)
    return process


def _serve(address, log, parent):
    """The worker: never returns."""
    status = 1
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for place, descriptor in enumerate((nothing, output, output)):
            os.dup2(descriptor, place)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with _logging_of_runs():
            worker.serve(address, worker.PLUGIN_PROGRAMS, MODULES, parent)
        status = 0
    except worker.Declined as reason:
        sys.stderr.write(f"{reason}\n")
    finally:
        sys.stderr.flush()
        os._exit(status)


#: The root logger's handlers and level, as fairseq sets them up while it is imported where nobody
#: has: those of the runs, not of the sweep.
_log_of_runs = [], logging.WARNING


@contextlib.contextmanager
def _logging_of_runs():
    global _log_of_runs
    root = logging.getLogger()
    before = root.handlers, root.level
    root.handlers, level = _log_of_runs
    root.setLevel(level)
    try:
        yield
    finally:
        _log_of_runs = root.handlers, root.level
        root.handlers = before[0]
        root.setLevel(before[1])

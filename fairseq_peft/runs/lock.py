"""Locks on the folder of a run: two processes never write it at once.

A lock is the kernel's (``flock``), on a small file in the folder, so it ends with the process that
holds it, however that dies. There are two: of who trains, and of who looks after the run from its
first command to its result, while another process trains.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import time
from pathlib import Path

from fairseq_peft.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

#: The file of who trains, and of who looks after the run.
TRAINING, WHOLE_RUN = ".training.lock", ".run.lock"

#: Path -> the open file's descriptor: closing it would release the lock.
_held = {}


class Busy(InputError):
    """Another process has the folder."""


def take(folder: Path | str, name: str = TRAINING, wait: bool = False) -> None:
    """Take the lock ``name`` of ``folder`` until this process ends; it may take it again.

    Args:
        folder: of a run; made where it is missing.
        name: ``TRAINING`` or ``WHOLE_RUN``.
        wait: wait until the other process ends, instead of giving up.

    Raises:
        Busy: another process has it.
    """
    folder = os.path.realpath(folder)
    path = os.path.join(folder, name)
    if path in _held or fcntl is None:
        return
    os.makedirs(folder, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        who = os.read(lock, 200).decode().strip() or "another process"
        busy = f"{folder} is in use: {who} writes this run."
        if not wait:
            os.close(lock)
            raise Busy(f"{busy} {_advice()}") from None
        logger.info(f"{busy} Waiting for it.")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:  # a file system without locks
        logger.warning(f"{path} cannot be locked ({error.strerror}): start one process a run")
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    _held[path] = lock


def release(folder: Path | str, name: str = TRAINING) -> None:
    """Let others have the folder."""
    lock = _held.pop(os.path.join(os.path.realpath(folder), name), None)
    if lock is not None:
        os.close(lock)


def holder(folder: Path | str, within_s: float = 600) -> str | None:
    """Who has a lock of ``folder``, as ``process 12 on host``; None: nobody.

    It only looks: whoever tried a lock would be in the way of who takes it. A process of another
    machine cannot be looked at: it counts while the folder was written within ``within_s`` seconds.
    """
    for name in (TRAINING, WHOLE_RUN):
        path = Path(folder, name)
        try:
            who = path.read_text(encoding="utf-8").strip()
            lock = path.stat()
        except (OSError, ValueError):
            continue
        match = re.fullmatch(r"process (\d{1,10}) on (.+)", who)
        if match is None:
            continue
        if match[2] == socket.gethostname():
            holds = _has_open(int(match[1]), lock)
        else:
            holds = time.time() - _last_written(folder) < within_s
        if holds:
            return who
    return None


def _has_open(pid, lock):
    """Whether a process has a file open: its lock ends when it is closed, its name stays in it."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    if not os.path.isdir("/proc/self/fd"):  # not on Linux
        return True
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # it has been closed since
                if os.path.samestat(os.stat(entry.path), lock):
                    return True
    except FileNotFoundError:
        return False
    except PermissionError:
        return True
    return False


def _last_written(folder):
    times = [0.0]
    for path in Path(folder).iterdir():
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def _advice():
    size = os.environ.get("WORLD_SIZE", "1")  # set by torchrun
    if size != "1":
        return (
            f"torchrun has started {size} processes, and each would train the whole run: give "
            f"--distributed-world-size {size}."
        )
    return "Wait until it ends, or give another --save-dir."

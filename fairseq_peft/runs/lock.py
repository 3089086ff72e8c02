"""Locks on the folder of a run: two processes never write it at once.

A lock is the kernel's (``flock``), on a small file in the folder, so it ends with the process that
holds it, however that dies. There are two: of who trains, and of who looks after the run from its
first command to its result, while another process trains.
"""

from __future__ import annotations

import logging
import os
import socket
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


def _advice():
    size = os.environ.get("WORLD_SIZE", "1")  # set by torchrun
    if size != "1":
        return (
            f"torchrun has started {size} processes, and each would train the whole run: give "
            f"--distributed-world-size {size}."
        )
    return "Wait until it ends, or give another --save-dir."

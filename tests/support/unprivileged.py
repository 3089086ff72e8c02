"""A process that may no more than any user: for root, folders would never be read-only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess

#: _LINUX_CAPABILITY_VERSION_3, of this process; two sets of three masks.
_HEADER, _NONE = (0x20080522, 0), [0] * 6


def give_up_rights() -> None:
    """Let this process be root in name only: permissions of files count for it."""
    if os.geteuid() == 0:
        header, none = (ctypes.c_uint32 * 2)(*_HEADER), (ctypes.c_uint32 * 6)(*_NONE)
        if ctypes.CDLL(None, use_errno=True).capset(header, none):
            raise OSError(ctypes.get_errno(), "capset")


def said_without_rights(action) -> str:
    """What ``action`` returns, a text, in a child without rights."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            give_up_rights()
            os.write(writing, action().encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with open(reading, encoding="utf-8") as file:
        text = file.read()
    assert os.waitpid(child, 0)[1] == 0
    return text


@contextlib.contextmanager
def small_disk(folder, size: str):
    """A disk of its own in ``folder``, of ``size`` (``400k``).

    Raises:
        OSError: none may be mounted here.
    """
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)

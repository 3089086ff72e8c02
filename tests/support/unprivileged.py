"""A process of a user who may no more than any: for root, no folder would be read-only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess

#: The user "nobody", whom every Linux has.
USER = 65534
#: _LINUX_CAPABILITY_VERSION_3 and this process, as capset wants them.
_HEADER = (0x20080522, 0)
#: CAP_DAC_READ_SEARCH as a mask, and prctl's PR_SET_KEEPCAPS.
_READ, _KEEP = 1 << 2, 8


def give_up_rights() -> None:
    """Let this process be nobody's; who is not root stays who they are.

    Of root's rights it keeps the one to read: Python, the package and the data of the tests may lie
    in folders that only root looks into. It writes where nobody may write, and nowhere else.
    """
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_KEEP, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    # Effective, permitted and inheritable; each mask has a second half.
    rights = (ctypes.c_uint32 * 6)(_READ, _READ, 0, 0, 0, 0)
    if libc.capset((ctypes.c_uint32 * 2)(*_HEADER), rights):
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
    """A disk of nobody's in ``folder``, of ``size`` (``400k``).

    Raises:
        OSError: none may be mounted here.
    """
    folder.mkdir()
    options = f"size={size},uid={USER},gid={USER}"
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)

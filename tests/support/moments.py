"""The moments of a piece of code: what it asks of the file system, one after the other.

Python tells an audit hook of each (``open``, ``os.rename``, ``shutil.rmtree`` ...), before it
happens. So a test can come between any two of them, the same ones on every machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

_PARTS = ("open", "os.", "shutil.", "ctypes.dlsym")
_calls = []


def _hook(event, args):
    if _calls and event.startswith(_PARTS):
        call = _calls.pop()  # what it does itself is no moment
        try:
            call()
        finally:
            _calls.append(call)


@contextlib.contextmanager
def at_each(call):
    """``call()`` at each moment of the block, on which it may raise."""
    if not hasattr(sys, "_moments"):  # a hook stays for good
        sys.addaudithook(_hook)
        sys._moments = True
    _calls.append(call)
    try:
        yield
    finally:
        _calls.remove(call)


@contextlib.contextmanager
def at_the(nth, call):
    """``call()`` at the ``nth`` moment of the block; yields what says how many there were."""
    seen = []

    def count():
        seen.append(None)
        if len(seen) == nth:
            call()

    with at_each(count):
        yield lambda: len(seen)


def killed_at(nth, action):
    """Whether a child that does ``action`` has been killed at its ``nth`` moment; it ends well
    before otherwise."""
    child = os.fork()
    if not child:
        code = 1
        try:
            with at_the(nth, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                action()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code != 0

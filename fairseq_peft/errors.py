"""The one exception for bad input, and the hook that shows it as a sentence instead of a
traceback."""

from __future__ import annotations

import errno
import os
import sys
import threading
from pathlib import Path

#: What the machine, not the program, has against a file: shown as a sentence, too.
_ENVIRONMENT = {
    getattr(errno, name)
    for name in [
        "EACCES",
        "EPERM",
        "EROFS",
        "ENOSPC",
        "EDQUOT",
        "EFBIG",
        "EIO",
        "ENOTDIR",
        "EISDIR",
        "EEXIST",
    ]
    if hasattr(errno, name)
}


#: Characters of a sentence that is shown: it may quote a line that never ends.
MOST_CHARS = 2000


class InputError(ValueError):
    """What a user typed or handed in cannot be used.

    The text is one sentence or two: what was seen, what was expected, what to do.
    """


def find_input_error(error: BaseException | None) -> InputError | None:
    """The ``InputError`` behind ``error``, through the exceptions that wrapped it, or None."""
    seen = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, InputError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def sentence(error: BaseException, place: str = "another place") -> str | None:
    """``error`` as one line for its user; None if it is not one for users.

    Args:
        place: what to give where a file cannot be written.
    """
    ours = find_input_error(error)
    if ours is not None:
        text = _printable(" ".join(str(ours).splitlines()))
        return text if len(text) <= MOST_CHARS else f"{text[: MOST_CHARS - 300]} ... {text[-300:]}"
    if isinstance(error, OSError) and error.errno in _ENVIRONMENT:
        # Of two files, the second is the one that is written. Where a write fails outside of
        # ``files.whole``, Python does not say which.
        what = error.filename2 or error.filename or "A file cannot be written"
        return f"{what}: {error.strerror}. {advice(error, place)}"
    return None


def advice(error: BaseException, place: str = "another place") -> str:
    """What to do where a file cannot be written."""
    code = getattr(error, "errno", None)
    if code == errno.ENOENT:
        return f"There is no such folder: make it, or give {place}."
    if code == errno.ENOTDIR:
        return f"A file is where a folder is meant: give {place}."
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"Give {place}, or make rights there."
    if code in (errno.ENOSPC, errno.EDQUOT):
        return f"Make room there, or give {place}."
    return f"Give {place}."


def unwritten(path, error: OSError, place: str = "another place") -> InputError:
    """``path`` cannot be written: the sentence for it."""
    named = Path(str(error.filename2 or error.filename or path))
    # Not what was read to write it.
    what = named if Path(os.path.realpath(path)) in named.parents else path
    return InputError(
        f"{what} cannot be written ({error.strerror or error}). {advice(error, place)}"
    )


def _printable(text: str) -> str:
    """``text`` with escapes for what a terminal would obey: it may quote what is in a file."""
    return "".join(
        # Half a character stands for a byte of a file's name.
        char if char.isprintable() or "\udc80" <= char <= "\udcff" else repr(char)[1:-1]
        for char in text
    )


def is_command(program: str) -> bool:
    """Whether ``program``, a process's first word, is a command of fairseq's or this package's:
    ``fairseq-train``, ``python -m fairseq_cli.train``. Else it is somebody's own script."""
    folder, name = os.path.split(program)
    if name.startswith("fairseq-"):
        return True
    if not os.path.isfile(program):  # -c, or what stands for no script
        return False
    own = [__file__, getattr(sys.modules.get("fairseq_cli"), "__file__", None)]
    folders = [os.path.realpath(os.path.dirname(path)) for path in own if path]
    return os.path.realpath(folder or ".") in folders or _is_launcher(name, folder)


def _is_launcher(name, folder):
    """Whether it is ``train.py`` of a checkout of fairseq's, which only calls ``fairseq_cli``."""
    return os.path.isfile(os.path.join(folder, "fairseq_cli", name))


def install_excepthook(program: str | None = None) -> None:
    """Show an uncaught ``InputError``, or a file that cannot be written, as one line on stderr,
    where the process is a command. Who writes a script of their own sees where it failed.

    The exit status stays 1.

    Args:
        program: what the process is called, which is a command then; None: ``is_command`` tells.
    """
    previous, previous_of_threads = sys.excepthook, threading.excepthook
    if getattr(previous, "shows_input_errors", False):
        previous.program = program or previous.program
        return

    def show(kind, error, traceback):
        text = sentence(error, "another place (--save-dir)")
        named = show.program
        if named is None and is_command((sys.argv or [""])[0]):
            named = "fairseq_peft"
        if text is None or named is None:
            previous(kind, error, traceback)
        else:
            sys.stderr.write(f"{named}: error: {text}\n")

    def show_of_thread(args):
        # TensorBoard's writer keeps its error for the thread that writes, which ends with it.
        if sentence(args.exc_value) is None:
            previous_of_threads(args)

    show.shows_input_errors, show.program = True, program
    sys.excepthook, threading.excepthook = show, show_of_thread

"""The one exception for bad input, and the hook that shows it as a sentence instead of a
traceback."""

from __future__ import annotations

import errno
import sys

#: What the machine, not the program, has against a file: shown as a sentence, too.
_ENVIRONMENT = {
    getattr(errno, name)
    for name in ["EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "ENOTDIR", "EISDIR", "EEXIST"]
    if hasattr(errno, name)
}


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


def sentence(error: BaseException) -> str | None:
    """``error`` as one line for its user; None if it is not one for users."""
    ours = find_input_error(error)
    if ours is not None:
        return " ".join(str(ours).splitlines())
    if isinstance(error, OSError) and error.errno in _ENVIRONMENT:
        # Where a write fails, not an opening, Python does not say what was written.
        what = error.filename or "A file cannot be written"
        return (
            f"{what}: {error.strerror}. Give another place (--save-dir), or make room or rights "
            "there."
        )
    return None


def install_excepthook(program: str = "fairseq_peft") -> None:
    """Show an uncaught ``InputError``, or a file that cannot be written, as one line on stderr.

    The exit status stays 1.
    """
    previous = sys.excepthook
    if getattr(previous, "shows_input_errors", False):
        return

    def show(kind, error, traceback):
        text = sentence(error)
        if text is None:
            previous(kind, error, traceback)
        else:
            sys.stderr.write(f"{program}: error: {text}\n")

    show.shows_input_errors = True
    sys.excepthook = show

"""The one exception for bad input, and the hook that shows it as a sentence instead of a
traceback."""

from __future__ import annotations

import sys


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


def install_excepthook(program: str = "fairseq_peft") -> None:
    """Show an uncaught ``InputError`` as one line on stderr (the exit status stays 1)."""
    previous = sys.excepthook
    if getattr(previous, "shows_input_errors", False):
        return

    def show(kind, error, traceback):
        ours = find_input_error(error)
        if ours is None:
            previous(kind, error, traceback)
        else:
            sys.stderr.write(f"{program}: error: {ours}\n")

    show.shows_input_errors = True
    sys.excepthook = show

"""Adapters by name: what callers of ``Classifier`` and ``Generator`` give, checked in one place.

``loaded`` is name -> what that adapter needs, in the order of loading.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Union

from fairseq_peft.errors import InputError

#: What names are made of.
LETTERS = "ASCII letters, digits and . _ + -"


def is_name(name) -> bool:
    """Whether an adapter may be called that: a word that paths, logs and counters can hold."""
    return isinstance(name, str) and re.fullmatch(r"[\w.+-]+", name, re.ASCII) is not None


def check_free(loaded: Mapping[str, Any], name: str) -> None:
    """Raise InputError where there is an adapter of that name, or nothing may be called that."""
    if not is_name(name):
        raise InputError(f"{name!r} is no name of an adapter. Give one of {LETTERS}.")
    if name in loaded:
        raise InputError(f"There is an adapter {name!r} already. Remove it, or take another.")


def of(loaded: Mapping[str, Any], name: str):
    """What is loaded by that name.

    Raises:
        InputError: nothing is.
    """
    if name not in loaded:
        known = ", ".join(loaded) or "none"
        raise InputError(f"There is no adapter {name!r}. Loaded: {known}. Add it first.")
    return loaded[name]


def only(loaded: Mapping[str, Any]) -> str:
    """The name of the only one there is.

    Raises:
        InputError: there are others, or none.
    """
    if len(loaded) != 1:
        known = ", ".join(loaded) or "none"
        raise InputError(f"Which adapter? There are {len(loaded)}: {known}. Name one.")
    return next(iter(loaded))


def before_rows(
    loaded: Mapping[str, Any], adapter: Union[str, Iterable[str], None]
) -> Sequence[str]:
    """The adapters that rows will name, as far as ``adapter`` says it now: an iterator does not.

    Raises:
        InputError: None was given, and there is more than one.
    """
    if adapter is None or isinstance(adapter, str):
        return [only(loaded) if adapter is None else adapter]
    return list(dict.fromkeys(adapter)) if isinstance(adapter, Sequence) else []


def check_rows(rows, batch_size: int, window: int) -> None:
    """Raise InputError where one text was given for many, or no row at once."""
    if isinstance(rows, str):
        raise InputError(f"{rows[:40]!r} is one text. Give a list of texts.")
    if batch_size < 1 or window < 1:
        raise InputError(f"Batch size {batch_size}, window {window}: give 1 or more.")


def of_rows(
    loaded: Mapping[str, Any], rows: Iterable, adapter: Union[str, Iterable[str], None]
) -> Iterator[tuple[int, Any, str]]:
    """(its number from 1, a row, the name of its adapter), one after the other.

    Args:
        adapter: a name, or one a row; None for the only one there is.

    Raises:
        InputError: a name is unknown, or there are not as many as rows.
    """
    if adapter is None or isinstance(adapter, str):
        names = itertools.repeat(only(loaded) if adapter is None else adapter)
    else:
        names = iter(adapter)
    nothing = object()
    for number, row in enumerate(rows, start=1):
        name = next(names, nothing)
        if name is nothing:
            raise InputError(f"There are {number - 1} adapters and more texts. Name one a row.")
        of(loaded, name)
        yield number, row, name
    if not isinstance(names, itertools.repeat) and next(names, nothing) is not nothing:
        raise InputError("There are more adapters than texts. Name one a row.")

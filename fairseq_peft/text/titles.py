"""Titles that stand in another folder, found by the text they belong to."""

from __future__ import annotations

import re
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.text import corpus
from fairseq_peft.text.rows import Reader

#: What ends a title that needs no point behind it.
ENDS = (".", "!", "?", "…", ":", ";")


def read(folder: Path) -> dict[str, str]:
    """``key`` of a text -> its title, of all NAME.review and NAME.headline, line by line; of a text
    that stands there twice, the first one's.

    Raises:
        InputError: there are none, or their lines do not belong together.
    """
    found = {}
    paths = sorted(folder.glob("*.headline"))
    if not paths:
        raise InputError(
            f"{folder} has no NAME.headline. Expected a title a line, and NAME.review beside it."
        )
    for path in paths:
        texts, titles = (
            Reader().lines(file) for file in (corpus.find(folder, f"{path.stem}.review"), path)
        )
        if len(texts) != len(titles):
            raise InputError(
                f"{path.with_suffix('.review')} has {len(texts)} lines, {path} {len(titles)}. Line "
                "n of one belongs to line n of the other, so the counts must be equal."
            )
        for text, title in zip(texts, titles):
            if key(text) and title.strip():
                found.setdefault(key(text), title.strip())
    return found


def key(text: str) -> str:
    """The words of a text without case and signs: copies differ in these."""
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))


def before(title: str, text: str) -> str:
    """``Title. Text``, or ``Title? Text``."""
    return f"{title}{'' if title.endswith(ENDS) else '.'} {text}"

"""Rows of raw data: what one is, and how its lines and fields are decoded and checked.

A line ends at LF (or CR LF) and nowhere else. fairseq opens text in universal-newline mode and cuts
tokens at any Unicode space, so characters that would break a line there become a space here.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.scores import CLASSES, LABELS, NUMBER
from fairseq_peft.text import sources

#: Between the labels of a row.
SEPARATOR = "|"
# Whatever Python, fairseq or a text editor takes for the end of a line.
LINE_BREAKS = re.compile("[\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")
# Characters without width, which make labels differ that look equal: zero-width space, word
# joiner, byte order mark, soft hyphen.
INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad]")
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


@dataclass(frozen=True)
class Row:
    """One example; ``text2`` is None unless the data has pairs, ``where`` is its file and line.

    ``label`` is a word; where a row has any number of labels, their names with spaces between them;
    where it has a number, that number as text.
    """

    text: str
    label: str
    text2: str | None = None
    where: str = field(default="", compare=False)

    @property
    def key(self) -> tuple[str, str]:
        """Equal for two rows with the same words, whatever the spaces between them."""
        return " ".join(self.text.split()), " ".join((self.text2 or "").split())


def names_of(label: str, kind: str) -> list[str]:
    """The classes that ``Row.label`` names."""
    return [] if kind == NUMBER else label.split()


class Reader:
    """Decodes lines and counts what it had to change.

    Args:
        kind: what a row has (``scores``): a class, any number of labels, or a number.
        separator: stands between the labels of a row that has any number of them.

    Attributes:
        spellings: label -> the ways in which it was written.
    """

    def __init__(self, kind: str = CLASSES, separator: str = SEPARATOR):
        self.kind = kind
        self.separator = separator
        self.notes = Counter()
        self.spellings = {}

    def clean(self, text: str) -> str:
        """``text`` on one line: line breaks inside become spaces, and are counted."""
        text, count = LINE_BREAKS.subn(" ", text)
        self.notes["line_breaks_replaced"] += count
        return text

    def clean_label(self, label: str) -> str:
        """``label`` so that labels that look equal are equal; what had to be changed is counted."""
        clean = unicodedata.normalize("NFC", INVISIBLE.sub("", label)).strip()
        self.notes["rows_with_cleaned_labels"] += clean != label
        self.spellings.setdefault(clean, set()).add(label)
        return clean

    def all_notes(self) -> dict[str, int]:
        """The counts that are not 0."""
        joined = sum(len(spellings) - 1 for spellings in self.spellings.values())
        notes = {**self.notes, "spellings_of_labels_joined": joined}
        return {name: count for name, count in notes.items() if count}

    def lines(self, path: Path) -> list[str]:
        """The text of each line of a file; a last line without LF counts.

        A byte order mark at the start of a line is removed: files with one were joined.
        """
        try:
            with open(path, "rb") as file:
                lines = list(sources.lines(file, str(path)))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from None
        if not lines:
            raise InputError(f"{path} is empty. Expected one line for each example.")
        decoded = []
        for number, line in enumerate(lines, start=1):
            line = line[:-1] if line.endswith(b"\n") else line
            if line.startswith(sources.BOM):
                self.notes["byte_order_marks_removed"] += 1
                line = line[len(sources.BOM) :]
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}:{number} is not UTF-8: byte 0x{line[error.start]:02x} at column "
                    f"{error.start + 1}. Convert the file, for example with "
                    f"`iconv -f WINDOWS-1252 -t UTF-8`."
                ) from None
            if text.endswith("\r"):
                self.notes["crlf_line_ends"] += 1
                text = text[:-1]
            decoded.append(text)
        return decoded

    def row(self, where: str, text: str, label: str, text2: str | None) -> Row:
        """A checked row; ``where`` (`file:line` of each field) goes into the message."""
        text = self.clean(text)
        text2 = None if text2 is None else self.clean(text2)
        if not text.strip() or (text2 is not None and not text2.strip()):
            raise InputError(f"{where}: the text is empty. Remove the example from every file.")
        if self.kind == NUMBER:
            return Row(text, self.number(where, label), text2, where)
        if self.kind == LABELS:
            parts = [self.clean_label(part) for part in label.split(self.separator)]
            names = sorted({self.checked(where, part) for part in parts if part})
            return Row(text, " ".join(names), text2, where)
        return Row(text, self.checked(where, self.clean_label(label)), text2, where)

    def number(self, where: str, text: str) -> str:
        """The text of a row's number.

        Raises:
            InputError: it is none.
        """
        text = text.strip()
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or "_" in text:
            raise InputError(
                f"{where}: {text[:40]!r} is no number. Expected one such as 3.5, with a point."
            )
        return text

    def checked(self, where: str, label: str) -> str:
        """``label`` as the name of a class.

        Raises:
            InputError: it cannot be one.
        """
        if not label:
            raise InputError(f"{where}: the label is empty. Give it one, or remove the example.")
        if len(label.split()) > 1:
            raise InputError(
                f"{where}: the label {label!r} has spaces inside: fairseq would read two labels. "
                f"Write it as one word, for example {'_'.join(label.split())!r}."
            )
        if self.kind == LABELS and SEPARATOR in label:
            raise InputError(
                f"{where}: the label {label!r} has a {SEPARATOR!r}, which stands between labels in "
                "what `predict` writes. Rename it."
            )
        if label in SPECIALS or label.startswith(("madeupword", "#fairseq:")):
            raise InputError(
                f"{where}: the label {label!r} is a word that fairseq keeps for itself."
            )
        return label

"""Raw data -> aligned rows of (text, label), with refusals by file and line.

Two layouts:

    DIR/{train,valid,test}.{review,label}   a text or a label a line; .review2 for pairs
    FILE.tsv, FILE.jsonl                    columns or fields text, label[, text2][, split]

A line ends at LF (or CR LF) and nowhere else. fairseq opens text in universal-newline mode and cuts
tokens at any Unicode space, so characters that would break a line there become a space here.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fairseq_peft.errors import InputError

SPLITS = ("train", "valid", "test")
REQUIRED_SPLITS = ("train", "valid")
COLUMNS = ("text", "label", "text2", "split")
# Whatever Python, fairseq or a text editor takes for the end of a line.
LINE_BREAKS = re.compile("[\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


@dataclass(frozen=True)
class Row:
    """One example; ``text2`` is None unless the data has pairs, ``where`` is its file and line."""

    text: str
    label: str
    text2: str | None = None
    where: str = field(default="", compare=False)

    @property
    def key(self) -> tuple[str, str]:
        """Equal for two rows with the same words, whatever the spaces between them."""
        return " ".join(self.text.split()), " ".join((self.text2 or "").split())


@dataclass
class Corpus:
    """Aligned rows of each split, and what was done to read them."""

    rows: dict[str, list[Row]]
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def splits(self) -> list[str]:
        return [split for split in SPLITS if split in self.rows]

    @property
    def has_pairs(self) -> bool:
        return self.rows["train"][0].text2 is not None

    @property
    def labels(self) -> list[str]:
        """The classes in the order of their ids: numbers by value, anything else by alphabet."""
        return sort_labels({row.label for rows in self.rows.values() for row in rows})


def sort_labels(labels: set[str]) -> list[str]:
    """An order that does not depend on how often a label occurs."""
    if all(re.fullmatch(r"[+-]?\d+(\.\d+)?", label, re.ASCII) for label in labels):
        return sorted(labels, key=lambda label: (float(label), label))
    return sorted(labels)


class Reader:
    """Decodes lines and counts what it had to change."""

    def __init__(self):
        self.notes = Counter()

    def clean(self, text: str) -> str:
        """``text`` on one line: line breaks inside become spaces, and are counted."""
        text, count = LINE_BREAKS.subn(" ", text)
        if count:
            self.notes["line_breaks_replaced"] += count
            self.notes["lines_with_line_breaks"] += 1
        return text

    def lines(self, path: Path) -> list[str]:
        """Strictly UTF-8; split at LF only. A last line without LF counts."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from None
        if content.startswith(b"\xef\xbb\xbf"):
            self.notes["byte_order_marks_removed"] += 1
            content = content[3:]
        lines = content.split(b"\n")
        if lines[-1] == b"":
            lines.pop()
        if not lines:
            raise InputError(f"{path} is empty. Expected one line for each example.")
        decoded = []
        for number, line in enumerate(lines, start=1):
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
        text, label = self.clean(text), label.strip()
        text2 = None if text2 is None else self.clean(text2)
        if not text.strip() or (text2 is not None and not text2.strip()):
            raise InputError(f"{where}: the text is empty. Remove the example from every file.")
        if not label:
            raise InputError(f"{where}: the label is empty. Give it one, or remove the example.")
        if len(label.split()) > 1:
            raise InputError(
                f"{where}: the label {label!r} has spaces inside: fairseq would read two labels. "
                f"Write it as one word, for example {'_'.join(label.split())!r}."
            )
        if label in SPECIALS or label.startswith(("madeupword", "#fairseq:")):
            raise InputError(
                f"{where}: the label {label!r} is a word that fairseq keeps for itself."
            )
        return Row(text, label, text2, where)


def read_corpus(
    raw: Path | str, seed: int = 1, valid_share: float = 0.1, test_share: float = 0.1
) -> Corpus:
    """Read a directory, or a .tsv or .jsonl file; ``seed`` and the shares split one without splits.

    Raises:
        InputError: with file and line.
    """
    raw, reader = Path(raw), Reader()
    if raw.is_dir():
        rows = read_directory(raw, reader)
    elif raw.is_file():
        rows = read_table(raw, reader, seed, valid_share, test_share)
    else:
        raise InputError(
            f"{raw} does not exist. Expected a directory with train.review, train.label and so on, "
            f"or a .tsv or .jsonl file."
        )
    known = {row.label for row in rows["train"]}
    if len(known) < 2:
        raise InputError(f"{raw}: train has one class only, {known.pop()!r}. Expected two or more.")
    for split in rows:
        for row in rows[split]:
            if row.label not in known:
                raise InputError(
                    f"{row.where}: the label {row.label!r} of {split} never occurs in train (which "
                    f"has {', '.join(sort_labels(known))}), so no model could learn it."
                )
    return Corpus(rows, dict(reader.notes))


def read_directory(raw: Path, reader: Reader) -> dict[str, list[Row]]:
    """``{train,valid,test}.{review,label}``; test may be absent, .review2 may too."""
    splits = [split for split in SPLITS if (raw / f"{split}.review").exists()]
    for split in REQUIRED_SPLITS:
        if split not in splits:
            raise InputError(f"{raw / split}.review does not exist. Every split is two files.")
    has_pairs = (raw / "train.review2").exists()
    rows = {}
    for split in splits:
        names = [f"{split}.review", f"{split}.label"] + [f"{split}.review2"] * has_pairs
        columns = [reader.lines(raw / name) for name in names]
        for name, column in zip(names, columns):
            if len(column) != len(columns[0]):
                raise InputError(
                    f"{raw / names[0]} has {len(columns[0])} lines, {raw / name} {len(column)}. "
                    f"Line n of one belongs to line n of the other, so the counts must be equal."
                )
        texts2 = columns[2] if has_pairs else [None] * len(columns[0])
        rows[split] = [
            reader.row(f"{raw / split}.{{review,label}}:{number}", text, label, text2)
            for number, (text, label, text2) in enumerate(zip(columns[0], columns[1], texts2), 1)
        ]
    return rows


def read_table(
    path: Path, reader: Reader, seed: int, valid_share: float, test_share: float
) -> dict[str, list[Row]]:
    """A .tsv (header, no quoting) or .jsonl file, split by its ``split`` column or by ``seed``."""
    readers = {".tsv": tsv_records, ".jsonl": json_records, ".json": json_records}
    if path.suffix not in readers:
        raise InputError(f"{path}: expected a directory, or a file named .tsv or .jsonl.")
    rows, splits, first = [], [], None
    for where, record in readers[path.suffix](path, reader):
        fields = set(record)
        first = fields if first is None else first
        if fields != first:
            raise InputError(
                f"{where}: fields {sorted(fields)}, the rows before have {sorted(first)}."
            )
        if not {"text", "label"} <= fields <= set(COLUMNS):
            raise InputError(
                f"{where}: fields {sorted(fields)}. Expected text, label and perhaps text2, split."
            )
        if "split" in fields and record["split"] not in SPLITS:
            raise InputError(f"{where}: split {record['split']!r}. Expected train, valid or test.")
        rows.append(reader.row(where, record["text"], record["label"], record.get("text2")))
        splits.append(record.get("split"))
    if not rows:
        raise InputError(f"{path} has no rows.")
    if "split" not in first:
        splits = stratified_splits([row.label for row in rows], seed, valid_share, test_share)
    by_split = {
        name: [row for row, split in zip(rows, splits) if split == name]
        for name in SPLITS
        if name in splits
    }
    for split in REQUIRED_SPLITS:
        if split not in by_split:
            raise InputError(f"{path}: no row belongs to {split}. Expected train, valid and test.")
    return by_split


def tsv_records(path: Path, reader: Reader):
    """(file:line, fields) of each line under the header. A quote is a character like any other."""
    lines = reader.lines(path)
    header = [name.strip() for name in lines[0].split("\t")]
    if not {"text", "label"} <= set(header) <= set(COLUMNS) or len(set(header)) < len(header):
        raise InputError(
            f"{path}:1: the columns are {header}. Expected a header with text, label and perhaps "
            f"text2, split, separated by tabs."
        )
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split("\t")
        if len(fields) != len(header):
            raise InputError(
                f"{path}:{number} has {len(fields)} fields, the header {len(header)}. A tab or a "
                f"line break inside a text must be replaced (or use .jsonl)."
            )
        yield f"{path}:{number}", dict(zip(header, fields))


def json_records(path: Path, reader: Reader):
    """(file:line, fields) of each line; a label may be a string, an integer or true/false."""
    for number, line in enumerate(reader.lines(path), start=1):
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where} is not JSON: {error}. Expected one object a line.") from None
        if not isinstance(record, dict):
            raise InputError(f"{where} is not an object. Expected text and label.")
        if isinstance(record.get("label"), int):
            record["label"] = json.dumps(record["label"])
        for name, value in record.items():
            if not isinstance(value, str):
                raise InputError(f"{where}: {name} is {json.dumps(value)}. Expected a string.")
            try:
                value.encode()
            except UnicodeEncodeError:
                raise InputError(f"{where}: {name} has half a surrogate pair in it.") from None
        yield where, record


def stratified_splits(
    labels: list[str], seed: int, valid_share: float, test_share: float
) -> list[str]:
    """A split for each row: of every class the same shares, chosen by ``seed``."""
    for name, share in (("valid", valid_share), ("test", test_share)):
        if not 0 < share < 1:
            raise InputError(f"{name} share {share}: expected a fraction between 0 and 1.")
    if valid_share + test_share >= 1:
        raise InputError(
            f"valid share {valid_share} + test share {test_share} leave nothing to train."
        )
    rng, splits = random.Random(seed), ["train"] * len(labels)
    for label in sort_labels(set(labels)):
        rows = [number for number, other in enumerate(labels) if other == label]
        if len(rows) < 3:
            raise InputError(f"class {label!r} has {len(rows)} rows: too few for three splits.")
        rng.shuffle(rows)
        num_valid = min(max(1, round(len(rows) * valid_share)), len(rows) - 2)
        num_test = min(max(1, round(len(rows) * test_share)), len(rows) - 1 - num_valid)
        for number in rows[:num_valid]:
            splits[number] = "valid"
        for number in rows[num_valid : num_valid + num_test]:
            splits[number] = "test"
    return splits

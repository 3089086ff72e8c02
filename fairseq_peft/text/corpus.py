"""Raw data -> aligned rows of (text, label), with refusals by file and line.

Three layouts; each file may be packed (.gz, .xz), and in UTF-8 or, with a byte order mark, UTF-16:

    DIR/{train,valid,test}.{review,label}        a text or a label a line; .review2 for pairs
    DIR/{train,valid,test}.{tsv,csv,jsonl,json}  columns text, label[, text2]; dev is valid, too
    FILE.{tsv,csv,jsonl,json}                    columns text, label[, text2][, split]

``tables`` says how tables are read, and takes other names for their columns.

``rows`` says how lines and fields are decoded and checked.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.scores import CLASSES, LABELS, NUMBER
from fairseq_peft.text import sources, tables
from fairseq_peft.text.rows import SEPARATOR, Reader, Row, names_of
from fairseq_peft.text.tables import DEFAULT_COLUMNS, Columns

SPLITS = ("train", "valid", "test")
REQUIRED_SPLITS = ("train", "valid")
#: What splits are called in file names and in a column.
SPLIT_NAMES = {split: split for split in SPLITS}
SPLIT_NAMES.update(dict.fromkeys(("dev", "val", "validation"), "valid"))


@dataclass
class Corpus:
    """Aligned rows of each split, and what was done to read them."""

    rows: dict[str, list[Row]]
    notes: dict[str, int] = field(default_factory=dict)
    kind: str = CLASSES

    @property
    def splits(self) -> list[str]:
        return [split for split in SPLITS if split in self.rows]

    @property
    def has_pairs(self) -> bool:
        return self.rows["train"][0].text2 is not None

    @property
    def labels(self) -> list[str]:
        """The classes in the order of their ids: numbers by value, anything else by alphabet; none
        where a row has a number."""
        return sort_labels(
            {name for rows in self.rows.values() for row in rows for name in self.names(row)}
        )

    def names(self, row: Row) -> list[str]:
        """The classes of a row."""
        return names_of(row.label, self.kind)


def sort_labels(labels: set[str]) -> list[str]:
    """An order that does not depend on how often a label occurs."""
    if all(re.fullmatch(r"[+-]?\d+(\.\d+)?", label, re.ASCII) for label in labels):
        return sorted(labels, key=lambda label: (float(label), label))
    return sorted(labels)


def read_corpus(
    raw: Path | str,
    seed: int = 1,
    valid_share: float = 0.1,
    test_share: float = 0.1,
    columns: Columns = DEFAULT_COLUMNS,
    kind: str = CLASSES,
    separator: str = SEPARATOR,
) -> Corpus:
    """Read a directory, or the file of a table; ``seed`` and the shares split one without splits.

    Raises:
        InputError: with file and line.
    """
    raw, reader = Path(raw), Reader(kind, separator)
    if raw.is_dir():
        rows = read_directory(raw, reader, columns)
    elif raw.is_file():
        rows = read_table(raw, reader, columns, seed, valid_share, test_share)
    else:
        raise InputError(
            f"{raw} does not exist. Expected a directory with train.review, train.label and so on, "
            f"or with train.csv and so on, or a file ending in {', '.join(tables.SUFFIXES)}."
        )
    if kind != NUMBER:
        check_known(raw, rows, kind)
    elif len({float(row.label) for row in rows["train"]}) < 2:
        raise InputError(f"{raw}: all numbers of train are equal. Expected numbers that differ.")
    return Corpus(rows, reader.all_notes(), kind)


def check_known(raw: Path, rows: dict[str, list[Row]], kind: str) -> None:
    """Raise InputError where train has too few classes, or lacks one of another split."""
    known = {name for row in rows["train"] for name in names_of(row.label, kind)}
    if kind == LABELS and not known:
        raise InputError(f"{raw}: no row of train has a label. Expected one or more.")
    if kind == CLASSES and len(known) < 2:
        raise InputError(f"{raw}: train has one class only, {known.pop()!r}. Expected two or more.")
    for split in rows:
        for row in rows[split]:
            for name in names_of(row.label, kind):
                if name not in known:
                    raise InputError(
                        f"{row.where}: the label {name!r} of {split} never occurs in train (which "
                        f"has {', '.join(sort_labels(known))}), so no model could learn it."
                    )


def read_directory(raw: Path, reader: Reader, columns: Columns) -> dict[str, list[Row]]:
    """Files of lines, or tables; test may be absent."""
    found = {}
    for path in sorted(raw.iterdir()):
        stem, suffix = tables.split_suffix(path)
        if suffix in tables.SUFFIXES and stem in SPLIT_NAMES:
            other = found.setdefault(SPLIT_NAMES[stem], path)
            if other is not path:
                raise InputError(
                    f"{other} and {path} are both {SPLIT_NAMES[stem]}. Leave one in the folder."
                )
    if find(raw, "train.review").exists():
        if columns != DEFAULT_COLUMNS:
            raise InputError(
                f"{raw} has a text a line (train.review), so flags of columns have no effect. "
                "Drop them."
            )
        return read_line_files(raw, reader)
    if not found:
        raise InputError(
            f"{raw / 'train.review'} does not exist, and no train.tsv, .csv, .jsonl or .json. "
            "Expected train and valid, each a table, or two files: .review and .label."
        )
    for split in REQUIRED_SPLITS:
        if split not in found:
            raise InputError(f"{raw} has no table of {split}, such as {split}.csv. Give it one.")
    rows = {
        split: table_rows(found[split], reader, columns)[0] for split in SPLITS if split in found
    }
    for split in rows:
        if (rows[split][0].text2 is None) != (rows["train"][0].text2 is None):
            raise InputError(
                f"{found[split]} and {found['train']}: one has a second text (text2), one has none."
            )
    return rows


def find(raw: Path, name: str) -> Path:
    """The file ``name`` of a folder, or the packed one; the unpacked name where there is none."""
    packed = (raw / f"{name}{suffix}" for suffix in sources.PACKED_SUFFIXES)
    return next((path for path in (raw / name, *packed) if path.exists()), raw / name)


def read_line_files(raw: Path, reader: Reader) -> dict[str, list[Row]]:
    """``{train,valid,test}.{review,label}``; test may be absent, .review2 may too."""
    splits = [split for split in SPLITS if find(raw, f"{split}.review").exists()]
    for split in REQUIRED_SPLITS:
        if split not in splits:
            raise InputError(f"{raw / split}.review does not exist. Every split is two files.")
    has_pairs = find(raw, "train.review2").exists()
    rows = {}
    for split in splits:
        names = [f"{split}.review", f"{split}.label"] + [f"{split}.review2"] * has_pairs
        columns = [reader.lines(find(raw, name)) for name in names]
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


def table_rows(path: Path, reader: Reader, columns: Columns) -> tuple[list[Row], list[tuple]]:
    """The rows of a table, and (file and line, split or None) of each."""
    table = tables.read(path, reader, columns, needs=("text", "label"))
    if not table.records:
        raise InputError(f"{path} has no rows.")
    rows = [
        reader.row(where, fields["text"], fields["label"], fields.get("text2"))
        for where, fields, _ in table.records
    ]
    return rows, [(where, fields.get("split")) for where, fields, _ in table.records]


def read_table(
    path: Path,
    reader: Reader,
    columns: Columns,
    seed: int,
    valid_share: float,
    test_share: float,
) -> dict[str, list[Row]]:
    """A file of all rows, split by its ``split`` column or by ``seed``."""
    if tables.split_suffix(path)[1] not in tables.SUFFIXES:
        raise InputError(
            f"{path}: expected a directory, or a file named {', '.join(tables.SUFFIXES)} (or so "
            "with .gz or .xz behind)."
        )
    rows, places = table_rows(path, reader, columns)
    for where, split in places:
        if split is not None and split not in SPLIT_NAMES:
            raise InputError(f"{where}: split {split!r}. Expected train, valid (dev) or test.")
    if places[0][1] is None:
        # Shares of each class; where a row has not one class, of all rows.
        classes = [row.label if reader.kind == CLASSES else "" for row in rows]
        splits = stratified_splits(classes, seed, valid_share, test_share)
    else:
        splits = [SPLIT_NAMES[split] for _, split in places]
    by_split = {
        name: [row for row, split in zip(rows, splits) if split == name]
        for name in SPLITS
        if name in splits
    }
    for split in REQUIRED_SPLITS:
        if split not in by_split:
            raise InputError(f"{path}: no row belongs to {split}. Expected train, valid and test.")
    return by_split


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

"""Tables of texts: .tsv, .csv, .jsonl and .json files, as records of the columns that are read.

    .csv   quoted as Python's csv module does it, strictly; commas, or semicolons where those give
           more fields, as many in each row
    .tsv   the same with tabs if the whole file can be read so; else a quote is a character
    .jsonl an object a line; .json may also be one list of objects

Tables of the first two have a header, unless their columns are given by number. Columns that nobody
asks for are passed over.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional

from fairseq_peft.errors import InputError
from fairseq_peft.files import json_of
from fairseq_peft.scores import LABELS
from fairseq_peft.text.sources import PACKED_SUFFIXES

SUFFIXES = (".tsv", ".csv", ".jsonl", ".json")
FLAGS = {"text": "--text-column", "text2": "--text2-column", "label": "--label-column"}
#: Given as the second text's column: there is none, whatever a column text2 holds.
NO_TEXT2 = "none"
#: The longest field that csv reads; its own default, 128 KiB, is less than a long text.
MAX_FIELD = 2**31 - 1


@dataclass(frozen=True)
class Columns:
    """Where the texts and the label of a row are: names, or numbers from 1 on.

    Attributes:
        text, text2, label: None for columns named so. ``NO_TEXT2`` as text2: no second text.
        header: whether the first line names the columns; None: yes, unless all are numbers.
    """

    text: Optional[str] = None
    text2: Optional[str] = None
    label: Optional[str] = None
    header: Optional[bool] = None

    @property
    def given(self) -> dict[str, str]:
        """text, text2 or label -> column, of those that were named."""
        named = {name: getattr(self, name) for name in self.fields if name in FLAGS}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def fields(self) -> tuple[str, ...]:
        """What a row may have."""
        has_text2 = self.text2 != NO_TEXT2
        return ("text", "label", *(("text2",) * has_text2), "split")

    @property
    def has_header(self) -> bool:
        """Whether the first line of a .tsv or .csv names the columns."""
        if self.header is not None:
            return self.header
        return not self.given or not all(value.isdigit() for value in self.given.values())


DEFAULT_COLUMNS = Columns()


class Record(NamedTuple):
    """A row of a table.

    Attributes:
        where: its file and line.
        fields: text, label, text2 and split, as far as the table has them.
        raw: the row as it stands in the file, an object in JSON.
    """

    where: str
    fields: dict
    raw: object


@dataclass
class Table:
    """A table that was read.

    Attributes:
        header: the line with the names, as it stands in the file; None without.
        names: the names in it, or in JSON those of the first row.
        delimiter: between fields; None in JSON.
    """

    records: list[Record]
    header: Optional[str]
    names: list[str]
    delimiter: Optional[str]


def add_arguments(parser, label: bool = True) -> None:
    """The flags that say where texts and labels are."""
    shown = "name of a table's column, or its number from 1 on"
    parser.add_argument("--text-column", metavar="COLUMN", help=f"{shown} (text)")
    parser.add_argument(
        "--text2-column",
        metavar="COLUMN",
        help=f"the second text of pairs (text2); {NO_TEXT2}: there is no second text",
    )
    if label:
        parser.add_argument("--label-column", metavar="COLUMN", help="the class (label)")
    header = parser.add_mutually_exclusive_group()
    header.add_argument(
        "--header",
        action="store_true",
        default=None,
        help="the first line names the columns (default: unless all columns are numbers)",
    )
    header.add_argument(
        "--no-header",
        dest="header",
        action="store_false",
        default=None,
        help="the first line is a row",
    )


def columns_of(args) -> Columns:
    """What was given with the flags of ``add_arguments``."""
    label = getattr(args, "label_column", None)
    return Columns(args.text_column, args.text2_column, label, args.header)


def split_suffix(path: Path) -> tuple[str, str]:
    """Name and ending without that of a packed file: ``data.csv.gz`` -> ("data", ".csv")."""
    path = Path(path)
    if path.suffix in PACKED_SUFFIXES:
        path = path.with_suffix("")
    return path.stem, path.suffix


def read(path: Path, reader, columns: Columns, needs: tuple[str, ...]) -> Table:
    """The rows of a file that ends in one of ``SUFFIXES``.

    Args:
        reader: ``rows.Reader``, which decodes the lines and counts what is odd.
        needs: the fields that each row must have; with a label among them, as data has, text2 and
            split come along where they are.

    Raises:
        InputError: with file and line.
    """
    if split_suffix(path)[1] in (".json", ".jsonl"):
        return _read_json(path, reader, columns, needs)
    return _read_delimited(path, reader, columns, needs)


# .tsv and .csv


def _read_delimited(path, reader, columns, needs):
    lines = reader.lines(path)
    while len(lines) > 1 and not lines[-1]:
        lines.pop()
    is_csv = split_suffix(path)[1] == ".csv"
    delimiter, rows = _csv_rows(path, lines) if is_csv else ("\t", _tsv_rows(lines, reader))
    first, header = rows[0][1], None
    names = [str(number) for number in range(1, len(first) + 1)]
    if columns.has_header:
        header, names = rows[0][2], [name.strip() for name in first]
        rows = rows[1:]
    indices = _indices(path, names, columns, needs)
    if header is None and columns.header is None and "label" in indices:
        _check_first_row(path, rows, indices["label"])
    records = []
    for number, fields, raw in rows:
        if len(fields) != len(first):
            raise InputError(
                f"{path}:{number} has {len(fields)} fields, the "
                f"{'first row' if header is None else 'header'} {len(first)}. A field with a "
                "delimiter or a line break in it needs quotes around it (or use .jsonl)."
            )
        found = {name: fields[index] for name, index in indices.items()}
        records.append(Record(f"{path}:{number}", found, raw))
    return Table(records, header, names, delimiter)


def _indices(path, names, columns, needs):
    """text, label, text2, split -> place in a row."""
    given = columns.given
    if not columns.has_header and any(not value.isdigit() for value in given.values()):
        raise InputError(
            f"{path}: --no-header, and columns with names ({', '.join(given.values())}). Give "
            "numbers, or leave --no-header out."
        )
    found = {}
    for name in columns.fields:
        wanted = given.get(name, name)
        is_there = wanted in names and "label" in needs
        if name == "text2" and is_there:  # unless a flag has said that it is something else
            is_there = names.index(wanted) not in found.values() and wanted not in given.values()
        if name not in needs and (name == "label" or (name not in given and not is_there)):
            continue
        if wanted.isdigit() and 0 < int(wanted) <= len(names):
            found[name] = int(wanted) - 1
        elif names.count(wanted) == 1 and columns.has_header:
            found[name] = names.index(wanted)
        else:
            flags = " and ".join(FLAGS[need] for need in needs)
            raise InputError(
                f"{path}:1: the columns are {names}. Expected one {wanted!r}. Name the columns "
                f"with {flags} (numbers, from 1 on, where no line names them)."
            )
    return found


def _check_first_row(path, rows, index):
    """Refuse what looks like a header where columns are numbers and nothing says that it is one."""
    labels = Counter(fields[index] for _, fields, _ in rows if index < len(fields))
    first = rows[0][1][index]
    if len(rows) > 2 and labels[first] == 1:
        raise InputError(
            f"{path}:1: the label {first!r} occurs in no other row. If the first line names the "
            "columns, give --header (HEADER=1); if it is a row, --no-header (HEADER=0)."
        )


def _csv_rows(path, lines):
    """(delimiter, rows); a row is its line, its fields, and its text."""
    found = {delimiter: list(_quoted_rows(lines, delimiter)) for delimiter in ",;"}
    errors = {delimiter: rows.pop() for delimiter, rows in found.items() if rows[-1][1] is None}

    def num_fields(delimiter):
        widths = {len(fields) for _, fields, _ in found[delimiter]}
        return 0 if delimiter in errors or len(widths) != 1 else widths.pop()

    delimiter = ";" if num_fields(";") > max(1, num_fields(",")) else ","
    if delimiter in errors:
        number, _, error = errors[delimiter]
        raise InputError(
            f"{path}:{number}: {error}. Expected fields with quotes around those that hold a "
            "quote, a line break or a comma, and quotes inside doubled, as csv writers do."
        )
    return delimiter, found[delimiter]


def _tsv_rows(lines, reader):
    plain = [(number, line.split("\t"), line) for number, line in enumerate(lines, start=1)]
    if not any(field.startswith('"') for _, fields, _ in plain for field in fields):
        return plain
    quoted = list(_quoted_rows(lines, "\t"))
    if quoted[-1][1] is None or len({len(fields) for _, fields, _ in quoted}) != 1:
        reader.notes["tables_whose_quotes_are_text"] += 1
        return plain
    reader.notes["tables_with_quoted_fields"] += 1
    return quoted


def _quoted_rows(lines, delimiter) -> Iterator[tuple[int, list[str] | None, str]]:
    """A row is the number of its first line, its fields, and its text. Where quotes are wrong, the
    last one has None for fields and what is wrong for text."""
    csv.field_size_limit(MAX_FIELD)
    rows = csv.reader((line + "\n" for line in lines), delimiter=delimiter, strict=True)
    start = 0
    try:
        for fields in rows:
            yield start + 1, fields or [""], "\n".join(lines[start : rows.line_num])
            start = rows.line_num
    except csv.Error as error:
        wrong = str(error)
        if "new-line character" in wrong:  # old Macs' end of a line
            wrong = "a CR without LF stands outside of quotes; end lines with LF, or CR LF"
        yield start + 1, None, wrong


# .jsonl and .json


def _read_json(path, reader, columns, needs):
    given = columns.given
    names = {name: given.get(name, name) for name in columns.fields}
    if "label" not in needs:
        names = {name: key for name, key in names.items() if name in needs or name in given}
        names.pop("label", None)
    is_other = "text2" not in given and "text2" in given.values()
    if is_other and "text2" not in needs:
        names.pop("text2", None)
    needs = (*needs, *(name for name in given if name in names and name not in needs))
    records, first = [], None
    for where, record in _objects(path, reader):
        fields = {name: record[key] for name, key in names.items() if key in record}
        first = set(fields) if first is None else first
        if set(fields) != first:
            raise InputError(
                f"{where}: fields {sorted(fields)}, the rows before have {sorted(first)}."
            )
        if not set(needs) <= set(fields):
            raise InputError(
                f"{where}: fields {sorted(record)}. Expected "
                f"{', '.join(names[name] for name in needs)} and perhaps text2, split. Name them "
                f"with {' and '.join(FLAGS[need] for need in needs)}."
            )
        label = fields.get("label")
        if isinstance(label, list) and all(isinstance(name, str) for name in label):
            fields["label"] = _joined(where, names["label"], label, reader)
        if isinstance(fields.get("label"), (int, float)):
            fields["label"] = json.dumps(fields["label"])
        for name, value in fields.items():
            _check_text(where, names[name], value)
        records.append(Record(where, fields, record))
    return Table(records, None, list(records[0].raw) if records else [], None)


def _joined(where, name, labels, reader):
    """A list of labels as the one text that ``Reader.row`` cuts again."""
    if reader.kind != LABELS:
        raise InputError(
            f"{where}: {name} is {json.dumps(labels)}. Expected one, no list; give --kind {LABELS} "
            "where a row has any number of them."
        )
    for label in labels:
        if reader.separator in label:
            raise InputError(
                f"{where}: the label {label!r} has the separator {reader.separator!r} in it and "
                "would be several. Rename it, or give another --label-separator."
            )
    return reader.separator.join(labels)


def _check_text(where, name, value):
    if not isinstance(value, str):
        raise InputError(f"{where}: {name} is {json.dumps(value)}. Expected a string.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: {name} has half a surrogate pair in it.") from None


def _objects(path, reader):
    """(file and line, object) of each row."""
    lines = reader.lines(path)
    if lines[0].lstrip().startswith("["):
        items = _parse("\n".join(lines), f"{path}:1")
        content = ((f"{path}, item {number}", item) for number, item in enumerate(items, start=1))
    else:
        places = (f"{path}:{number}" for number in range(1, len(lines) + 1))
        content = ((where, _parse(line, where)) for where, line in zip(places, lines))
    for where, record in content:
        if not isinstance(record, dict):
            raise InputError(f"{where} is not an object. Expected text and label.")
        yield where, record


def _parse(text, where):
    try:
        return json_of(text)
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}. Expected one object a line.") from None

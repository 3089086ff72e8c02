"""Columns of a table as files with a text a line, as translation and summarisation are given.

TABLE is .tsv, .csv, .jsonl or .json, packed ones, too. Each column becomes PREFIX.COLUMN; line n of
all of them is row n, so line breaks within a text become spaces. A row without text in one of the
columns is an error, since its line would be empty.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fairseq_peft.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", metavar="TABLE", type=Path, help="such as train.tsv.xz")
    parser.add_argument("prefix", metavar="PREFIX", type=Path, help="of the files, as raw/train")
    parser.add_argument("--columns", required=True, help="for example article,abstract")
    parser.add_argument("--rows", type=int, help="only the first so many (all)")


def run(args: argparse.Namespace) -> int:
    from fairseq_peft.files import whole

    if args.rows is not None and args.rows < 1:
        raise InputError(f"--rows {args.rows}: expected at least 1.")
    texts = {}
    for name in dict.fromkeys(args.columns.split(",")):
        if not name or Path(name).name != name:
            raise InputError(f"--columns has {name!r}: expected names that a file can have.")
        texts[name] = column(args.table, name)[: args.rows]
    for name, lines in texts.items():
        path = args.prefix.with_name(f"{args.prefix.name}.{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as temporary:
            temporary.write_bytes("".join(f"{line}\n" for line in lines).encode())
        sys.stdout.write(f"{path}: {len(lines):,} rows\n")
    return 0


def column(path: Path, name: str) -> list[str]:
    """The texts of a column, each on one line.

    Raises:
        InputError: the table cannot be read or has no such column, or a row has no text there.
    """
    from fairseq_peft.text import rows, tables

    table = tables.read(path, rows.Reader(), tables.Columns(text=name), ("text",))
    found = []
    for record in table.records:
        text = " ".join(record.fields["text"].split())
        if not text:
            raise InputError(f"{record.where}: {name} is empty. Expected a text in each row.")
        found.append(text)
    return found

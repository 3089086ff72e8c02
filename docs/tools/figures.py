"""Fills the tables of README and docs that tell results from the files in docs/results.

    python docs/tools/figures.py            writes the pages
    python docs/tools/figures.py --check    exit status 1 and names, where some are not current

Such a table follows the line ``<!-- figures: docs/results/main/report.json -->``. Which rows it has
its columns ``start`` and ``method`` say, which columns its header; all else comes from the file. A
test runs the check.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from fairseq_peft.report import cells

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "RESULTS.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = re.compile(r"(<!-- figures: (\S+) -->\n+)((?:\|.*\n)+)")
#: Header -> the text of a cell, as the report writes it.
COLUMNS = {
    "start": lambda row: row["init"],
    "method": lambda row: row["method"],
    "test accuracy %": cells.mean_sd,
    "valid %": lambda row: cells.percent(row["valid_accuracy_mean"]),
    "seeds": lambda row: str(row["num_seeds"]),
    "trainable, with head": lambda row: cells.count(row["trainable_parameters"]),
    "difference to full [95 % interval]": cells.difference,
    "kept for a task": lambda row: cells.size(row["task_bytes"]),
    "learning rate": lambda row: cells.learning_rate(row["learning_rate"]),
}


def written(text: str) -> str:
    """A page with the figures of the files in its marked tables.

    Raises:
        KeyError: a file lacks a row of a table, or nobody knows a column.
    """
    return MARK.sub(lambda found: found[1] + table(found[2], found[3]), text)


def table(source: str, text: str) -> str:
    """A table of Markdown with the figures of the file ``source``."""
    given = {(row["init"], row["method"]): row for row in json.loads((ROOT / source).read_text())}
    head, rule, *lines = text.splitlines()
    names = _cells(head)
    done = [head, rule]
    for line in lines:
        told = dict(zip(names, _cells(line)))
        key = told["start"], told["method"]
        if key not in given:
            raise KeyError(f"{source} has no row {', '.join(key)}")
        done.append(f"| {' | '.join(COLUMNS[name](given[key]) for name in names)} |")
    return "\n".join(done) + "\n"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; say what differs")
    check = parser.parse_args(argv).check
    changed = {
        page: new for page in PAGES if (new := written(page.read_text())) != page.read_text()
    }
    for page, new in changed.items():
        sys.stdout.write(f"{page.relative_to(ROOT)}\n")
        if not check:
            page.write_text(new)
    return int(check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())

"""Tables in README and docs that tell results are those of the files in docs/results.

A table follows the line ``<!-- figures: docs/results/main/report.json -->``, and each of its rows
is one of that file, found by its start and method.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fairseq_peft.report import cells

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "RESULTS.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = re.compile(r"<!-- figures: (\S+) -->\n+((?:\|.*\n)+)")


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


def faults(text: str) -> list[str]:
    """What the marked tables of a page say, and the files do not; one line each."""
    found = []
    for source, table in MARK.findall(text):
        given = {
            (row["init"], row["method"]): row for row in json.loads((ROOT / source).read_text())
        }
        header, _, *lines = (
            [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
        )
        for line in lines:
            told = dict(zip(header, line))
            row = given.get((told["start"], told["method"]))
            if row is None:
                found.append(f"{source} has no row {told['start']}, {told['method']}")
                continue
            expected = {name: COLUMNS[name](row) for name in header}
            found += [
                f"{told['method']}, {name}: {told[name]}, and {source} has {expected[name]}"
                for name in header
                if told[name] != expected[name]
            ]
    return found


MARKED = [page for page in PAGES if MARK.search(page.read_text())]


@pytest.mark.parametrize("page", MARKED, ids=lambda page: page.name)
def test_tables_are_those_of_the_files(page):
    assert not faults(page.read_text())


def test_readmes_table_is_one_of_them():
    assert ROOT / "README.md" in MARKED


def test_another_figure_is_noticed():
    """A digit of any cell with figures, changed, is a fault."""
    (source, table), *_ = MARK.findall((ROOT / "README.md").read_text())
    page = f"<!-- figures: {source} -->\n{table}"
    assert not faults(page)
    places = [m.start() for m in re.finditer(r"(?<=\| )[-+]?\d", table)]
    assert len(places) > 10
    for place in places:
        place += table[place] in "+-"
        digit = str((int(table[place]) + 1) % 10)
        assert faults(page.replace(table, table[:place] + digit + table[place + 1 :]))

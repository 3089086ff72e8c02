"""Tables in README and docs that tell results are those of the files in docs/results: what
``docs/tools/figures.py`` would write is there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOL = runpy.run_path(str(ROOT / "docs" / "tools" / "figures.py"))
MARK, written = TOOL["MARK"], TOOL["written"]
MARKED = [page for page in TOOL["PAGES"] if MARK.search(page.read_text())]


@pytest.mark.parametrize("page", MARKED, ids=lambda page: page.name)
def test_tables_are_those_of_the_files(page):
    text = page.read_text()
    assert written(text) == text, "bash scripts/docs.sh figures"


def test_readmes_table_is_one_of_them():
    assert ROOT / "README.md" in MARKED


def test_another_figure_is_put_right():
    """A digit of any cell with figures, changed, is written as it was."""
    page = MARK.search((ROOT / "README.md").read_text())[0]
    places = [m.start() for m in re.finditer(r"(?<=\| )[-+]?\d", page)]
    assert len(places) > 10
    for place in places:
        place += page[place] in "+-"
        digit = str((int(page[place]) + 1) % 10)
        assert written(page[:place] + digit + page[place + 1 :]) == page


def test_a_row_that_is_in_no_file_is_an_error():
    page = MARK.search((ROOT / "README.md").read_text())[0]
    with pytest.raises(KeyError, match="report.json has no row pretrained, lohra"):
        written(page.replace("| lora |", "| lohra |"))


ROWS = re.compile(r"^<!-- rows: (\S+) -->\n((?:\|.*\n)+)", re.M)
OF_TEXTS = [
    (p.name, *found) for p in (ROOT / "docs").glob("*.md") for found in ROWS.findall(p.read_text())
]


@pytest.mark.parametrize("page, file, table", OF_TEXTS)
def test_tables_of_texts_are_those_of_the_files(page, file, table):
    """What ``text-report`` has written stands in the page, line for line."""
    written = [line for line in (ROOT / file).read_text().splitlines() if line.startswith("|")]
    assert table.splitlines() == written and len(written) > 2


def test_there_is_one():
    assert ("translation.md", "docs/results/multi30k-3000/report.md") in [t[:2] for t in OF_TEXTS]

"""Links of README and docs: each leads to a file that is there, and to a heading of it."""

from __future__ import annotations

import re

import pytest
from helpers import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def links(text):
    """(file, heading) of each link that stays in the project."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://", "mailto:")):
            path, _, heading = target.partition("#")
            yield path, heading


def headings(path):
    """The names that a page's headings have in links."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    broken = []
    for path, heading in links(page.read_text(encoding="utf-8")):
        target = page.parent / path if path else page
        if not target.exists() or (heading and heading not in headings(target)):
            broken.append(f"{path}#{heading}")
    assert broken == []


def test_pages_have_links():
    assert len(PAGES) > 10 and sum(len(list(links(p.read_text()))) for p in PAGES) > 30

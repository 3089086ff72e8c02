"""The documentation site: it builds, its links lead somewhere, and it asks nothing of anybody."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import textwrap

import pytest
from helpers import ROOT
from scripting import run_script

PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
#: What a browser fetches by itself.
FETCHED = re.compile(
    r"""<(?:script|img|iframe|link(?! rel="canonical"))\b[^>]*?(?:src|href)="(http[^"]+)"""
)


@pytest.fixture
def project(tmp_path):
    """A copy of what the site is made of."""
    for name in ("fairseq_peft", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("docs", "scripts", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("mkdocs.yml", "README.md", "RESULTS.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.mark.end_to_end
def test_it_builds_and_is_whole(tmp_path):
    pytest.importorskip("material")
    done = run_script(ROOT / "scripts" / "docs.sh", cwd=tmp_path, SITE=str(tmp_path / "site"))
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "site"
    pages = {str(path.relative_to(site)): path.read_text("utf-8") for path in site.rglob("*.html")}
    assert {"tutorial.html", "reference/commands.html", "results.html", "notebook.html"} < set(
        pages
    )
    assert "class LoRALinear" in re.sub(
        "<[^>]+>", "", pages["source/fairseq_peft/methods/lora.py.html"]
    )
    for name, html in pages.items():
        assert FETCHED.findall(html) == [], name
    # code that is longer than a line of text is broken; a block of code scrolls
    assert '<code class="long">fairseq-peft import' in pages["translation.html"]
    assert not [name for name, html in pages.items() if '<pre><code class="long"' in html]
    found = (site / "search" / "search_index.json").read_text("utf-8")
    assert '"location":"tutorial.html"' in found and '"location":"source/' not in found
    assert not (site / "tools").exists()


@pytest.mark.end_to_end
def test_negative_control_what_leads_nowhere_is_an_error(project):
    pytest.importorskip("material")
    page = project / "docs" / "predict.md"
    links = "[a](gone.md) [b](design.md#gone) [c](../fairseq_peft/gone.py)"
    page.write_text(page.read_text(encoding="utf-8") + f"\n{links}\n", encoding="utf-8")
    (project / "docs" / "unlisted.md").write_text("# A page that the navigation lacks\n")
    done = run_script(project / "scripts" / "docs.sh", cwd=project)
    assert done.returncode != 0
    for name in ("gone.md", "design.md#gone", "gone.py", "unlisted.md"):
        assert name in done.stderr, done.stderr
    assert done.stderr.count("WARNING") == 4


def test_the_pattern_sees_what_is_fetched():
    assert FETCHED.findall('<script src="https://a.b/c.js">') == ["https://a.b/c.js"]
    assert FETCHED.findall('<link rel="stylesheet" href="https://a.b/c.css">') == [
        "https://a.b/c.css"
    ]
    assert FETCHED.findall('<a href="https://a.b/">') == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_code_on_a_page_is_code(page):
    """Each block of Python parses, each of bash is what bash understands."""
    blocks = re.findall(r"^( *)```(\w+)\n(.*?)^ *```$", page.read_text("utf-8"), re.M | re.S)
    scripts = []
    for _, language, block in blocks:
        if language == "python":
            ast.parse(textwrap.dedent(block))
        elif language == "bash":
            scripts.append(textwrap.dedent(block))
    done = subprocess.run(
        ["bash", "-n"], input="\n".join(scripts), capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr

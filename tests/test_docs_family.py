"""docs/add-a-family.md, executed as it stands: one file and one entry are a third family."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from helpers import PACKAGE, ROOT
from pages import commands_of, files_of, number_of, runner

PAGE = (ROOT / "docs" / "add-a-family.md").read_text(encoding="utf-8")
FILES = files_of(PAGE)
MODEL, TEST = "fairseq_peft/models/wav2vec2.py", "tests/models/test_wav2vec2.py"
ENTRY = "from fairseq_peft.models import hf_models, roberta, transformer, transformer_lm"


@pytest.fixture
def copy(tmp_path):
    """A copy of the package with the file, the entry and the test of the page."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "fairseq_peft", ignore=ignored)
    (tmp_path / "tests" / "models").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, content in FILES.items():
        assert not (ROOT / name).exists(), f"{name} is in the set: take another example"
        (tmp_path / name).write_text(content, encoding="utf-8")
    entries = tmp_path / "fairseq_peft" / "models" / "__init__.py"
    lines = entries.read_text(encoding="utf-8").splitlines()
    (new,) = [line for line in PAGE.splitlines() if line.startswith(ENTRY)]
    assert lines[-1].startswith(ENTRY) and new != lines[-1]
    entries.write_text("\n".join([*lines[:-1], new]) + "\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def run(copy, python):
    """``run(command)``: one line of the page, with the package that is in ``copy``."""
    return runner(copy, python)


def test_the_page_is_read():
    assert list(FILES) == [MODEL, TEST]


def test_a_family_is_one_file_and_one_entry(run):
    (check,), _ = commands_of(PAGE)[0]
    done = run(check)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert number_of("passed", done) >= 2 + 2 * 6 + 4 + 2
    assert not number_of("failed", done) + number_of("skipped", done)
    (command,), shown = commands_of(PAGE)[1]
    done = run(command)
    assert done.returncode == 0, done.stderr[-2000:]
    assert shown and set(shown) <= set(done.stdout.splitlines())


@pytest.mark.parametrize(
    "part, instead, seen",
    [
        (
            "h = self.self_attn(self.before(x, norm), keep)",
            "y = self.before(x, norm).transpose(0, 1)\n"
            "        stock = super(SelfAttention, self.self_attn).forward\n"
            "        h = stock(y, y, y, self_attn_padding_mask)[0].transpose(0, 1)",
            "lora_A",
        ),
        ("self.attention_adapter, norm", "None, norm", "attention_adapter"),
    ],
    ids=["attention of stock fairseq", "a slot that nobody calls"],
)
def test_negative_controls_the_pages_test_sees_a_broken_family(copy, run, part, instead, seen):
    broken = FILES[MODEL].replace(part, instead)
    assert broken != FILES[MODEL]
    (copy / MODEL).write_text(broken, encoding="utf-8")
    done = run(f"python -m pytest -q {TEST} -k reaches")
    assert done.returncode == 1
    assert number_of("failed", done) >= 2 and seen in done.stdout


def test_the_code_of_the_page_is_clean(copy):
    ruff = shutil.which("ruff", path=os.path.dirname(sys.executable)) or shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed")
    for verb in (["check"], ["format", "--check"]):
        done = subprocess.run([ruff, *verb, *FILES], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

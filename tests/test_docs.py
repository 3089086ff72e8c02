"""The pages of docs/: add-a-method.md is executed as it stands, methods.md says what the code
says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from helpers import PACKAGE, ROOT
from pages import commands_of, files_of, number_of, runner

from fairseq_peft import methods
from fairseq_peft.architectures import SIZES, evaluate
from fairseq_peft.commands.methods import describe
from fairseq_peft.methods import rate_text

ADD = (ROOT / "docs" / "add-a-method.md").read_text(encoding="utf-8")
LIST = ROOT / "docs" / "methods.md"
SUPPORT = ("adapter_folders", "composed", "families", "fork_server", "fresh_process", "helpers")
TESTS = (
    "conftest.py",
    "support/settings/__init__.py",
    *(f"support/{name}.py" for name in SUPPORT),
)
CONTRACT = "methods/test_contract.py"


FILES = files_of(ADD)
METHOD, TEST = "fairseq_peft/methods/ssf.py", "tests/methods/test_ssf.py"
SETTINGS = "tests/support/settings/ssf.py"


@pytest.fixture
def copy(tmp_path):
    """A copy of the package and of the contract, with the files of the page."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "fairseq_peft", ignore=ignored)
    for name in (*TESTS, CONTRACT):
        (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests" / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, content in FILES.items():
        assert not (ROOT / name).exists(), f"{name} is in the set: take another example"
        (tmp_path / name).write_text(content, encoding="utf-8")
    return tmp_path


@pytest.fixture
def run(copy, python):
    """``run(command)``: one line of the page, with the package that is in ``copy``."""
    return runner(copy, python)


def test_the_page_is_read():
    assert list(FILES) == [METHOD, SETTINGS, TEST]
    assert [len(block) for block, _ in commands_of(ADD)] == [1, 1, 1, 2]


def test_a_method_is_one_file_and_one_test(run):
    for block, shown in commands_of(ADD):
        outputs = ""
        for command in block:
            done = run(command)
            assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
            outputs += done.stdout
            if "pytest" in command:
                # Each check of the contract, for the default and two settings, and the page's own.
                assert number_of("passed", done) >= 3 * 10 + 1, done.stdout
                assert not number_of("failed", done) + number_of("skipped", done)
        for line in shown:
            assert line in outputs.splitlines(), (block, line, outputs)


@pytest.mark.parametrize(
    "part, instead, seen",
    [
        ("return (self.scale * y + self.shift).to(y.dtype)", "return y", "ssf.scale"),
        ('default="q_proj,', 'default="k_proj,q_proj,', "k_proj.ssf.shift"),
    ],
    ids=["does nothing", "shifts keys"],
)
def test_negative_controls_the_contract_sees_a_broken_method(copy, run, part, instead, seen):
    broken = FILES[METHOD].replace(part, instead)
    assert broken != FILES[METHOD]
    (copy / METHOD).write_text(broken, encoding="utf-8")
    done = run("python -m pytest -q tests/methods/test_contract.py -k 'ssf and perturbed'")
    assert done.returncode == 1
    assert f"{seen} does not reach the logits" in done.stdout
    assert number_of("failed", done) >= 2


def test_the_code_of_the_page_is_clean(copy):
    ruff = shutil.which("ruff", path=os.path.dirname(sys.executable)) or shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed")
    for verb in (["check"], ["format", "--check"]):
        done = subprocess.run([ruff, *verb, *FILES], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def sections():
    """method -> its section of methods.md."""
    parts = re.split(r"^## `(\w+)`", LIST.read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))


def test_every_method_has_a_section():
    """docs/methods.md: a heading ## `name` for every file of methods/."""
    assert sorted(sections()) == methods.available()


@pytest.mark.parametrize("name", methods.available())
def test_a_section_says_what_the_code_says(name):
    section, method = sections()[name], methods.get(name)
    setting, dims = methods.setting(name, {}), SIZES["roberta_small"]
    total = setting.count(dims).total + setting.count_base(dims).total
    count, formula = re.search(
        r"^- \*\*Parameters, roberta_small:\*\* ([\d,]+)(?: = (.+))?$", section, re.M
    ).groups()
    assert count == f"{total:,}"
    assert formula is None or evaluate(formula) == total
    rates = " ".join(map(rate_text, method.learning_rates))
    assert f"- **Learning rates:** {rates}\n" in section
    if method.paper != "-":
        for paper in re.findall(r"arXiv:[\d.]+\d", method.paper):
            assert paper in section


def test_the_flags_on_the_page_exist():
    known = {
        knob["flag"]
        for name in methods.available()
        for knob in describe(methods.get(name))["knobs"]
    }
    for flag in re.findall(r"`(--[\w-]+)", LIST.read_text(encoding="utf-8")):
        others = {"--peft", "--peft-train-tokens", "--from-scratch", "--pooler"}
        assert flag in known | others, flag

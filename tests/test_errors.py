"""An uncaught InputError: a sentence from a command, a traceback from somebody's own script."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers import PACKAGE

from fairseq_peft.errors import is_command, unwritten

SCRIPT = """
from fairseq_peft.errors import InputError, install_excepthook
install_excepthook()
def helper():
    raise InputError("There is no adapter 'zz'.")
helper()
"""


@pytest.mark.parametrize(
    "program, expected",
    [
        ("/usr/bin/fairseq-train", True),
        ("fairseq-hydra-train", True),
        ("/usr/bin/fairseq-peft", True),
        (str(PACKAGE / "train.py"), True),
        ("fairseq_peft/mine.py", False),  # in a clone of this name
        ("checkout/train.py", True),  # fairseq's own launcher
        ("-c", False),
        ("", False),
    ],
)
def test_a_command_is_told_from_a_script(program, expected, tmp_path, monkeypatch):
    for name in ("fairseq_peft/mine.py", "checkout/train.py", "checkout/fairseq_cli/train.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert is_command(program) == expected


@pytest.mark.parametrize("name, traceback", [("fairseq-train", False), ("mine.py", True)])
def test_who_writes_a_script_sees_where_it_failed(tmp_path, name, traceback):
    (tmp_path / name).write_text(SCRIPT)
    done = subprocess.run([sys.executable, tmp_path / name], capture_output=True, text=True)
    assert done.returncode == 1 and "There is no adapter 'zz'." in done.stderr
    assert ("Traceback" in done.stderr) == ("in helper" in done.stderr) == traceback
    assert (done.stderr.count("\n") == 1) != traceback


def test_a_program_that_says_its_name_is_a_command(tmp_path):
    """After the plugin's own hook, too."""
    script = SCRIPT.replace("def helper", "install_excepthook('mine')\ndef helper")
    (tmp_path / "mine.py").write_text(script)
    done = subprocess.run([sys.executable, tmp_path / "mine.py"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "mine: error: There is no adapter 'zz'.\n")


def test_the_file_is_named_whatever_the_path_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = OSError(28, "No space left on device", str(tmp_path / "out" / "a.bin"))
    assert f"{tmp_path}/out/a.bin cannot be written (No space left" in str(unwritten("out", error))
    error = OSError(2, "No such file", "/elsewhere/source")
    assert str(unwritten("out", error)).startswith("out cannot be written")

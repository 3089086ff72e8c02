"""``--bpe bert`` against fairseq's encoder on Hugging Face's library, and GPT-2's byte pairs there.

`scripts/test.sh parity` sets up what this needs; bpe_library.py runs with both libraries.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import bpe_files
import hf_models
import pytest
from fairseq.data import Dictionary
from many_scripts import lines
from verbs import run

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """gpt2/ with a checkpoint beside its files, and hf/, which to-hf wrote of it."""
    found = tmp_path_factory.mktemp("bpe")
    bpe_files.write("gpt2", found / "gpt2")
    words = Dictionary.load(str(found / "gpt2" / "dict.txt"))
    words.add_symbol("<mask>")
    hf_models.write_checkpoint(found / "gpt2" / "model.pt", words)
    run("to-hf", found / "gpt2" / "model.pt", found / "hf", "--no-check")
    return found


def call(*words):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_line_is_read_alike(folder, packages):
    call(sys.executable, Path(__file__).with_name("bpe_library.py"), packages, folder)
    told = json.loads((folder / "told.json").read_text())
    assert told == {"uncased": [], "cased": [], "auto": [], "files": []}


def test_the_command_checks_itself(folder, packages, tmp_path):
    text = tmp_path / "text"
    text.write_text("".join(f"{line}\n" for line in lines(200, special=False)), "utf-8")
    program = (
        f"import sys; sys.path.append({packages!r}); from fairseq_peft.cli import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    model = folder / "gpt2" / "model.pt"
    told = call(
        sys.executable, "-c", program, "to-hf", model, tmp_path / "hf", "--check-text", text
    )
    assert "have the same token ids" in told and "largest differences: features" in told

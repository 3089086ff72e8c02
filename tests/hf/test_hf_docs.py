"""docs/hugging-face.md: its commands and its Python run as they stand, but for the comparison with
Hugging Face's library, which tests/parity makes."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial

import adapter_folders
import hf_data
import pytest
from helpers import ROOT
from verbs import run

from fairseq_peft import cli
from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.hf import base_model, to_folder

PAGE = (ROOT / "docs" / "hugging-face.md").read_text(encoding="utf-8")
LINES = [
    line.strip()
    for block in re.findall(r"^```bash\n(.*?)^```$", PAGE, re.M | re.S)
    for line in block.splitlines()
]
EVERY = [line for line in LINES if line.startswith("fairseq-peft ")]
#: Of published models, which are not here.
PUBLISHED = [line for line in EVERY if re.search("nllb|mbart", line)]
VERBS = [line for line in EVERY if line not in PUBLISHED]
SCRIPTS = [line for line in LINES if "bash scripts/" in line]
PROGRAMS = [
    block
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
    if "fairseq_peft.hf" in block
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the page takes for granted."""
    folder = tmp_path_factory.mktemp("page")
    made, _ = hf_data.write(folder)
    for path in made.iterdir():
        shutil.copy(path, folder)
    base = base_model.read(folder / "model.pt", folder / "dict.txt")
    model = adapter_folders.perturbed(base.dictionary, base.weights, "lora")
    path = adapter_folders.write(folder / "runs" / "..." / "adapter", model, base.weights)
    # With a real sentencepiece model instead of the stand-in of other tests.
    found = adapter_folder.read(path)
    described = {n: v for n, v in found.description.items() if n not in ("json_sha256", "schema")}
    copies = {name: folder / name for name in (adapter_folder.DICTIONARY, adapter_folder.TOKENIZER)}
    adapter_folder.write(path, found.tensors, described, copies)
    return folder


def test_the_page_is_read():
    assert len(VERBS) == 5 and len(SCRIPTS) == 3 and len(PROGRAMS) == 1
    assert len(PUBLISHED) == 3


@pytest.mark.parametrize("line", PUBLISHED)
def test_the_commands_for_published_models_are_understood(line):
    cli.build_parser().parse_args(shlex.split(line, comments=True)[1:])


def test_the_commands_run(place, monkeypatch):
    monkeypatch.chdir(place)
    for line in VERBS:
        words = shlex.split(line)[1:]
        run(*words, *(["--no-check"] if words[0].endswith("-hf") else []))
        assert any((place / words[2]).iterdir()), line


@pytest.mark.parametrize("line", SCRIPTS)
def test_the_scripts_take_what_the_page_gives(line, place, data_folder):
    done = subprocess.run(
        ["bash", "-c", f"seed=1; {line} --dry-run"],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "BASE": str(place / "model.pt"),
            "DATA": str(data_folder),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "fairseq" in done.stdout, done.stderr[-2000:]


def test_the_program_runs(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(to_folder, "convert", partial(to_folder.convert, checked=False))
    exec(PROGRAMS[0], {})
    for name in ("roberta_small_hf", "merged_hf"):
        assert (place / name / "config.json").is_file()

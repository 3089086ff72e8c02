"""``fairseq-peft from-hf`` and ``to-hf`` of all that is laid out otherwise than RoBERTa: each way
checks features, logits and the ids of 1,000 lines of several scripts against the library.

`scripts/test.sh parity` sets up what this needs; hf_origins.py is the library's half.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import hf_models
import pytest
from helpers import TOLERANCE
from many_scripts import lines

from fairseq_peft.text import raw_text, spm_file

pytestmark = pytest.mark.parity

#: Folder -> what is compared besides features.
NAMES = {
    "bert": "LM logits",
    "bert-cased": "LM logits",
    "bert-classifier": "class logits",
    "bert-sentencepiece": None,
    "distilroberta": "LM logits",
    "bge-m3": None,
}


def call(*words):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def test_there_and_back(tmp_path):
    """In one process with both libraries: this Python's own packages first."""
    python = os.environ.get("FAIRSEQ_PEFT_PEFT_PYTHON")
    if not python:
        pytest.skip("FAIRSEQ_PEFT_PEFT_PYTHON is not set: scripts/test.sh parity sets it up")
    hf_models.write_tokenizer(tmp_path)
    spm = tmp_path / raw_text.MODEL_NAME
    found = spm_file.read(spm)
    pieces = [["<unk>", 0.0], ["<s>", 0.0], ["</s>", 0.0], *map(list, found.scores.items())]
    texts = lines(1000, special=False)
    rules = base64.b64encode(found.charsmap).decode()
    asked = {"pieces": pieces, "rules": rules, "texts": texts}
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    (tmp_path / "texts").write_text("".join(f"{text}\n" for text in texts), "utf-8")
    call(python, Path(__file__).with_name("hf_origins.py"), tmp_path)
    packages = call(python, "-c", "import site; print(site.getsitepackages()[0])").strip()
    commands = []
    for name in NAMES:
        if name in ("bert-sentencepiece", "bge-m3"):
            shutil.copy(spm, tmp_path / name)
        here, there, back = (str(tmp_path / f"{name}{end}") for end in ("-ours", "-hf", "-back"))
        more = ["--check-text", str(tmp_path / "texts")]
        commands.append(["from-hf", str(tmp_path / name), here, *more])
        commands.append(["to-hf", f"{here}/model.pt", there, *more])
        commands.append(["from-hf", there, back, *more])
    program = (
        f"import sys; sys.path.append({packages!r}); from fairseq_peft.cli import main; "
        f"sys.exit(max([main(words) for words in {commands!r}]))"
    )
    told = call(sys.executable, "-c", program)
    compared = re.findall(r"differences: features (\S+?)(?:, (\w+ logits) (\S+))?\n", told)
    assert [kind or None for _, kind, _ in compared] == [k for k in NAMES.values() for _ in "abc"]
    largest = max(float(number or 0) for found in compared for number in found[::2])
    assert largest < TOLERANCE["fp32"]
    # 200 random ones, too; a byte order mark alone is no text.
    number = 200 + sum(bool(text.removeprefix("\ufeff").strip()) for text in texts)
    found = re.findall(r"(\d+) texts have the same token ids", told)
    assert number >= 1190 and found == [str(number)] * 3 * len(NAMES)
    for name in NAMES:
        here, back = tmp_path / f"{name}-ours", tmp_path / f"{name}-back"
        for path in here.iterdir():
            same = path.suffix == ".pt" or path.read_bytes() == (back / path.name).read_bytes()
            assert same, f"{name}: {path.name}"

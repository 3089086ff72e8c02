"""``fairseq-peft from-hf`` of folders as the library's users publish them: CamemBERT, whose <s> and
</s> have other ids, XLM-R, and files of older versions.

`scripts/test.sh parity` sets up what this needs; hf_published.py is the library's half.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hf_models
import pytest
import torch
from helpers import TOLERANCE
from safetensors.torch import load_file
from verbs import run

from fairseq_peft.data.text_encoder import TextEncoder
from fairseq_peft.hf import base_model
from fairseq_peft.text import bpe, raw_text, spm_file

pytestmark = pytest.mark.parity

NAMES = ("camembert", "xlm-roberta", "classifier")
SYMBOLS = ["<s>", "<pad>", "</s>", "<unk>"]


def python():
    found = os.environ.get("FAIRSEQ_PEFT_PEFT_PYTHON")
    if not found:
        pytest.skip("FAIRSEQ_PEFT_PEFT_PYTHON is not set: scripts/test.sh parity sets it up")
    return found


def call(*words):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folders of the library's own models, each with the sentencepiece model that published ones
    have."""
    folder = tmp_path_factory.mktemp("published")
    hf_models.write_tokenizer(folder)
    spm = folder / raw_text.MODEL_NAME
    found = spm_file.read(spm)
    pieces = [["<unk>", 0.0], ["<s>", 0.0], ["</s>", 0.0], *map(list, found.scores.items())]
    rules = base64.b64encode(found.charsmap).decode()
    asked = {"pieces": pieces, "rules": rules, "texts": hf_models.TEXTS}
    (folder / "asked.json").write_text(json.dumps(asked))
    call(python(), Path(__file__).with_name("hf_published.py"), folder)
    for name in NAMES:
        shutil.copy(spm, folder / name)
    return folder


@pytest.fixture(scope="module", params=NAMES)
def sides(request, published, tmp_path_factory):
    """The name of a folder, what was converted of it, and its dictionary."""
    back = tmp_path_factory.mktemp("back") / request.param
    run("from-hf", published / request.param, back, "--no-check")
    return request.param, back, base_model.read(back / "model.pt", back / "dict.txt")


def test_the_same_numbers(sides, published):
    """Features and logits, with the tokens of one side by those of the same name on the other."""
    name, _, base = sides
    head = base_model.HEAD if name == "classifier" else None
    words = json.loads((published / "told.json").read_text())[name]["vocabulary"]
    rows = torch.tensor([base.dictionary.index(word) for word in words])
    assert sorted(rows.tolist()) == list(range(len(base.dictionary)))
    theirs = load_file(published / f"{name}.safetensors")
    tokens, there = rows[theirs["tokens"]], theirs["tokens"] != 1
    model = base_model.load(base, head)
    with torch.no_grad():
        features = model(tokens, features_only=True)[0]
        logits = model(tokens, features_only=head is not None, classification_head_name=head)[0]
    if head is None:
        logits, theirs["logits"] = logits[there][:, rows], theirs["logits"][there]
    assert logits.std() > 0.05  # they say something
    found = {
        "features": (features - theirs["features"])[there].abs().max().item(),
        "logits": (logits - theirs["logits"]).abs().max().item(),
    }
    print(name, *(f"{key} {value:.1e}" for key, value in found.items()))
    assert max(found.values()) <= TOLERANCE["fp32"]


def test_text_has_the_same_tokens(sides, published):
    name, back, base = sides
    told = json.loads((published / "told.json").read_text())[name]["texts"]
    encoder = TextEncoder(bpe.find(back), base.dictionary)
    texts = hf_models.TEXTS
    for text, ours, theirs in zip(
        texts, encoder.items([(text,) for text in texts], [10**9] * len(texts)), told
    ):
        assert [base.dictionary[i] for i in ours] == theirs, text
    assert base.dictionary.symbols[:4] == SYMBOLS and base.flags["max_positions"] == 512


def test_the_command_checks_itself(published, tmp_path):
    """With both libraries in one process: this Python's own packages first, then the library's."""
    code = "import site; print(site.getsitepackages()[0])"
    packages = call(python(), "-c", code).stdout.strip()
    commands = [["from-hf", str(published / name), str(tmp_path / name)] for name in NAMES]
    program = (
        f"import sys; sys.path.append({packages!r}); from fairseq_peft.cli import main; "
        f"sys.exit(max([main(words) for words in {commands!r}]))"
    )
    done = call(sys.executable, "-c", program)
    told = done.stdout
    assert "Loading weights" not in done.stderr  # the library's own lines
    assert told.count("largest differences: features") == 3
    assert told.count("200 texts have the same token ids") == 3
    state = torch.load(tmp_path / "camembert" / "model.pt", weights_only=False)["model"]
    output = state["encoder.lm_head.weight"]
    words = state["encoder.sentence_encoder.embed_tokens.weight"]
    assert output.data_ptr() == words.data_ptr()  # a tied matrix is written once

"""Folders of Hugging Face PEFT, both ways, with PEFT itself: what ``fairseq-peft export`` writes
gives the same logits there, what PEFT has trained gives the same here.

`scripts/test.sh parity` sets up what this needs; hf_folder.py is the library's half.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import adapter_folders
import pytest
import torch
from families import Roberta
from helpers import TINY, TOLERANCE
from hf_cases import CASES
from safetensors.torch import load_file, save_file

from fairseq_peft import cli
from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.checkpoints import finetuned
from fairseq_peft.hf import config as hf_config
from fairseq_peft.hf import weights

pytestmark = pytest.mark.parity

MADE = (
    *("lora", "lora-all-linears", "lora-embeddings", "lora-patterns", "lora-bias"),
    *("lora-bias-all", "rslora", "dora", "dora-all-linears", "pissa", "pissa-all-linears"),
    *("olora", "olora-all-linears", "ia3", "ia3-peft-default", "prompt", "prefix", "prefix-mlp"),
    *("all-linear", "one-layer", "expression", "gaussian"),
)
NAME = str.maketrans(" ", "-")
TINY_FLAGS = {"_name": "roberta_small", **TINY}
LABELS = ["bad", "good"]


def save_base(folder, dictionary, state):
    folder.mkdir(parents=True)
    dictionary.save(str(folder / "dict.txt"))
    (folder / adapter_folder.TOKENIZER).write_bytes(b"pieces")
    return adapter_folders.save_base(folder / "model.pt", state, cfg={"model": TINY_FLAGS})


def lively(state, seed=5):
    """``state`` with every tensor moved: of fresh weights, whose size is 0.02, only the biases of
    the head reach the logits."""
    generator = torch.Generator().manual_seed(seed)
    moved = {
        name: value + 0.3 * torch.randn(value.shape, generator=generator)
        for name, value in state.items()
    }
    moved["encoder.lm_head.weight"] = moved["encoder.sentence_encoder.embed_tokens.weight"]
    return moved


def run(*words):
    assert cli.main([str(word) for word in words]) == 0


def scores(folder, base, tokens):
    found, model = finetuned.from_folder(folder, base)
    head = found.description["head"]["name"]
    with torch.no_grad():
        return model(tokens, classification_head_name=head)[0]


@pytest.fixture(scope="module")
def exchange(dictionary, tmp_path_factory):
    """Exports every case, lets PEFT load them and train its own, and tells where all is."""
    python = os.environ.get("FAIRSEQ_PEFT_PEFT_PYTHON")
    if not python:
        pytest.skip("FAIRSEQ_PEFT_PEFT_PYTHON is not set: scripts/test.sh parity sets it up")
    folder = tmp_path_factory.mktemp("exchange")
    state = lively(adapter_folders.base_state(dictionary))
    base = save_base(folder / "base", dictionary, state)
    there = folder / "given" / "base"
    there.mkdir(parents=True)
    args = SimpleNamespace(**TINY, dropout=0.1, attention_dropout=0.1, pooler_dropout=0.0)
    described = hf_config.roberta(args, len(dictionary), LABELS)
    (there / "config.json").write_text(json.dumps(described))
    # The classifier comes with the adapter.
    converted = weights.convert_to_hf(state, head="none")
    save_file(converted, there / "model.safetensors", {"format": "pt"})
    for case, (peft, flags, _) in CASES.items():
        model = adapter_folders.perturbed(dictionary, state, peft, **flags)
        model.args._name = f"roberta_small_{peft}"
        ours = adapter_folders.write(folder / "ours" / case.translate(NAME), model, state, base)
        run("export", ours, folder / "given" / case.translate(NAME), "--base", base)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    done = subprocess.run(
        [python, str(Path(__file__).with_name("hf_folder.py")), str(folder)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = weights.convert_from_hf(
        {
            name: tensor
            for name, tensor in load_file(folder / "made" / "base" / "model.safetensors").items()
            if not name.startswith("classifier.")
        }
    )
    for name in state:  # a classifier of Hugging Face has no LM head, and ours is not read
        theirs.setdefault(name, state[name])
    theirs["encoder.lm_head.weight"] = theirs["encoder.sentence_encoder.embed_tokens.weight"]
    save_base(folder / "theirs", dictionary, theirs)
    return folder


def logits_of(folder):
    return load_file(folder / "logits.safetensors")["logits"]


@pytest.mark.parametrize("case", CASES)
def test_what_is_exported_computes_the_same_there(exchange, case, batch):
    name = case.translate(NAME)
    ours = scores(exchange / "ours" / name, exchange / "base" / "model.pt", batch)
    theirs = logits_of(exchange / "found" / name)
    difference = (ours - theirs).abs().max().item()
    print(f"{case}: {difference:.1e}")
    assert difference <= TOLERANCE["fp32"]
    # Without the adapter it is another model, so the adapter is there.
    assert (theirs - without(exchange, name, batch)).abs().max() > 0.05


def without(exchange, name, tokens):
    """The class scores of an adapter's head on the bare base."""
    found, model = finetuned.from_folder(exchange / "ours" / name, exchange / "base" / "model.pt")
    plain = Roberta(model.encoder.dictionary).build("full")
    state = dict(torch.load(exchange / "base" / "model.pt", weights_only=True)["model"])
    state.update({n: t for n, t in found.tensors.items() if n.startswith("classification_heads.")})
    plain.load_state_dict(state)
    with torch.no_grad():
        return plain(tokens, classification_head_name=adapter_folders.HEAD)[0]


@pytest.mark.parametrize("case", MADE)
def test_what_peft_has_trained_computes_the_same_here(exchange, case, batch, tmp_path):
    base = exchange / "theirs" / "model.pt"
    run("import", exchange / "made" / case, tmp_path / "ours", "--base", base)
    difference = (
        (scores(tmp_path / "ours", base, batch) - logits_of(exchange / "made" / case)).abs().max()
    )
    print(f"{case}: {difference:.1e}")
    assert difference <= TOLERANCE["fp32"]


@pytest.mark.parametrize("case", MADE)
def test_what_peft_has_trained_goes_back_bit_for_bit(exchange, case, tmp_path):
    base = exchange / "theirs" / "model.pt"
    run("import", exchange / "made" / case, tmp_path / "ours", "--base", base)
    run("export", tmp_path / "ours", tmp_path / "back", "--base", base)
    before = load_file(exchange / "made" / case / "adapter_model.safetensors")
    after = load_file(tmp_path / "back" / "adapter_model.safetensors")
    if case == "lora-bias-all":  # PEFT saves the classifier's biases three times
        before = {n: t for n, t in before.items() if "_module" not in n and "modules_" not in n}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_case_that_peft_has_trained_is_compared(exchange):
    assert {path.name for path in (exchange / "made").iterdir()} == {"base", *MADE}

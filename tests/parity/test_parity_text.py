"""BART, mBART and M2M-100 with LoRA, DoRA and IA3, against Hugging Face PEFT: the same logits,
gradients and training, and folders both ways. One base each, from one random seed.

`scripts/test.sh parity` sets up what this needs; text_folder.py is the library's half.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import hf_models
import pytest
import torch
from comparison import Differences, learn_and_compare, part, random_texts
from hf_cases import TEXT_CASES
from safetensors.torch import load_file, save_file

from fairseq_peft import cli
from fairseq_peft.checkpoints import finetuned
from fairseq_peft.hf import peft_names

pytestmark = pytest.mark.parity

KINDS = tuple(hf_models.ENCODER_DECODERS)
MADE = (
    *("lora", "lora-all-linear", "lora-expression", "lora-one-layer", "lora-patterns"),
    *("lora-bias", "dora", "pissa", "ia3", "prompt"),
)
NAME = str.maketrans(" ", "-")
every_kind = pytest.mark.parametrize("kind", KINDS)


def run(*words):
    assert cli.main([str(word) for word in words]) == 0


def random_batch():
    """What text_folder.py reads."""
    return dict(zip(("source", "target", "answer"), random_texts()))


@pytest.fixture(scope="module")
def exchange(tmp_path_factory):
    """Exports every case, lets PEFT load and train them and some of its own; where all is."""
    python = os.environ.get("FAIRSEQ_PEFT_PEFT_PYTHON")
    if not python:
        pytest.skip("FAIRSEQ_PEFT_PEFT_PYTHON is not set: scripts/test.sh parity sets it up")
    folder = tmp_path_factory.mktemp("exchange")
    save_file(random_batch(), folder / "batch.safetensors")
    for kind in KINDS:
        place = folder / "bases" / kind
        hf_models.write_encoder_decoder(place, kind)
        run("to-hf", place / "model.pt", folder / "base" / kind, "--no-check")
        for case, (peft, flags, _) in TEXT_CASES.items():
            ours = folder / "ours" / kind / case.translate(NAME)
            ours.parent.mkdir(parents=True, exist_ok=True)
            hf_models.write_encoder_decoder_adapter(ours, place, kind, peft, **flags)
            theirs = folder / "given" / kind / case.translate(NAME)
            run("export", ours, theirs, "--base", place / "model.pt")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    done = subprocess.run(
        [python, str(Path(__file__).with_name("text_folder.py")), str(folder)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def loaded(folder, exchange, kind):
    """The model of an adapter folder."""
    base = exchange / "bases" / kind / "model.pt"
    return finetuned.from_folder(folder, base, of_any_task=True)[1]


def logits(model):
    batch = random_batch()
    return model(batch["source"], batch["source"].ne(1).sum(1), batch["target"])[0]


def compare(model, record) -> Differences:
    """What a model computes and learns, against a record of text_folder.py."""
    names = peft_names.table(model, None)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(part(record, "grad")) == {names[name].name for name in trained}, "what trains"

    def theirs(record, what, name):
        return record[f"{what}.{names[name].name}"].reshape(trained[name].shape)

    answer, wanted = random_batch()["answer"].flatten(), record["logits"].flatten(0, 1)
    scores = lambda: logits(model).flatten(0, 1)  # noqa: E731
    return learn_and_compare(trained, scores, answer, record, wanted, theirs)


@every_kind
@pytest.mark.parametrize("case", TEXT_CASES)
def test_what_is_exported_computes_and_learns_the_same_there(kind, case, exchange):
    name = case.translate(NAME)
    model = loaded(exchange / "ours" / kind / name, exchange, kind)
    record = load_file(exchange / "found" / kind / f"{name}.safetensors")
    differences = compare(model, record)
    print(f"{kind}, {case}: {differences}")
    differences.check()


@every_kind
@pytest.mark.parametrize("case", MADE)
def test_what_peft_has_trained_comes_and_goes(kind, case, exchange, tmp_path):
    """The same logits here, and the same tensors when it goes back; of PEFT's two prompts the one
    that it reads."""
    base, made = exchange / "bases" / kind / "model.pt", exchange / "made" / kind
    run("import", made / case, tmp_path / "ours", "--base", base)
    differences = Differences()
    theirs = load_file(made / f"{case}.safetensors")["logits"]
    differences.see("logits", case, logits(loaded(tmp_path / "ours", exchange, kind)), theirs)
    print(f"{kind}, {case}: {differences}")
    differences.check()
    run("export", tmp_path / "ours", tmp_path / "back", "--base", base)
    before, after = (
        load_file(place / "adapter_model.safetensors") for place in (made / case, tmp_path / "back")
    )
    assert before.keys() == after.keys()
    if case == "prompt":
        assert len(before[peft_names.PROMPT]) == 6
        before[peft_names.PROMPT] = before[peft_names.PROMPT][:3]
    assert all(torch.equal(before[name], after[name]) for name in before)


@every_kind
def test_the_adapter_is_in_what_is_compared(kind, exchange):
    """Without it, or with another, the comparison fails."""
    model = loaded(exchange / "ours" / kind / "lora", exchange, kind)
    record = load_file(exchange / "found" / kind / "lora.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("encoder_attn.q_proj.lora_B"):
                parameter.mul_(1.1)
    differences = compare(model, record)
    for found in ("logits", "gradients", "after"):
        assert differences.found[found][0] > 1e-3, found
    with pytest.raises(AssertionError, match="logits"):
        differences.check()


def test_every_case_of_encoder_decoders_is_compared(exchange):
    for kind in KINDS:
        assert {path.stem for path in (exchange / "made" / kind).iterdir()} == set(MADE)

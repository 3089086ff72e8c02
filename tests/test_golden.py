"""What earlier versions wrote and computed is read and computed by this one: tests/golden.

tests/support/golden.py says what is there and writes it.
"""

from __future__ import annotations

import json
import shutil

import golden
import pytest
import torch
import verbs
from families import FAMILIES
from settings import collect, identifier

import fairseq_peft
from fairseq_peft.checkpoints import finetuned, slim

NUMBERS = json.loads(golden.LOGITS.read_text())
TOLD = json.loads(golden.TOLD.read_text())
SETTINGS = {identifier(*setting): setting for setting in collect()}
CASES = [(name, key) for name, numbers in NUMBERS.items() for key in numbers]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return golden.save_base(tmp_path_factory.mktemp("golden") / "base.pt")


@pytest.mark.parametrize("name", FAMILIES)
def test_there_is_a_golden_number_for_all(name):
    wanted = {key for key, setting in SETTINGS.items() if FAMILIES[name].takes(*setting)}
    missing = wanted ^ NUMBERS.get(name, {}).keys()
    assert not missing, "python tests/support/golden.py writes what is missing"


@pytest.mark.parametrize("name, key", CASES, ids=map("-".join, CASES))
def test_logits_of_fixed_weights_stay(name, key):
    found = golden.number_of(FAMILIES[name](golden.words()), *SETTINGS[key])
    assert found == pytest.approx(NUMBERS[name][key], abs=TOLERANCE)


def test_the_numbers_tell_settings_apart():
    """But for knobs that only training or the start knows: most numbers are their own."""
    for numbers in NUMBERS.values():
        assert len({round(number, 3) for number in numbers.values()}) > len(numbers) / 2


def test_an_adapter_folder_loads_and_predicts_what_it_did(base):
    verbs.run("verify", golden.ADAPTER, "--base", base)
    rows = fairseq_peft.Classifier.load(base, golden.ADAPTER).predict(golden.TEXTS)
    assert rows.labels == TOLD["labels"] and len(set(rows.labels)) == 2
    expected = torch.tensor(TOLD["probabilities"])
    assert (torch.from_numpy(rows.probabilities) - expected).abs().max() < TOLERANCE


def test_a_slim_checkpoint_finds_its_base_and_computes_what_it_did(base):
    path = shutil.copy(golden.CHECKPOINT, base.parent)
    state = slim.read(path)
    assert slim.ENTRY in torch.load(path, weights_only=True)
    model = finetuned.rebuild(path, state)
    with torch.no_grad():
        (head,) = model.classification_heads
        scores = model(golden.tokens(golden.words()), classification_head_name=head)[0]
    assert golden.number(scores) == pytest.approx(TOLD["checkpoint"], abs=TOLERANCE)


def test_what_is_golden_is_small():
    sizes = [path.stat().st_size for path in golden.FOLDER.rglob("*") if path.is_file()]
    assert sum(sizes) < 60_000

"""benchmarks/translate_speed.py: what it compares, at tiny sizes: the same words from all."""

from __future__ import annotations

import argparse

import pytest
import torch
import translate_speed as program
from fairseq.data import Dictionary
from fairseq.sequence_generator import SequenceGenerator
from helpers import TOLERANCE

ARGS = argparse.Namespace(layers=1, embed_dim=16, ffn_dim=24, heads=2, batch_size=2, length=4)


@pytest.fixture(scope="module")
def words():
    found = Dictionary()
    for number in range(20):
        found.add_symbol(f"w{number}")
    return found


def test_all_start_from_the_same_weights_and_merged_is_what_lora_computes(words):
    batch = program.rows(ARGS, words)["net_input"]
    with torch.no_grad():
        stock, full, lora, merged = (
            program.build(name, ARGS, words).eval()(**batch)[0]
            for name in ("stock-full", "ours-full", "ours-lora", "ours-merged")
        )
    torch.testing.assert_close(stock, full)
    torch.testing.assert_close(lora, merged)
    assert (lora - full).abs().max() > 1e-3


def test_a_search_writes_as_many_words_as_it_says_and_a_step_trains(words):
    batch, search = program.rows(ARGS, words), {"beam_size": program.BEAM, "max_len_b": 4}
    for software, trains in (("stock-full", ""), ("ours-full", ""), ("ours-lora", "lora")):
        model = program.build(software, ARGS, words)
        program.searcher(model, batch, words, 4)()
        generator = SequenceGenerator([model], words, min_len=4, **search)
        with torch.no_grad():
            found = generator.generate([model], batch)
        assert {len(one["tokens"]) for row in found for one in row} == {5}
        before = {name: tensor.clone() for name, tensor in model.named_parameters()}
        program.trainer(model, batch, words)()
        now = dict(model.named_parameters())
        moved = {name for name in before if (now[name] != before[name]).any()}
        assert moved == {name for name in before if trains in name}


def test_in_bf16_the_model_is_the_same_but_for_its_rounding(words):
    batch = program.rows(ARGS, words)["net_input"]
    with torch.no_grad():
        fp32, bf16 = (
            program.build("ours-lora", ARGS, words, precision).eval()(**batch)[0].float()
            for precision in ("fp32", "bf16")
        )
    assert 0 < (fp32 - bf16).abs().max() < TOLERANCE["bf16"]

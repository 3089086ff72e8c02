"""Flags of generation that fairseq passes over: with the plugin they do what they say."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

from fairseq import search, sequence_scorer  # noqa: E402
from fairseq.data import Dictionary  # noqa: E402
from fairseq.ngram_repeat_block import NGramRepeatBlock  # noqa: E402
from fairseq.tasks import FairseqTask  # noqa: E402
from fairseq.tasks.translation_from_pretrained_bart import (  # noqa: E402
    TranslationFromPretrainedBARTTask as PretrainedBart,
)

import fairseq_peft.plugin  # noqa: E402, F401

START, PAD, WORDS = 0, 1, 9


@pytest.mark.parametrize("size", (1, 2, 3, 4))
def test_no_ngram_is_written_twice(size):
    """Against a search by hand, in the buffer of a generator: padded, started by the first."""
    random = torch.Generator().manual_seed(size)
    found = 0
    for step in range(12):
        tokens = torch.full((6, 20), PAD)
        tokens[:, 0] = START
        tokens[:, 1 : step + 1] = torch.randint(2, 4, (6, step), generator=random)
        lprobs = torch.zeros(6, WORDS)
        result = NGramRepeatBlock(size, use_extension=False)(tokens, lprobs, 3, 2, step)
        for row in range(6):
            written = tokens[row, 1 : step + 1].tolist()
            before = [tuple(written[i : i + size]) for i in range(len(written) - size + 1)]
            banned = {
                word
                for word in range(WORDS)
                if (*written[len(written) - size + 1 :], word)[-size:] in before
            }
            assert banned == set((result[row] == -math.inf).nonzero().flatten().tolist())
            found += len(banned)
    assert found > 20


class Model(torch.nn.Module):
    """What a generator asks of a model that it does not call."""

    encoder = SimpleNamespace()

    def max_decoder_positions(self):
        return 100


@pytest.fixture
def task():
    words = Dictionary()
    for word in ("a", "b", "[en_XX]", "[ro_RO]"):
        words.add_symbol(word)
    cfg = SimpleNamespace(target_lang="ro_RO", source_lang="en_XX")
    found = PretrainedBart.__new__(PretrainedBart)
    FairseqTask.__init__(found, cfg)
    found.src_dict = found.tgt_dict = words
    return found


@pytest.fixture
def build(task):
    return lambda **flags: task.build_generator([Model()], SimpleNamespace(**flags))


@pytest.mark.parametrize(
    "flags, kind, value",
    [
        ({}, search.BeamSearch, {}),
        ({"sampling": True, "sampling_topk": 3}, search.Sampling, {"sampling_topk": 3}),
        ({"sampling": True, "sampling_topp": 0.5}, search.Sampling, {"sampling_topp": 0.5}),
        ({"diverse_beam_groups": 2}, search.DiverseBeamSearch, {"num_groups": 2}),
    ],
)
def test_a_fine_tuned_mbart_searches_as_other_models_do(task, build, flags, kind, value):
    generator = build(**flags, no_repeat_ngram_size=2, lenpen=0.5, beam=3)
    assert type(generator.search) is kind
    assert {name: getattr(generator.search, name) for name in value} == value
    assert generator.eos == task.tgt_dict.index("[ro_RO]") != task.tgt_dict.eos()
    assert generator.beam_size == 3
    assert generator.len_penalty == 0.5
    assert generator.repeat_ngram_blocker.no_repeat_ngram_size == 2


def test_a_fine_tuned_mbart_scores_references_up_to_its_language(task, build):
    scorer = build(score_reference=True)
    assert type(scorer) is sequence_scorer.SequenceScorer
    assert scorer.eos == task.tgt_dict.index("[ro_RO]")

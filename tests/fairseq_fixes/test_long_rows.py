"""Rows that are too long are told of in one sentence, whatever the task."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary, LanguagePairDataset, MonolingualDataset
from fairseq.tasks import FairseqTask
from families import BART, FAMILIES

import fairseq_peft.plugin  # noqa: F401
from fairseq_peft.errors import InputError

FAMILIES = {**FAMILIES, "bart": BART}


def lengths(*numbers):
    return [torch.full((n,), 5) for n in numbers], np.array(numbers)


@pytest.fixture
def pairs():
    """Sources of 4, 6 and 8 tokens, targets of 3, 9 and 5."""
    words = Dictionary()
    return LanguagePairDataset(*lengths(4, 6, 8), words, *lengths(3, 9, 5), words)


@pytest.fixture
def lines():
    """Texts of 4, 6 and 8 tokens."""
    words = Dictionary()
    return MonolingualDataset(*lengths(4, 6, 8), words, words, False, False)


def batches(dataset, max_positions, skip, split="valid"):
    task = FairseqTask(None)
    task.datasets[split] = dataset
    found = task.get_batch_iterator(
        dataset,
        max_sentences=8,
        max_positions=max_positions,
        ignore_invalid_inputs=skip,
        required_batch_size_multiple=8,
    )
    return sorted(int(row) for batch in found.frozen_batches for row in batch)


def test_short_ones_are_kept(pairs, lines):
    assert batches(pairs, (7, 9), True) == [0, 1] and batches(lines, 6, True) == [0, 1]
    assert batches(pairs, (8, 9), False) == batches(lines, 8, False) == [0, 1, 2]


@pytest.mark.parametrize("skip", [True, False])
def test_no_row_is_short_enough(pairs, lines, skip):
    said = r"No row of valid is short enough: the shortest of 3 has 4 \(source\) and 3 \(target\)"
    for room in ((3, 9), (8, 2), (0, 9), (-976, 9)):
        with pytest.raises(InputError, match=said):
            batches(pairs, room, skip)
    with pytest.raises(InputError, match="No row of test .* has 4 tokens, and .* room for 3"):
        batches(lines, 3, skip, "test")


def test_one_row_is_too_long(pairs, lines):
    said = r"valid has rows that are too long \(1\): row 2 has 6 \(source\) and 9 \(target\) tokens"
    with pytest.raises(InputError, match=said):
        batches(pairs, (8, 8), False)
    with pytest.raises(InputError, match=r"too long \(2\): row 2 has 6 .*--skip-inv"):
        batches(lines, 5, False)


def test_no_rows_at_all(pairs):
    task = FairseqTask(None)
    task.datasets["train"] = pairs
    with pytest.raises(InputError, match="train has no rows"):
        task.filter_indices_by_size(np.arange(0), pairs, (9, 9))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("peft", "flags"),
    [
        ("prompt", {"prompt_num_tokens": 2000}),
        ("prefix", {"prefix_num_tokens": 2000, "prefix_positions": "reserved"}),
    ],
)
def test_a_method_that_leaves_no_position(dictionary, name, peft, flags):
    family = FAMILIES[name](dictionary)
    with pytest.raises(InputError, match="2000 prompt or prefix tokens leave none of .* positions"):
        family.build(peft, **flags)

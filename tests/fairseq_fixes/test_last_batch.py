"""No row is left out where rows are counted."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary, LanguagePairDataset, data_utils
from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer

import fairseq_peft.plugin  # noqa: F401

NUM_ROWS = 12


@pytest.fixture
def dataset():
    rows = [torch.full((2 + i % 5,), 5) for i in range(NUM_ROWS)]
    sizes = np.array([len(row) for row in rows])
    words = Dictionary()
    return LanguagePairDataset(rows, sizes, words, rows, sizes, words)


def found(iterator):
    return sorted(row for batch in iterator.frozen_batches for row in batch)


@pytest.mark.parametrize("limit", [{"max_sentences": 8}, {"max_tokens": 60}])
def test_every_row_is_validated_and_generated_from(dataset, limit):
    batches = FairseqTask(None).get_batch_iterator(dataset, **limit, required_batch_size_multiple=8)
    assert found(batches) == list(range(NUM_ROWS))
    stock = data_utils.batch_by_size.__wrapped__
    assert sum(map(len, stock(range(NUM_ROWS), dataset.num_tokens, None, None, 8, 8))) == 8


def test_what_is_trained_on_is_fairseqs(dataset):
    task = FairseqTask(None)
    batches = []

    def get_batch_iterator(**unused):
        batches.append(dataset.batch_by_size(np.arange(NUM_ROWS), None, 8, 8))
        return types.SimpleNamespace(first_batch=None)

    task.get_batch_iterator = get_batch_iterator
    trainer = stub(task, dataset)
    Trainer.get_train_iterator(trainer, 1, load_dataset=False)
    assert sum(map(len, batches[0])) == 8
    assert sum(map(len, dataset.batch_by_size(np.arange(NUM_ROWS), None, 8, 8))) == NUM_ROWS


def stub(task, dataset):
    """As much of a trainer as it asks itself for."""
    task.datasets["train"] = dataset
    anything = types.SimpleNamespace
    flags = dict.fromkeys(
        ("max_tokens", "batch_size", "update_ordered_indices_seed", "num_workers"), None
    )
    flags.update(dict.fromkeys(("data_buffer_size", "grouped_shuffling"), None))
    flags.update(update_epoch_batch_itr=None, required_batch_size_multiple=8)
    return anything(
        task=task,
        model=anything(max_positions=lambda: None),
        reset_dummy_batch=lambda batch: None,
        data_parallel_world_size=1,
        data_parallel_rank=0,
        cfg=anything(
            dataset=anything(train_subset="train", **flags),
            common=anything(seed=1),
            optimization=anything(skip_remainder_batch=False),
        ),
    )

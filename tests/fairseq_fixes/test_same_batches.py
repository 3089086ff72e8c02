"""A run of fairseq's own tasks that goes on has the batches of one that was not stopped."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

from fairseq.data import Dictionary, LanguagePairDataset  # noqa: E402
from fairseq.tasks import FairseqTask  # noqa: E402

import fairseq_peft.plugin  # noqa: E402, F401
from fairseq_peft.fairseq_fixes import last_batch  # noqa: E402


def made():
    """A task, and sentences of few lengths."""
    words, lengths = Dictionary(), np.array([3, 4, 5, 6] * 10)
    rows = [torch.full((length,), 5 + i % 3) for i, length in enumerate(lengths)]
    dataset = LanguagePairDataset(rows, lengths, words, rows, lengths, words, shuffle=True)
    return FairseqTask(SimpleNamespace()), dataset


def iterator(epoch, **more):
    """Of a process that begins with this epoch."""
    task, dataset = made()
    return task.get_batch_iterator(dataset, max_sentences=4, seed=7, epoch=epoch, **more)


def rows_of(found):
    """The rows of each batch, in the order of the epoch."""
    return [batch["id"].tolist() for batch in found.next_epoch_itr()]


def test_a_run_that_goes_on_has_the_batches_of_one_that_was_not_stopped():
    whole, resumed = iterator(1), iterator(3)
    epochs = [rows_of(whole) for _ in range(3)]
    assert resumed.epoch == 3
    assert rows_of(resumed) == epochs[2]
    assert len({str(epoch) for epoch in epochs}) == 3
    assert whole.epoch == resumed.epoch == 3


def test_batches_that_are_made_in_each_epoch_differ_as_before():
    first, third = (iterator(epoch, update_epoch_batch_itr=True) for epoch in (1, 3))
    assert sorted(map(sorted, rows_of(first))) != sorted(map(sorted, rows_of(third)))


def test_a_validation_of_the_training_rows_leaves_training_its_epochs():
    task, dataset = made()
    with last_batch.training():
        trained = task.get_batch_iterator(dataset, max_sentences=4)
    rows_of(trained)
    validated = task.get_batch_iterator(dataset, max_sentences=40)
    assert sum(map(len, rows_of(validated))) == 40
    assert (trained.epoch, trained.next_epoch_idx) == (1, 2)
    with last_batch.training():
        assert task.get_batch_iterator(dataset, max_sentences=4) is trained
    other = LanguagePairDataset(dataset.src, dataset.src_sizes, dataset.src_dict)
    first = task.get_batch_iterator(other, max_sentences=4)
    assert task.get_batch_iterator(other, max_sentences=4) is first  # is made once, as before

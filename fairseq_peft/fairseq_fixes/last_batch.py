"""``--required-batch-size-multiple``, 8 where it is not given, when something is counted.

This fairseq leaves the last batch out where its rows are no multiple: fairseq-generate lacks up to
7 translations, and fairseq-validate, validation and fairseq-eval-lm as many rows, without a word.
What is trained on stays fairseq's.
"""

from __future__ import annotations

import contextlib
import functools

import numpy as np
from fairseq.data import data_utils
from fairseq.trainer import Trainer

_trains = False


def trains() -> bool:
    """Whether the batches that are being made are those that a run trains on."""
    return _trains


@contextlib.contextmanager
def training():
    """The batches that are made in this block are trained on."""
    global _trains
    _trains = True
    try:
        yield
    finally:
        _trains = False


def install() -> None:
    """Let every row be in a batch, but for training; once."""
    if hasattr(data_utils.batch_by_size, "__wrapped__"):
        return
    data_utils.batch_by_size = _batch_by_size(data_utils.batch_by_size)
    Trainer.get_train_iterator = _get_train_iterator(Trainer.get_train_iterator)


def _batch_by_size(original):
    @functools.wraps(original)
    def batch_by_size(indices, *args, **kwargs):
        if not isinstance(indices, np.ndarray):
            indices = np.fromiter(indices, dtype=np.int64, count=-1)
        batches = original(indices, *args, **kwargs)
        num_rows = sum(map(len, batches))
        # Batches are stretches of the indices: what is left of them was the last one.
        if _trains or kwargs.get("fixed_shapes") or num_rows == len(indices):
            return batches
        return [*batches, indices[num_rows:]]

    return batch_by_size


def _get_train_iterator(original):
    @functools.wraps(original)
    def get_train_iterator(trainer, *args, **kwargs):
        with training():
            return original(trainer, *args, **kwargs)

    return get_train_iterator

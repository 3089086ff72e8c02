"""Batches by length: every row once, within the limits, another composition every epoch."""

import math

import numpy as np
import pytest

pytest.importorskip("fairseq")
from fairseq_peft.data.buckets import POOL, bucket_batches  # noqa: E402

SIZES = np.random.default_rng(0).integers(3, 257, 1000)


def drawn(seed, epoch, sizes=SIZES, max_sentences=8, max_tokens=None, **more):
    rng = np.random.default_rng([seed, epoch])
    return bucket_batches(sizes, max_sentences, max_tokens, rng, **more)


def padding(batches, sizes=SIZES):
    """Share of a padded epoch that is padding."""
    padded = sum(len(batch) * sizes[batch].max() for batch in batches)
    return 1 - sizes.sum() / padded


@pytest.mark.parametrize("evaluation", [False, True])
@pytest.mark.parametrize("num_rows", [1, 7, 8, 9, 8 * POOL, 8 * POOL + 1, 1000])
@pytest.mark.parametrize("limits", [(8, None), (None, 600), (8, 600), (1, None)])
def test_every_row_once_within_the_limits(num_rows, limits, evaluation):
    sizes = SIZES[:num_rows]
    rng = None if evaluation else np.random.default_rng(1)
    batches = bucket_batches(sizes, *limits, rng)
    assert sorted(sum(batches, [])) == list(range(num_rows))
    max_sentences, max_tokens = limits
    for batch in batches:
        assert batch
        assert max_sentences is None or len(batch) <= max_sentences
        assert max_tokens is None or len(batch) * sizes[batch].max() <= max_tokens
    if max_tokens is None:
        assert len(batches) == math.ceil(num_rows / max_sentences)


def test_row_longer_than_the_limit_is_alone():
    batches = bucket_batches([5, 50, 5, 5], max_tokens=10)
    assert sorted(map(len, batches)) == [1, 1, 2] and [1] in batches


def test_drawn_by_seed_and_epoch_alone():
    assert drawn(1, 1) == drawn(1, 1)
    for seed, epoch in ((1, 2), (2, 1)):
        other = drawn(seed, epoch)
        assert other != drawn(1, 1)
        mine, others = (set(map(frozenset, batches)) for batches in (drawn(1, 1), other))
        assert len(mine & others) < 0.05 * len(mine), "the composition is the same"
    # Seeds and epochs do not run into each other.
    assert drawn(1, 2) != drawn(2, 1)


def test_order_of_batches_is_not_by_length():
    lengths = [SIZES[batch].max() for batch in drawn(1, 1)]
    assert lengths != sorted(lengths) and lengths != sorted(lengths, reverse=True)
    assert abs(np.corrcoef(np.arange(len(lengths)), lengths)[0, 1]) < 0.3


def test_little_padding():
    at_random = np.random.default_rng(0).permutation(1000).reshape(-1, 8)
    assert padding(at_random) > 0.35
    assert padding(drawn(1, 1)) < 0.06
    assert padding(bucket_batches(SIZES, 8)) < 0.01


def test_sorted_by_another_length():
    """A prompt that shortens long rows does not change who is with whom."""
    short = np.minimum(SIZES, 200)
    assert drawn(1, 1) == drawn(1, 1, short, sort_by=SIZES) != drawn(1, 1, short)
    for batch in drawn(1, 1, short, None, 600, sort_by=SIZES):
        assert len(batch) * short[batch].max() <= 600

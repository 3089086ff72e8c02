"""Batches of similar length: little padding, and another composition and order every epoch; and
batches of any lengths, for rows that need no padding; and how wide a padded batch is."""

from __future__ import annotations

import numpy as np

#: Batches that are sorted together: more means less padding and less variety.
POOL = 16
#: Batches are as wide as a multiple of this: odd widths take torch's kernels longer than padding
#: does (3 per cent of a step of LoRA in bf16 on a CPU), and torch keeps code and buffers for every
#: shape of product that it has met.
WIDTH_STEP = 8


def width(longest: int, room: int, narrow: int = 0) -> int:
    """How many tokens wide a batch is whose longest row has ``longest``, at most ``room`` where a
    row is not longer; up to ``narrow`` it is no wider than that row."""
    if longest <= narrow:
        return longest
    return max(longest, min(-(-longest // WIDTH_STEP) * WIDTH_STEP, room))


def bucket_batches(
    sizes, max_sentences=None, max_tokens=None, rng=None, sort_by=None
) -> list[list[int]]:
    """Batches of indices that hold every index exactly once.

    Args:
        sizes: (N,) tokens of each item.
        max_sentences: largest batch, in items; None for no limit.
        max_tokens: largest batch, in tokens with padding; None for no limit. An item longer than
            that is alone.
        rng: numpy generator that draws the pools of items and the order of batches; None sorts all
            items by length (evaluation).
        sort_by: (N,) what to sort by, if not by ``sizes``; it must put them in order, too.
    """
    sizes = np.asarray(sizes)
    sort_by = sizes if sort_by is None else np.asarray(sort_by)
    if rng is None:
        pools = [np.arange(len(sizes))]
    else:
        order = rng.permutation(len(sizes))
        typical = max_sentences or max(1, int(max_tokens / max(sizes.mean(), 1)))
        pools = np.split(order, range(POOL * typical, len(order), POOL * typical))
    batches = []
    for pool in pools:
        batches += _cut(
            pool[np.argsort(-sort_by[pool], kind="stable")], sizes, max_sentences, max_tokens
        )
    if rng is not None:
        batches = [batches[i] for i in rng.permutation(len(batches))]
    assert sum(len(batch) for batch in batches) == len(sizes), "a batch was lost"
    return batches


def packed_batches(sizes, max_sentences, max_tokens, rng) -> list[list[int]]:
    """Batches of indices, in an order that ``rng`` draws, that hold every index exactly once.

    Args: as ``bucket_batches``; ``max_tokens`` counts those of the items, for none is padded.
    """
    batches, batch, tokens = [], [], 0
    for index in rng.permutation(len(sizes)).tolist():
        full = len(batch) == max_sentences
        if full or (batch and max_tokens and tokens + sizes[index] > max_tokens):
            batches.append(batch)
            batch, tokens = [], 0
        batch.append(index)
        tokens += sizes[index]
    return batches + [batch] if batch else batches


def _cut(indices, sizes, max_sentences, max_tokens):
    """Consecutive runs of ``indices`` (longest first) within the limits."""
    batches, batch = [], []
    for index in indices.tolist():
        full = max_sentences and len(batch) == max_sentences
        full = full or (batch and max_tokens and (len(batch) + 1) * sizes[batch[0]] > max_tokens)
        if full:
            batches.append(batch)
            batch = []
        batch.append(index)
    return batches + [batch] if batch else batches

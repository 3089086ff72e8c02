"""Batches that are drawn anew each epoch, as fairseq iterates over them."""

from __future__ import annotations

from fairseq.data import iterators


def drawn_anew(
    dataset,
    sampler,
    seed=1,
    num_shards=1,
    shard_id=0,
    num_workers=0,
    epoch=1,
    data_buffer_size=0,
    skip_remainder_batch=False,
    **unused,
):
    """An iterator over epochs; a run that goes on in the middle of one has the rest of its batches.

    Args:
        sampler: (data set, epoch) -> the batches of that epoch, as lists of indices.
        seed: of the order that fairseq brings them in.

    The others are those of ``FairseqTask.get_batch_iterator``.
    """
    return iterators.EpochBatchIterator(
        dataset=dataset,
        collate_fn=dataset.collater,
        batch_sampler=sampler,
        seed=seed,
        num_shards=num_shards,
        shard_id=shard_id,
        num_workers=num_workers,
        epoch=epoch,
        buffer_size=max(data_buffer_size, int(num_workers > 0)),
        skip_remainder_batch=skip_remainder_batch,
        # Each epoch has an iterator of its own. Workers that outlive theirs wait until it is
        # collected as garbage, which then waits 5 seconds for them: their queues are garbage, too.
        # The thread that fills a buffer lets go of them behind the last batch.
        persistent_workers=False,
    )

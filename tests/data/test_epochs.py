"""Batches that are drawn anew each epoch, with workers: none outlives its epoch."""

from __future__ import annotations

import multiprocessing
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

from fairseq.data import FairseqDataset  # noqa: E402

from fairseq_peft.data.epochs import drawn_anew  # noqa: E402


class Numbers(FairseqDataset):
    def __getitem__(self, index):
        return index

    def __len__(self):
        return 12

    def collater(self, samples):
        return {"id": torch.tensor(samples)}


def sampler(dataset, epoch):
    return np.random.default_rng(epoch).permutation(len(dataset)).reshape(-1, 3).tolist()


@pytest.mark.parametrize("buffer_size", [0, 10])
def test_workers_end_with_their_epoch(buffer_size):
    """fairseq leaves an epoch behind its last batch, before the loader knows of its end; workers
    that live on were waited for when they were garbage, 5 seconds each."""
    dataset = Numbers()
    before = set(multiprocessing.active_children())
    for epoch in (1, 2, 3):
        batches = drawn_anew(
            dataset, sampler, num_workers=1, epoch=epoch, data_buffer_size=buffer_size
        )
        found = [batch["id"].tolist() for batch in batches.next_epoch_itr(shuffle=False)]
        assert found == sampler(dataset, epoch)
        del batches
        end = time.monotonic() + 4
        while set(multiprocessing.active_children()) - before and time.monotonic() < end:
            time.sleep(0.02)
        assert not set(multiprocessing.active_children()) - before

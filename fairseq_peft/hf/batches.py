"""fairseq's batches of a data set, by Hugging Face's names.

Shape letters: B batch, T tokens.
"""

from __future__ import annotations

import numpy as np
import torch

from fairseq_peft.data.buckets import bucket_batches
from fairseq_peft.data.sentence_dataset import SentenceDataset


class Batches:
    """The batches that fairseq makes of a data set: drawn anew in each epoch, or fixed.

    Args:
        seed: of the training set's; None for evaluation.
    """

    def __init__(self, dataset: SentenceDataset, batch_size: int, seed: int | None = None):
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.epoch = 0

    def __len__(self):
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self):
        """Begin the next epoch: lists of indices."""
        from fairseq.data import data_utils

        self.epoch += 1
        rng = None if self.seed is None else np.random.default_rng([self.seed, self.epoch])
        sizes, order_sizes = self.dataset.sizes, self.dataset.order_sizes
        batches = bucket_batches(sizes, self.batch_size, None, rng, order_sizes)
        if self.seed is not None:
            with data_utils.numpy_seed(self.seed + self.epoch):  # as its iterator shuffles
                np.random.shuffle(batches)
        return iter(batches)


def loader(dataset: SentenceDataset, batch_size: int, seed: int | None = None):
    """The ``Batches`` of a data set by Hugging Face's names: input_ids and attention_mask (B, T),
    labels (B,)."""

    def collate(items):
        batch = dataset.collater(items)
        tokens = batch["net_input"]["src_tokens"]
        mask = tokens.ne(dataset.pad).long()
        return {"input_ids": tokens, "attention_mask": mask, "labels": batch["target"]}

    return torch.utils.data.DataLoader(
        dataset, batch_sampler=Batches(dataset, batch_size, seed), collate_fn=collate
    )

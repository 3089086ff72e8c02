"""Sentences or sentence pairs with a class, as token ids.

Shape letters: B batch, T tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from fairseq.data import FairseqDataset

from fairseq_peft.data import buckets


class SentenceDataset(FairseqDataset):
    """``<s> text </s>`` or ``<s> text </s> </s> text2 </s>``, cut to ``max_tokens`` so that every
    ``</s>`` stays.

    A pair is cut from the end of its longer text first.

    Args:
        texts: one or two indexed data sets of token ids that end with ``</s>``, of equal length.
        targets: (N,) class ids or numbers, or (N, labels) zeros and ones.
        dictionary: for the ids of ``<s>``, ``</s>`` and padding.
        max_tokens: longest item, with the special tokens.
        begin: whether an item starts with ``<s>``.
        num_reserved: positions of the model that a soft prompt takes, beside ``max_tokens``.

    Attributes:
        order_sizes: (N,) the items' sizes without a prompt: what batches are sorted by, so that
            methods with and without a prompt see the same batches.
    """

    def __init__(
        self, texts, targets, dictionary, max_tokens: int, begin: bool = True, num_reserved: int = 0
    ):
        super().__init__()
        self.texts = texts
        self.targets = targets
        self.max_tokens = max_tokens
        self.begin = [dictionary.bos()] if begin else []
        self.eos = dictionary.eos()
        self.pad = dictionary.pad()
        self.num_special = len(self.begin) + (1 if len(texts) == 1 else 3)
        lengths = sum(np.asarray(text.sizes) - 1 for text in texts)
        self.num_truncated = int((lengths + self.num_special > max_tokens).sum())
        self._sizes = np.minimum(lengths + self.num_special, max_tokens)
        self.order_sizes = np.minimum(lengths + self.num_special, max_tokens + num_reserved)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        texts = [text[index][:-1].tolist() for text in self.texts]
        texts = truncate(texts, self.max_tokens - self.num_special)
        tokens = self.begin + texts[0] + [self.eos]
        for text in texts[1:]:
            tokens += [self.eos] + text + [self.eos]
        return {"id": index, "tokens": tokens, "target": self.targets[index]}

    @property
    def sizes(self):
        """(N,) tokens of each item."""
        return self._sizes

    def num_tokens(self, index):
        return self._sizes[index]

    def size(self, index):
        return self._sizes[index]

    @property
    def supports_prefetch(self):
        return False

    def collater(self, items):
        """Items as a batch: ``src_tokens`` (B, T) padded at the right, T as
        ``buckets.width`` has it; ``target`` (B,), or (B, labels); {} for no
        items."""
        if not items:
            return {}
        lengths = [len(item["tokens"]) for item in items]
        width = buckets.width(max(lengths), self.max_tokens)
        tokens = torch.full((len(items), width), self.pad, dtype=torch.long)
        for row, item in zip(tokens, items):
            row[: len(item["tokens"])] = torch.tensor(item["tokens"])
        return {
            "id": torch.tensor([item["id"] for item in items]),
            "net_input": {"src_tokens": tokens, "src_lengths": torch.tensor(lengths)},
            "target": torch.from_numpy(np.stack([item["target"] for item in items])),
            "nsentences": len(items),
            "ntokens": sum(lengths),
        }


def truncate(texts: list[list[int]], budget: int) -> list[list[int]]:
    """Cut the ends of one or two texts so that together they have at most ``budget`` tokens."""
    if len(texts) == 1:
        return [texts[0][:budget]]
    first, second = (len(text) for text in texts)
    while first + second > budget:
        shorter = min(first, second)
        if first > second:
            first = max(shorter, budget - second)
        elif second > first:
            second = max(shorter, budget - first)
        else:
            first, second = (budget + 1) // 2, budget // 2
    return [texts[0][:first], texts[1][:second]]

"""What the kinds of task (``scores``) make of a model's outputs: loss, answers, and counts.

Shape letters: B rows of a batch, K outputs: classes, labels, or 1 for a number.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fairseq_peft import scores


class Classes:
    """One class a row. ``target`` (B,) class ids, the answer (B,) likewise."""

    meter = scores.COUNTS

    @staticmethod
    def loss(logits, target, weights=None):
        """Cross entropy, summed over rows; ``weights`` (K,) of the classes."""
        return F.cross_entropy(logits, target, weights, reduction="sum")

    @staticmethod
    def answer(logits):
        return logits.argmax(-1)

    @staticmethod
    def counts(answer, target, num_outputs):
        """(3, K), the integers of ``scores.KINDS``."""
        # Not bincount, nor a choice of rows: a GPU is waited for to learn how many there are.
        right = (answer == target).long()
        each = torch.stack([right, torch.ones_like(right), torch.ones_like(right)])
        counts = each.new_zeros(3, num_outputs)
        return counts.scatter_add_(1, torch.stack([target, target, answer]), each)


class Labels:
    """Any number of labels a row. ``target`` (B, K) zeros and ones, the answer likewise."""

    meter = scores.LABEL_COUNTS

    @staticmethod
    def loss(logits, target):
        """Binary cross entropy of each label, the mean over labels, summed over rows."""
        each = F.binary_cross_entropy_with_logits(logits, target.float(), reduction="none")
        return each.mean(-1).sum()

    @staticmethod
    def answer(logits):
        """The labels that are more likely than not."""
        return (logits > 0).long()

    @staticmethod
    def counts(answer, target, num_outputs):
        """(3, K + 1): see ``scores.LABEL_COUNTS``."""
        target = target.long()
        each = torch.stack([(answer * target).sum(0), target.sum(0), answer.sum(0)])
        right = (answer == target).all(-1).sum()
        last = torch.stack([right, torch.full_like(right, len(target)), torch.zeros_like(right)])
        return torch.cat([each, last[:, None]], 1)


class Number:
    """A number a row. ``target`` (B,) and the answer (B,) are floats, the outputs (B, 1)."""

    meter = scores.SUMS

    @staticmethod
    def loss(logits, target):
        """Squared errors, summed over rows."""
        return F.mse_loss(logits[:, 0], target.float(), reduction="sum")

    @staticmethod
    def answer(logits):
        return logits[:, 0].float()

    @staticmethod
    def counts(answer, target, num_outputs):
        """(6,) in double precision: the arguments of ``scores.from_sums``."""
        p, t = answer.double(), target.double()
        parts = [torch.ones_like(t), p, t, p * p, t * t, p * t]
        return torch.stack([part.sum() for part in parts])


#: Name of a kind -> what it makes of outputs.
KINDS = {scores.CLASSES: Classes, scores.LABELS: Labels, scores.NUMBER: Number}

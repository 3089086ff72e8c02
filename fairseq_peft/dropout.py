"""Dropout that does not spend its time on drawing random numbers.

On a CPU torch draws and compares a double for each number, which takes longer than many a matrix
product on the same data. Here 16 random bits decide, from torch's own generator, so seeds mean what
they mean everywhere; p is rounded to a multiple of 2**-16. Other devices run torch's own dropout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class _Dropout(torch.autograd.Function):
    """Keeps a mask of one byte a number for the backward pass."""

    @staticmethod
    def forward(ctx, x, threshold):
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        keep = bits.ge(threshold - 2**15)
        ctx.save_for_backward(keep)
        ctx.scale = 2**16 / (2**16 - threshold)
        return x.mul(keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, gradient):
        (keep,) = ctx.saved_tensors
        return gradient.mul(keep).mul_(ctx.scale), None


def dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """x with each number zeroed with probability p and the others scaled by 1 / (1 - p).

    Args:
        x: any shape and floating type.
        p: in [0, 1); 0 returns x itself.
    """
    if p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    return _Dropout.apply(x, round(p * 2**16))


class Dropout(nn.Module):
    """``dropout`` as a module; ``p`` may be changed at any time."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x):
        return dropout(x, self.p) if self.training else x

    def extra_repr(self) -> str:
        return f"p={self.p}"

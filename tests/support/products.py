"""The types in which a computation multiplies matrices, whatever module does it."""

from __future__ import annotations

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

MATRIX_PRODUCTS = {
    torch.ops.aten.addmm,
    torch.ops.aten.baddbmm,
    torch.ops.aten.bmm,
    torch.ops.aten.linear,
    torch.ops.aten.mm,
}


class Products(TorchDispatchMode):
    """``with Products() as found:`` counts matrix products by the type of what they give.

    Attributes:
        count: type -> how many.
        largest: type -> the most rows that one of them had.
    """

    def __init__(self):
        super().__init__()
        self.count = Counter()
        self.largest = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in MATRIX_PRODUCTS:
            rows = result.numel() // result.shape[-1]
            self.count[result.dtype] += 1
            self.largest[result.dtype] = max(self.largest[result.dtype], rows)
        return result

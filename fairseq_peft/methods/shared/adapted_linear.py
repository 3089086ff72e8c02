"""What a method puts where a linear map of the base was.

    AdaptedLinear   y = anything of x, W and b; it holds the base map's own W and b
    BesideLinear    y = x W^T + b + an update: for those who compute x W^T + b once for many of them

The sub-classes are the methods': ``LoRALinear``, ``DoRALinear``, ``OFTLinear``, ...
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class AdaptedLinear(nn.Linear):
    """A linear map that something trains around. ``weight`` and ``bias`` are the base layer's own
    tensors, so a base checkpoint's keys stay where they are.

    A sub-class adds its parameters, ``forward`` and ``merged_weight``.
    """

    def __init__(self, base: nn.Linear):
        # On "meta" no memory is taken for the weight that the next lines replace.
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight = base.weight
        self.bias = base.bias

    def merged_weight(self) -> torch.Tensor:
        """The weight (out, in), in fp32, with which a plain map computes the same."""
        raise NotImplementedError

    def merged(self) -> nn.Linear:
        """That plain map: the weight is cast once, to the dtype of the old one; the bias stays."""
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        weight = self.merged_weight().detach().to(self.weight.dtype)
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.bias = self.bias
        return plain


class BesideLinear(AdaptedLinear):
    """``y = x W^T + b + update``. A sub-class adds its parameters, ``beside`` and ``delta``.

    Many adapters of one base, in prediction and in training, compute ``x W^T + b`` once and ask
    each layer for ``beside``, or all of them for ``beside_each`` (``sharing/switches.py``).

    Attributes:
        dropout: share of the update's input that is dropped in training, by torch's dropout.
    """

    dropout = 0.0

    def forward(self, x):
        return self.beside(F.linear(x, self.weight, self.bias), x)

    def beside(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``y + update``, for the base's output y (..., out) and its input x (..., in)."""
        raise NotImplementedError

    def stacks_with(self, other: nn.Module) -> bool:
        """Whether ``beside_each`` takes a list with both; never, if the class has none."""
        return False

    @staticmethod
    def beside_each(layers, y, x):
        """``beside`` for M parts of a batch that each have a layer of their own, in a few products
        for all.

        Args:
            layers: M layers, of which each ``stacks_with`` the first. A layer may come twice.
            y, x: (M, N, out) and (M, N, in); what is dropped from x is so already.
        """
        raise NotImplementedError

    def delta(self) -> torch.Tensor:
        """The update of W, (out, in), in fp32."""
        raise NotImplementedError

    def merged_weight(self):
        return self.weight.float() + self.delta()

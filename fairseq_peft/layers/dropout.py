"""Dropout that does not spend its time on drawing random numbers.

On a CPU torch draws and compares a double for each number, which takes longer than many a matrix
product on the same data. Here a random byte decides, from torch's own generator, so seeds mean what
they mean everywhere. Of 256 values p * 256 drop; where that is no integer, each call draws one of
its two neighbours, so that p is right in the mean. Other devices run torch's own dropout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_peft.errors import InputError


def keep_mask(shape, p: float, dtype: torch.dtype) -> torch.Tensor:
    """A CPU tensor with 0 where a number is dropped, which happens with probability p, and 1
    elsewhere.

    It has the dtype of what it is multiplied with: torch converts masks of bool first, which takes
    longer than the product.
    """
    mask = torch.empty(shape, dtype=dtype)
    words = torch.empty((mask.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    values = words.view(torch.uint8)[: mask.numel()].view(mask.shape)
    threshold = int(p * 256 + torch.rand(()).item())
    return mask.zero_() if threshold > 255 else torch.ge(values, threshold, out=mask)


def mask_like(x: torch.Tensor, p: float) -> torch.Tensor:
    """``keep_mask`` of the shape and type of x.

    In a graph (``compiling.py``) it is one opaque step, which draws what is drawn without a graph.
    It takes x itself, so no order of steps lets it draw before what x was made with has drawn.
    """
    if torch.compiler.is_compiling():
        return torch.ops.fairseq_peft.keep_mask(x.detach(), p)
    return keep_mask(x.shape, p, x.dtype)


# A step that draws is computed once, and not again in the backward pass: so says its tag.
torch.library.define(
    "fairseq_peft::keep_mask",
    "(Tensor x, float p) -> Tensor",
    tags=(torch.Tag.nondeterministic_seeded,),
)


@torch.library.impl("fairseq_peft::keep_mask", "cpu")
def _keep_mask(x, p):
    return keep_mask(x.shape, p, x.dtype)


@torch.library.register_fake("fairseq_peft::keep_mask")
def _mask_without_content(x, p):
    return x.new_empty(x.shape)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p):
        mask = keep_mask(x.shape, p, x.dtype)
        ctx.save_for_backward(mask)
        ctx.scale = 1 / (1 - p)
        return x.mul(mask).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, gradient):
        (mask,) = ctx.saved_tensors
        return gradient.mul(mask).mul_(ctx.scale), None


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
    if torch.compiler.is_compiling():  # a graph finds the gradient by itself
        return x.mul(mask_like(x, p)).mul(1 / (1 - p))
    return _Dropout.apply(x, p)


class Dropout(nn.Module):
    """``dropout`` as a module; ``p`` may be changed at any time.

    ``retained`` is set by fairseq's ``--retain-dropout``: eval mode drops, too.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p
        self.retained = False

    @property
    def rate(self) -> float:
        """What share drops now."""
        return self.p if self.training or self.retained else 0.0

    def forward(self, x):
        return dropout(x, self.rate)

    def make_generation_fast_(
        self, name, retain_dropout=False, retain_dropout_modules=None, **unused
    ):
        """What fairseq's tools call before they write or score.

        Raises:
            InputError: only some modules are to keep their dropout.
        """
        if retain_dropout and retain_dropout_modules is not None:
            raise InputError(
                "--retain-dropout-modules tells modules by the names of fairseq's classes, which "
                "the plugin's are not. Leave it out: --retain-dropout keeps all dropout."
            )
        self.retained = bool(retain_dropout)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class QuickDropout(nn.Dropout):
    """``dropout`` in the place of torch's module, which a model of another library has made."""

    def forward(self, x):
        return dropout(x, self.p) if self.training else x

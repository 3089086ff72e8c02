"""What M parts of a batch compute with tensors of their own, in one step for all of them.

Shape letters: M parts, N rows of each.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence


def stacked(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """M tensors (n, ...) as (M, n, ...); zeros follow those with a lower n."""
    if len(set(map(len, parts))) > 1:
        return pad_sequence(list(parts), batch_first=True)
    found = torch.stack(list(parts))
    if found.requires_grad:  # bmm gives gradients that lie the other way: turned once for all
        found.register_hook(torch.Tensor.contiguous)
    return found


def stacked_inputs(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """The weights (out, in) of M maps as (M, in, out); zeros follow the smaller ones."""
    if len({weight.shape[1] for weight in weights}) == 1:
        return stacked(weights).transpose(1, 2)
    return stacked([weight.t() for weight in weights])


def linear_each(maps: Sequence[nn.Linear], x: torch.Tensor) -> torch.Tensor:
    """A map for each part of x (M, N, in): (M, N, out). Maps may differ in what they give, or in
    what they take, where zeros follow."""
    bias = stacked([each.bias for each in maps]).unsqueeze(1)
    return torch.baddbmm(bias, x, stacked_inputs([each.weight for each in maps]))


def times(x: torch.Tensor, factors: Sequence[float]) -> torch.Tensor:
    """x (M, ...) with part i multiplied by ``factors[i]``, in the type of x."""
    if len(set(factors)) == 1:
        return x if factors[0] == 1 else x * factors[0]
    column = _column(tuple(factors), x.device)
    return (x * column.view(-1, *[1] * (x.dim() - 1))).to(x.dtype)


@functools.lru_cache(maxsize=1024)
def _column(factors, device):
    """Made once: what is copied to a GPU waits for it."""
    with torch.inference_mode(False):
        return torch.tensor(factors, device=device)

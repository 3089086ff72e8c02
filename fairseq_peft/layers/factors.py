"""A factor for each row of a tensor, as one product."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch


def times(x: torch.Tensor, factors: Sequence[float]) -> torch.Tensor:
    """x (N, ...) with row i multiplied by ``factors[i]``, in the type of x."""
    if len(set(factors)) == 1:
        return x if factors[0] == 1 else x * factors[0]
    column = _column(tuple(factors), x.device)
    return (x * column.view(-1, *[1] * (x.dim() - 1))).to(x.dtype)


@functools.lru_cache(maxsize=1024)
def _column(factors, device):
    """Made once: what is copied to a GPU waits for it."""
    with torch.inference_mode(False):
        return torch.tensor(factors, device=device)

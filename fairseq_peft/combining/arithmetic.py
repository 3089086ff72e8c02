"""Arithmetic on low-rank updates: sums, differences and consensus of what several LoRA have learnt.

An update is D = s B A, and a combination of D_1, ..., D_n with weights w_1, ..., w_n is again one:

    cat                       D = sum w_i D_i, exactly: A = [w_1 s_1 A_1; ...], B = [B_1, ...]
    svd                       the best D of rank R for that sum (Eckart and Young 1936)
    linear                    A = sum sign(w_i) sqrt(|w_i| s_i) A_i,  B = sum sqrt(|w_i| s_i) B_i
    ties                      as linear, with sums of trimmed A_i, and B_i, that agree in sign
    dare_linear, dare_ties    as linear, and as ties but for its trim, after thinning at random
    ties_svd, dare_..._svd    the same three with D_i instead of factors, then the best of rank R

These are Hugging Face PEFT's ``add_weighted_adapter`` (0.21), formula by formula. What works on
factors makes cross terms B_i A_j, so it is far from the sum unless the factors lie close together,
as those of runs from one start do; one adapter alone, w = 1 or -1, comes out as w D.

Papers: Yadav et al. 2023, arXiv:2306.01708 (TIES); Yu et al. 2023, arXiv:2311.03099 (DARE); Ilharco
et al. 2022, arXiv:2212.04089 (sums and negation). Shape letters: r, R ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Optional

import torch
from torch import Tensor

#: Combinations of the factors, which must have one rank, and of the deltas, whose rank is chosen.
OF_FACTORS = ("linear", "ties", "dare_linear", "dare_ties")
OF_DELTAS = ("svd", "ties_svd", "dare_linear_svd", "dare_ties_svd")
HOWS = ("cat", *OF_FACTORS, *OF_DELTAS)


class Update(NamedTuple):
    """s B A: A (r, in), B (out, r)."""

    a: Tensor
    b: Tensor
    scale: float = 1.0

    def delta(self) -> Tensor:
        """(out, in)"""
        return self.scale * (self.b @ self.a)


def takes_density(how: str) -> bool:
    """Whether ``how`` leaves a share of the values out."""
    return "ties" in how or "dare" in how


def combine(
    updates: Sequence[Update],
    weights: Sequence[float],
    how: str,
    rank: Optional[int] = None,
    density: Optional[float] = None,
    generator: Optional[torch.Generator] = None,
) -> Update:
    """The combination of updates of one matrix, with scale 1.

    Args:
        how: one of ``HOWS``.
        rank: R of ``OF_DELTAS``; at most min(in, out). None: the largest of the updates.
        density: share of the values that ties and dare keep, in (0, 1].
        generator: what dare draws from (CPU).
    """
    if how == "cat":
        return _cat(updates, weights)
    if how == "svd":
        return _best(_cat(updates, weights), rank or max(len(update.a) for update in updates))
    if how in OF_DELTAS:
        deltas = [update.delta() for update in updates]
        delta = mix(how[: -len("_svd")], deltas, weights, density, generator)
        return best_of_rank(delta, rank or max(len(update.a) for update in updates))
    roots = [math.sqrt(abs(w) * update.scale) for w, update in zip(weights, updates)]
    # The sign on one side only: on both it would cancel.
    signed = [math.copysign(root, w) for w, root in zip(weights, roots)]
    a = mix(how, [update.a for update in updates], signed, density, generator)
    b = mix(how, [update.b for update in updates], roots, density, generator)
    return Update(a, b)


def mix(how: str, tensors, weights, density=None, generator=None) -> Tensor:
    """Tensors of one shape as one: ``how`` is one of ``OF_FACTORS``."""
    if how.startswith("dare"):
        tensors = [thin(tensor, density, generator) for tensor in tensors]
    elif how == "ties":
        tensors = [trim(tensor, density) for tensor in tensors]
    if how.endswith("ties"):
        return mean_of_majority(tensors, weights)
    return sum(weight * tensor for weight, tensor in zip(weights, tensors))


def trim(tensor: Tensor, density: float) -> Tensor:
    """The share ``density`` of the largest values, rounded down; the others are zero."""
    kept = torch.zeros_like(tensor).flatten()
    kept[tensor.abs().flatten().topk(int(density * tensor.numel())).indices] = 1
    return tensor * kept.view_as(tensor)


def thin(tensor: Tensor, density: float, generator: Optional[torch.Generator]) -> Tensor:
    """Each value with probability ``density``, divided by it, else zero: on average the tensor."""
    kept = torch.bernoulli(torch.full_like(tensor, density), generator=generator)
    return tensor * kept / density


def mean_of_majority(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """At each place, the mean of w_i t_i over those t_i whose sign is that of sum t_i (0 counts as
    positive). As in PEFT, the weights have no vote."""
    stacked = torch.stack(list(tensors))
    majority = torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    agree = stacked.sign() == majority
    factors = torch.tensor(weights, dtype=stacked.dtype).view(-1, *[1] * (stacked.dim() - 1))
    return (factors * stacked * agree).sum(0) / agree.sum(0).clamp(min=1)


def best_of_rank(delta: Tensor, rank: int) -> Update:
    """The best approximation of ``delta`` (out, in) of that rank."""
    return _roots(*torch.linalg.svd(delta.double(), full_matrices=False), rank, delta.dtype)


def squared_error(found: Update, updates: Sequence[Update], weights: Sequence[float]):
    """(|D - sum w_i D_i|^2, |sum w_i D_i|^2), squared Frobenius norms."""
    exact = _cat(updates, weights)
    difference = _cat([found, exact], [1.0, -1.0])
    return _square(difference), _square(exact)


def _square(update):
    """|B A|^2 from products of rank size: the matrix itself, of an embedding, is large."""
    a, b = update.a.double(), update.b.double()
    return max(((b.T @ b) * (a @ a.T)).sum().item(), 0.0) * update.scale**2


def _cat(updates, weights):
    a = [weight * update.scale * update.a for weight, update in zip(weights, updates)]
    return Update(torch.cat(a), torch.cat([update.b for update in updates], dim=1))


def _best(update, rank):
    """The best approximation of B A of that rank, by way of a matrix of the size of its rank."""
    q_b, r_b = torch.linalg.qr(update.b.double())
    q_a, r_a = torch.linalg.qr(update.a.double().T)
    u, s, vt = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return _roots(q_b @ u, s, vt @ q_a.T, rank, update.a.dtype)


def _roots(u, s, vt, rank, dtype):
    """U S V^T cut to ``rank``, with the root of S on each side."""
    root = s[:rank].sqrt()
    return Update((root[:, None] * vt[:rank]).to(dtype), (u[:, :rank] * root).to(dtype))

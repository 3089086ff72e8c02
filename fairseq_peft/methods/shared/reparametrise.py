"""Trained vectors, as they are or as what a small MLP makes of others.

    vectors = E                                        E (P, out)
    vectors = tanh(E W1^T + b1) W2^T + b2              E (P, in), W1 (h, in), W2 (out, h)

The MLP only helps to train: what counts in the end are the vectors, so ``fold`` puts them in its
place. A checkpoint of training keeps the MLP, without which a run could not go on.

Paper: Li and Liang 2021, arXiv:2101.00190, section 4.3: prefixes that are trained directly are
unstable there. Shape letters: P number of vectors, h hidden size.
"""

from __future__ import annotations

import torch
from torch import nn

from fairseq_peft.errors import InputError


class Vectors(nn.Module):
    """P trained vectors: ``embeddings`` (P, in), and ``mlp`` from in to out or None."""

    def __init__(self, embeddings: torch.Tensor, mlp: nn.Sequential | None = None):
        super().__init__()
        self.embeddings = nn.Parameter(embeddings)
        self.mlp = mlp

    @property
    def num_tokens(self) -> int:
        return self.embeddings.shape[0]

    def vectors(self) -> torch.Tensor:
        """What the model reads: (P, out)."""
        return self.embeddings if self.mlp is None else self.mlp(self.embeddings)

    def fold(self) -> None:
        """Keep the vectors, drop the MLP."""
        with torch.no_grad():
            folded = self.vectors().clone()
        self.embeddings, self.mlp = nn.Parameter(folded), None


def normal(num_tokens: int, dim: int, std: float, generator: torch.Generator) -> torch.Tensor:
    """(P, dim) of N(0, std)."""
    return torch.empty(num_tokens, dim).normal_(0, std, generator=generator)


def mlp(in_dim: int, hidden: int, out_dim: int, generator: torch.Generator) -> nn.Sequential:
    """The MLP, with torch's own start for linear maps: uniform in +-1/sqrt(in)."""
    net = nn.Sequential(
        nn.Linear(in_dim, hidden, device="meta"),
        nn.Tanh(),
        nn.Linear(hidden, out_dim, device="meta"),
    ).to_empty(device="cpu")
    with torch.no_grad():
        for linear in (net[0], net[2]):
            for parameter in (linear.weight, linear.bias):
                bound = linear.in_features**-0.5
                parameter.uniform_(-bound, bound, generator=generator)
    return net


def mlp_formula(in_dim: int, hidden: int, out_dim: int) -> str:
    """The parameters of the MLP."""
    return f"({in_dim} + 1) x {hidden} + ({hidden} + 1) x {out_dim}"


def check_sizes(num_tokens: int, hidden: int, method: str) -> None:
    """Refuse knobs that are no sizes.

    Raises:
        InputError: fewer than one vector, or a negative hidden size.
    """
    if num_tokens < 1:
        raise InputError(
            f"--{method}-num-tokens {num_tokens} is no {method}: give an integer of at least 1."
        )
    if hidden < 0:
        raise InputError(
            f"--{method}-mlp {hidden} is no hidden size: give an integer of at least 1, or 0 for "
            "no MLP."
        )

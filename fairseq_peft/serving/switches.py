"""Where adapters of one model differ, each row of a batch meets the module of its own.

The rows of a batch are sorted by adapter, and all switches of a model share one list of pieces.
Shape letters: B batch, T tokens, C model dim, H heads, P prompt or prefix tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_peft.methods.shared.adapted_linear import BesideLinear


@dataclass
class Piece:
    """Consecutive rows of a batch with one adapter."""

    name: str
    rows: slice


def pieces(names: Sequence[str]) -> list[Piece]:
    """Runs of equal names."""
    starts = [i for i in range(len(names)) if i == 0 or names[i] != names[i - 1]]
    ends = [*starts[1:], len(names)]
    return [Piece(names[start], slice(start, end)) for start, end in zip(starts, ends)]


class Switch(nn.Module):
    """A place where adapters differ.

    Attributes:
        base: the module of the base; None for an empty slot, which hands its input on.
        parts: adapter -> its module. A plain dict: they are no part of the base.
    """

    def __init__(self, base: nn.Module | None, batch: list[Piece]):
        super().__init__()
        self.base = base
        self.parts = {}
        self.batch = batch

    def part(self, name: str) -> nn.Module | None:
        return self.parts.get(name, self.base)

    def forward(self, *inputs):
        """Each input is cut along its rows; a module among them is that of the same adapter."""
        parts = [self.part(piece.name) for piece in self.batch]
        if len(parts) > 1 and all(_beside(part, self.base) for part in parts):
            return self._update(parts, *inputs)
        found = []
        for part, piece in zip(parts, self.batch):
            own = [_own(value, piece) for value in inputs]
            found.append(own[0] if part is None else part(*own))
        return found[0] if len(found) == 1 else torch.cat(found)

    def _update(self, parts, x):
        """Where all parts are updates beside the base's map: its product once for all rows."""
        y = self.base(x)
        # Few rows an adapter: a product for each takes longer than their factors side by side.
        if 2 * len(parts) > len(x) and _alike(parts):
            sizes = [piece.rows.stop - piece.rows.start for piece in self.batch]
            each = [part for part, size in zip(parts, sizes) for _ in range(size)]
            return parts[0].beside_each(each, y, x)
        pairs = [(part, y[piece.rows], x[piece.rows]) for part, piece in zip(parts, self.batch)]
        return torch.cat([y if part is self.base else part.beside(y, x) for part, y, x in pairs])


def _beside(part, base) -> bool:
    """Whether ``part`` is the map ``base``, or an update beside it, around the same tensors."""
    if part is base:
        return isinstance(base, nn.Linear)
    return (
        isinstance(part, BesideLinear)
        and part.weight is base.weight
        and part.bias is base.bias
        and not (part._forward_hooks or part._forward_pre_hooks)  # IA3 on the same map
    )


def _alike(parts) -> bool:
    """Whether ``beside_each`` takes them together."""
    first = parts[0]
    return isinstance(first, BesideLinear) and all(map(first.stacks_with, parts))


def _own(value, piece):
    if isinstance(value, torch.Tensor):
        return value[piece.rows]
    return value.part(piece.name) if isinstance(value, Switch) else value


class PromptSwitch(Switch):
    """The slot ``soft_prompt``: prompts of several lengths, padded at the right of the text.

    What each prompt takes from its text is taken when the text is cut, so none counts here.
    """

    num_tokens = 0

    def insert(self, x, padding):
        """x (B, T, C) and padding (B, T) -> (B, P + T, C) and (B, P + T), P the longest."""
        found = []
        for piece in self.batch:
            part, own = self.part(piece.name), (x[piece.rows], padding[piece.rows])
            found.append(own if part is None else part.insert(*own))
        longest = max(x.shape[1] for x, _ in found)
        return (
            torch.cat([F.pad(x, (0, 0, 0, longest - x.shape[1])) for x, _ in found]),
            torch.cat([F.pad(p, (0, longest - p.shape[1]), value=True) for _, p in found]),
        )

    def remove(self, x):
        """Features (B, P + T, C) -> (B, T, C), each row without its own prompt; (B, 1, C) of the
        first position stay."""
        if x.shape[1] == 1:
            return x
        parts = [self.part(piece.name) for piece in self.batch]
        num_tokens = x.shape[1] - max(0 if part is None else part.num_tokens for part in parts)
        own = [x[piece.rows] for piece in self.batch]
        own = [x if part is None else part.remove(x) for part, x in zip(parts, own)]
        return torch.cat([x[:, :num_tokens] for x in own])


class PrefixSwitch(Switch):
    """The slot ``prefix``: keys and values of several lengths, masked where a row has none.

    Attributes:
        num_reserved: positions before the text; the same for all rows of a batch.
    """

    def __init__(self, base, batch, layers):
        super().__init__(base, batch)
        self.num_reserved = 0
        self.seen = None
        # The encoder's own mask lets every row see the whole prefix.
        self.hooks = [layer.self_attn.register_forward_pre_hook(self._mask) for layer in layers]

    @property
    def num_tokens(self) -> int:
        parts = [self.part(piece.name) for piece in self.batch]
        return max((part.num_tokens for part in parts if part is not None), default=0)

    def forward(self, num_heads: int) -> list:
        """For each layer keys and values (B, H, P, C / H), P the longest; None without any."""
        longest = self.num_tokens
        self.seen = None
        if longest == 0:
            return [None] * len(self.hooks)
        parts = [self.part(piece.name) for piece in self.batch]
        own = [None if part is None else part(num_heads) for part in parts]
        like = next(pairs for pairs in own if pairs is not None)[0][0]
        sizes = [piece.rows.stop - piece.rows.start for piece in self.batch]

        def rows(pairs, size, layer, which):
            value = like[:, :0] if pairs is None else pairs[layer][which]
            value = F.pad(value, (0, 0, 0, longest - value.shape[1]))
            return value.expand(size, -1, -1, -1)

        lengths = [0 if part is None else part.num_tokens for part in parts]
        if min(lengths) < longest:
            counts = torch.tensor(lengths).repeat_interleave(torch.tensor(sizes))
            self.seen = (torch.arange(longest) < counts[:, None])[:, None, None].to(like.device)
        return [
            tuple(
                torch.cat([rows(pairs, size, layer, which) for pairs, size in zip(own, sizes)])
                for which in (0, 1)
            )
            for layer in range(len(self.hooks))
        ]

    def _mask(self, attention, inputs):
        if self.seen is None:
            return None
        x, keep, *rest = inputs
        if keep is None:
            text = self.seen.new_ones(*self.seen.shape[:3], x.shape[1])
        else:
            text = keep[..., self.seen.shape[-1] :]
        return (x, torch.cat([self.seen, text], -1), *rest)

"""Where members differ, each piece of a batch meets the module of its own.

A ``Switch`` stands in a model in the place of the module that differs; all switches of a model
share one list of pieces (``rows.py``), which is set for each pass. The kinds are those of what a
model calls: any module that takes rows and gives rows, a soft prompt, a prefix, attention.

Shape letters: B batch, T tokens, C model dim, H heads, D = C / H, P prompt or prefix tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_peft.layers.attention import Attend
from fairseq_peft.layers.dropout import Dropout, dropout
from fairseq_peft.methods.shared.adapted_linear import BesideLinear
from fairseq_peft.methods.shared.bottleneck import Bottleneck
from fairseq_peft.sharing.rows import Batch, join, pad


class Switch(nn.Module):
    """A place where members differ.

    Attributes:
        base: the module for whoever has none of their own; None for an empty slot, which hands its
            input on.
        parts: member -> its module. A plain dict: they are no part of the base.
    """

    def __init__(self, base: nn.Module | None, batch: Batch):
        super().__init__()
        self.base = base
        self.parts = {}
        self.batch = batch

    def own(self) -> list[nn.Module | None]:
        """The module of each piece."""
        return [self.parts.get(piece.name, self.base) for piece in self.batch]

    def forward(self, *inputs):
        """Each input is cut along its rows; a switch among them is the module of the same
        member."""
        parts = self.own()
        if len(parts) > 1:
            if _one_product(parts):
                return self._updated(parts, *inputs)
            adapted = isinstance(parts[0], Bottleneck) and _stack(parts)
            if adapted and self.batch.stacks(inputs[0]):
                return self._adapted(parts, *inputs)
        found = []
        for part, piece, *own in zip(parts, self.batch, *map(self._cut, inputs)):
            found.append(own[0] if part is None else piece.run(part, *own))
        return join(found)

    def _cut(self, value) -> list:
        """What each piece has of an input."""
        if isinstance(value, torch.Tensor):
            return self.batch.cut(value)
        return value.own() if isinstance(value, Switch) else [value] * len(self.batch)

    def _updated(self, parts, x):
        """Where all parts are updates beside one frozen map: its product once for all rows."""
        y = F.linear(x, parts[0].weight, parts[0].bias)
        if _stack(parts):
            if self.batch.stacks(x):
                return self._stacked(parts, y, x)
            # Few rows a member: a product for each takes longer than their factors side by side.
            draws = any(piece.stream for piece in self.batch)
            if not draws and 2 * len(parts) > len(x):
                each = [part for part, n in zip(parts, self.batch.counts) for _ in range(n)]
                return parts[0].beside_each(each, y, x)
        found = []
        for part, piece, *own in zip(parts, self.batch, self.batch.cut(y), self.batch.cut(x)):
            found.append(own[0] if type(part) is nn.Linear else piece.run(part.beside, *own))
        return join(found)

    def _stacked(self, parts, y, x):
        """The updates of all parts at once, each with its member's rows one after the other."""
        x = self.batch.dropped(x, _rates(parts), F.dropout)
        y, x = self.batch.stack(y), self.batch.stack(x)
        found = parts[0].beside_each(parts, y.flatten(1, 2), x.flatten(1, 2))
        return self.batch.unstack(found.view_as(y))

    def _adapted(self, parts, h, x, norm):
        """The adapters of all at once, as ``_stacked``."""
        z = self.batch.stack(parts[0].read(h, x, norm))
        update = self.batch.unstack(parts[0].update_each(parts, z.flatten(1, 2)).view_as(z))
        return h + self.batch.dropped(update, _rates(parts), F.dropout)


def _rates(parts) -> list[float]:
    """What share of its input each part drops."""
    return [part.dropout if part.training else 0.0 for part in parts]


def _one_product(parts) -> bool:
    """Whether the parts are one plain linear map, or updates beside it, around the same tensors."""
    first = parts[0]
    return isinstance(first, nn.Linear) and all(
        (type(part) is nn.Linear or isinstance(part, BesideLinear))
        and part.weight is first.weight
        and part.bias is first.bias
        and _as_written(part)
        for part in parts
    )


def _as_written(module) -> bool:
    """Whether a module is called as its class says."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return not (hooks or "forward" in vars(module))


def _stack(parts) -> bool:
    """Whether the first part can compute for all of them."""
    first = parts[0]
    return isinstance(first, (BesideLinear, Bottleneck)) and all(
        first.stacks_with(part) and all(map(_as_written, part.modules())) for part in parts
    )


class DropoutSwitch(Switch):
    """Dropout: each member draws, and the product with what they have drawn is one."""

    def forward(self, x):
        parts = self.own()
        if not self.batch.is_at_once(x.device) or any(type(part) is not Dropout for part in parts):
            return super().forward(x)
        rates = [part.p if part.training else 0.0 for part in parts]
        return self.batch.dropped(x, rates, dropout)


class PromptSwitch(Switch):
    """The slot ``soft_prompt``: prompts of several lengths, padded at the right of the text.

    What each prompt takes from its text is taken when the text is cut, so none counts here.
    """

    num_tokens = 0

    def insert(self, x, padding):
        """x (B, T, C) and padding (B, T) -> (B, P + T, C) and (B, P + T), P the longest."""
        found = []
        for part, piece, *own in zip(self.own(), self.batch, *map(self._cut, (x, padding))):
            if part is not None:
                own = part.insert(*own)
                piece.length += part.num_tokens
            found.append(own)
        return join([x for x, _ in found]), join([padding for _, padding in found], value=True)

    def remove(self, x):
        """Features (B, P + T, C) -> (B, T, C), each row without its own prompt; (B, 1, C) of the
        first position stay."""
        found = []
        for part, piece, own in zip(self.own(), self.batch, self._cut(x)):
            if part is not None:
                own = part.remove(own)
                piece.length -= part.num_tokens
            found.append(own)
        return join(found)


class PrefixSwitch(Switch):
    """The slot ``prefix``: keys and values of several lengths, padded at the right.

    ``AttentionSwitch`` lets each row see its own alone.

    Attributes:
        num_reserved: positions before the text; the same for all rows of a batch.
    """

    def __init__(self, base, batch, num_layers: int):
        super().__init__(base, batch)
        self.num_reserved = 0
        self.num_layers = num_layers

    @property
    def num_tokens(self) -> int:
        parts = self.own()
        return max((part.num_tokens for part in parts if part is not None), default=0)

    def forward(self, num_heads: int) -> list:
        """For each layer keys and values (B, H, P, D), P the longest; None without any."""
        longest = self.num_tokens
        parts = self.own()
        for part, piece in zip(parts, self.batch):
            piece.num_prefix = 0 if part is None else part.num_tokens
        if longest == 0:
            return [None] * self.num_layers
        own = [None if part is None else part(num_heads) for part in parts]
        like = next(pairs for pairs in own if pairs is not None)[0][0]

        def rows(pairs, piece, layer, which):
            value = like[:, :0] if pairs is None else pairs[layer][which]
            return pad(value, longest, 1).expand(piece.num_rows, -1, -1, -1)

        return [
            tuple(
                torch.cat([rows(pairs, p, layer, which) for pairs, p in zip(own, self.batch)])
                for which in (0, 1)
            )
            for layer in range(self.num_layers)
        ]


class AttentionSwitch(Switch):
    """Attention without its projections (``layers.attention.Attend``)."""

    def forward(self, query, key, value, keep=None, causal=False):
        """query (B, H, Q, D), key and value (B, H, P + T, D), P the longest prefix."""
        parts = self.own()
        longest = max(piece.num_prefix for piece in self.batch)
        plain = all(type(part) is Attend for part in parts)
        if plain and all(piece.num_prefix == longest for piece in self.batch):
            # What is dropped of attention is drawn within it: in one call, from one stream alone.
            draws = any(part.training and part.dropout_module.p > 0 for part in parts)
            trains = any(piece.stream for piece in self.batch)
            if not trains or (not draws and self.batch.is_at_once(query.device)):
                return parts[0](query, key, value, keep, causal)

        def seen(x, piece, dim):
            """Its own prefix and positions along ``dim``."""
            if piece.num_prefix == longest:
                return x.narrow(dim, 0, longest + piece.length)
            own = x.narrow(dim, 0, piece.num_prefix), x.narrow(dim, longest, piece.length)
            return torch.cat(own, dim)

        inputs = [
            [None] * len(parts) if x is None else x.split(self.batch.counts)
            for x in (query, key, value, keep)
        ]
        found = []
        for part, piece, query, key, value, keep in zip(parts, self.batch, *inputs):
            own = (
                query[:, :, : piece.length],
                seen(key, piece, 2),
                seen(value, piece, 2),
                None if keep is None else seen(keep, piece, 3),
                causal,
            )
            found.append(piece.run(part, *own))
        return join(found, dim=2)

"""One frozen model, many adapters: each row of a batch goes through the modules of its adapter.

An adapter is injected as for training, into a copy of the model's modules that shares the base's
tensors; the modules in which copy and base differ are kept. Where one belongs, a ``Switch`` stands
in the base (``sharing/``): it cuts a batch, whose rows are sorted by adapter, and hands each piece
to the module of its adapter, or to the base's own. What cannot be cut like this (a new attention, a
table that is read and not called) does no harm: the rows of such an adapter go through its own
copy, in a pass of their own. So it works for any method, those to come among them, and each row
meets the modules that it would meet if its adapter were alone.

Shape letters: B batch, T tokens, C model dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fairseq_peft.models import heads
from fairseq_peft.sharing.differences import copied, differences
from fairseq_peft.sharing.rows import pieces
from fairseq_peft.sharing.switched import Switched


@dataclass
class Adapter:
    """What one adapter brings.

    Attributes:
        head: features (B, 1, C) -> logits (B, classes).
        num_reserved: positions before the text, without those of a prompt.
        model: its own copy of the model, where a part cannot be cut by rows; else None.
    """

    head: nn.Module
    num_reserved: int
    model: nn.Module | None


class SharedBase:
    """A model in eval mode and its adapters.

    Args:
        model: a model of this plugin.
        root: path of its encoder (``Family.root``).
    """

    def __init__(self, model: nn.Module, root: str):
        self.model = model.eval().requires_grad_(False)
        self.padding = model.encoder.dictionary.pad()
        self.adapters = {}
        self._plain = copied(model)  # never gets a switch, and so no other adapter's tensors
        self._switched = Switched(model, root)

    def add(self, name: str, build: Callable) -> None:
        """Add an adapter.

        Args:
            name: what rows call it.
            build: is given a copy of the model whose tensors are the base's, changes it as its
                method does, and returns its head. Of what it changes in place it makes copies.
        """
        own = copied(self._plain)
        head = build(own).eval().requires_grad_(False)
        own.eval().requires_grad_(False)
        prefix = own.get_submodule(self._switched.root).prefix
        num_reserved = 0 if prefix is None else prefix.num_reserved
        parts = differences(self._plain, own, self._switched.root)
        shares = self._switched.has_room(parts)
        self.adapters[name] = Adapter(head, num_reserved, None if shares else own)
        self._switched.add(name, parts if shares else {})

    def remove(self, name: str) -> None:
        """Remove an adapter; a place that no adapter needs is the base's own again."""
        del self.adapters[name]
        self._switched.remove(name)

    def halves(self):
        """What has a ``half_dtype``."""
        own = (adapter.model for adapter in self.adapters.values())
        for model in (self.model, self._plain, *own):
            if model is not None:
                yield model.get_submodule(self._switched.root)

    def logits(self, tokens: torch.Tensor, names: Sequence[str]) -> list[torch.Tensor]:
        """tokens (B, T), names of B adapters -> for each row its logits (classes,)."""
        found = [None] * len(names)
        passes = {}
        for i, name in enumerate(names):
            adapter = self.adapters[name]
            alone = "" if adapter.model is None else name
            passes.setdefault((alone, adapter.num_reserved), []).append(i)
        for (_, num_reserved), order in sorted(passes.items()):
            order.sort(key=names.__getitem__)
            rows = tokens[order]
            if len(order) < len(names):  # the longest row may be among the others
                rows = rows[:, : int(rows.ne(self.padding).sum(1).max())]
            scores = self._forward(rows, [names[i] for i in order], num_reserved)
            for i, logits in zip(order, scores):
                found[i] = logits
        return found

    def _forward(self, tokens, names, num_reserved):
        batch = pieces(names, tokens.shape[1])
        self._switched.batch[:] = batch
        self._switched.reserve(num_reserved)
        model = self.adapters[names[0]].model or self.model
        first = all(self.adapters[name].head.pooler == "first" for name in names)
        x, _ = model.encoder(tokens, features_only=True, first_only=first)
        text = tokens.ne(self.padding)
        return [
            row
            for piece in batch
            for row in heads.scores(self.adapters[piece.name].head, x[piece.rows], text[piece.rows])
            .float()
            .unbind()
        ]

"""One frozen model, many adapters: each row of a batch goes through the modules of its adapter.

An adapter is injected as for training, into a copy of the model's modules that shares the base's
tensors; the modules in which copy and base differ are kept. Where one belongs, a ``Switch`` stands
in the base (``switches.py``): it cuts a batch, whose rows are sorted by adapter, and hands each
piece to the module of its adapter, or to the base's own. So it works for any method, those to come
among them, and each row meets the modules that it would meet if its adapter were alone.

Shape letters: B batch, T tokens, C model dim.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fairseq_peft.errors import InputError
from fairseq_peft.models import heads
from fairseq_peft.serving.switches import PrefixSwitch, PromptSwitch, Switch, pieces

#: What the encoder reads without calling the module that holds it.
UNSHARED = "embed_positions"


@dataclass
class Adapter:
    """What one adapter brings.

    Attributes:
        parts: path in the model -> module.
        head: features (B, 1, C) -> logits (B, classes).
    """

    parts: dict[str, nn.Module]
    head: nn.Module

    @property
    def num_reserved(self) -> int:
        """Positions before the text, without those of a prompt."""
        prefix = next((p for path, p in self.parts.items() if path.endswith(".prefix")), None)
        return 0 if prefix is None else prefix.num_reserved


class SharedBase:
    """A model in eval mode and its adapters.

    Args:
        model: a model of this plugin.
        root: path of its encoder (``Family.root``).
    """

    def __init__(self, model: nn.Module, root: str):
        self.model = model.eval().requires_grad_(False)
        self.root = root
        self.padding = model.encoder.dictionary.pad()
        self.adapters = {}
        self._batch = []
        self._shared = [model.encoder.dictionary, *model.parameters(), *model.buffers()]
        self._plain = self._copy(model)  # never gets a switch, and so no other adapter's tensors

    def add(self, name: str, build: Callable) -> None:
        """Add an adapter.

        Args:
            name: what rows call it.
            build: is given a copy of the model whose tensors are the base's, changes it as its
                method does, and returns its head. Of what it changes in place it makes copies.

        Raises:
            InputError: the adapter changes what cannot differ within a batch.
        """
        own = self._copy(self._plain)
        head = build(own).eval().requires_grad_(False)
        own.eval().requires_grad_(False)
        parts = changed(self._plain, own)
        for path in parts:
            if path.endswith(UNSHARED):
                raise InputError(
                    f"The adapter {name!r} trains {path}, which rows of a batch cannot have of "
                    "their own. Load it alone: Classifier.load(base, folder)."
                )
        self.adapters[name] = Adapter(parts, head)
        for path, part in parts.items():
            self._switch(path).parts[name] = part

    def _copy(self, model):
        """The modules once more, around the same tensors."""
        return copy.deepcopy(model, {id(value): value for value in self._shared})

    def remove(self, name: str) -> None:
        """Remove an adapter; a place that no adapter needs is the base's own again."""
        for path in self.adapters.pop(name).parts:
            switch = self.model.get_submodule(path)
            del switch.parts[name]
            if not switch.parts:
                for hook in getattr(switch, "hooks", ()):
                    hook.remove()
                _put(self.model, path, switch.base)

    def logits(self, tokens: torch.Tensor, names: Sequence[str]) -> list[torch.Tensor]:
        """tokens (B, T), names of B adapters -> for each row its logits (classes,)."""
        found = [None] * len(names)
        reserved = [self.adapters[name].num_reserved for name in names]
        for number in sorted(set(reserved)):
            order = [i for i, own in enumerate(reserved) if own == number]
            order.sort(key=names.__getitem__)
            rows = tokens[order]
            if len(order) < len(names):  # the longest row may be among the others
                rows = rows[:, : int(rows.ne(self.padding).sum(1).max())]
            for i, logits in zip(order, self._forward(rows, [names[i] for i in order], number)):
                found[i] = logits
        return found

    def _forward(self, tokens, names, num_reserved):
        self._batch[:] = pieces(names)
        prefix = self.model.get_submodule(self.root).prefix
        if isinstance(prefix, PrefixSwitch):
            prefix.num_reserved = num_reserved
        first = all(self.adapters[name].head.pooler == "first" for name in names)
        x, _ = self.model.encoder(tokens, features_only=True, first_only=first)
        text = tokens.ne(self.padding)
        return [
            row
            for piece in self._batch
            for row in heads.scores(self.adapters[piece.name].head, x[piece.rows], text[piece.rows])
            .float()
            .unbind()
        ]

    def _switch(self, path):
        """The switch at a path, put there if it is the first adapter's."""
        parent, _, child = path.rpartition(".")
        base = getattr(self.model.get_submodule(parent), child)
        if isinstance(base, Switch):
            return base
        if path == f"{self.root}.soft_prompt":
            switch = PromptSwitch(base, self._batch)
        elif path == f"{self.root}.prefix":
            layers = self.model.get_submodule(self.root).layers
            switch = PrefixSwitch(base, self._batch, layers)
        else:
            switch = Switch(base, self._batch)
        _put(self.model, path, switch)
        return switch


def changed(base: nn.Module, own: nn.Module, path: str = "") -> dict[str, nn.Module]:
    """Path -> module of ``own``, for the outermost modules that differ from those of ``base`` in
    more than what is inside of them: of another class, with hooks, or with other tensors.
    """
    if own is None or base is None:
        return {} if own is base else {path: own}
    mine = own._parameters.items() | own._buffers.items()
    if (
        type(own) is not type(base)
        or own._forward_hooks.keys() != base._forward_hooks.keys()
        or any(getattr(base, name, None) is not tensor for name, tensor in mine)
    ):
        return {path: own}
    found = {}
    for name, child in own._modules.items():
        if name == "classification_heads":
            continue
        inner = f"{path}.{name}" if path else name
        found.update(changed(getattr(base, name, None), child, inner))
    return found


def _put(model, path, module):
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, module)

"""One frozen model, many adapters: each row of a batch goes through the modules of its adapter.

An adapter is injected as for training, into a copy of the model's modules that shares the base's
tensors; the modules in which copy and base differ are kept. Where one belongs, a ``Switch`` stands
in the base (``switches.py``): it cuts a batch, whose rows are sorted by adapter, and hands each
piece to the module of its adapter, or to the base's own. What cannot be cut like this (a new
attention, a table that is read and not called) does no harm: the rows of such an adapter go through
its own copy, in a pass of their own. So it works for any method, those to come among them, and each
row meets the modules that it would meet if its adapter were alone.

Shape letters: B batch, T tokens, C model dim.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fairseq_peft.models import heads
from fairseq_peft.serving.switches import PrefixSwitch, PromptSwitch, Switch, pieces

#: Modules that call their children one after the other, a new one, too.
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


@dataclass
class Adapter:
    """What one adapter brings.

    Attributes:
        parts: path in the model -> module; none if it has a model.
        head: features (B, 1, C) -> logits (B, classes).
        model: its own copy of the model, where a part cannot be cut by rows; else None.
    """

    parts: dict[str, nn.Module]
    head: nn.Module
    model: nn.Module | None = None

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
        self._by_rows = by_rows(self._plain, root)

    def add(self, name: str, build: Callable) -> None:
        """Add an adapter.

        Args:
            name: what rows call it.
            build: is given a copy of the model whose tensors are the base's, changes it as its
                method does, and returns its head. Of what it changes in place it makes copies.
        """
        own = self._copy(self._plain)
        head = build(own).eval().requires_grad_(False)
        own.eval().requires_grad_(False)
        base = self._plain.get_submodule(self.root)
        parts = changed(base, own.get_submodule(self.root), self.root)
        if not all(self._has_room(path) for path in parts):
            self.adapters[name] = Adapter({}, head, own)
            return
        self.adapters[name] = Adapter(parts, head)
        for path, part in parts.items():
            self._switch(path).parts[name] = part

    def _has_room(self, path) -> bool:
        """Whether a switch can stand there: the base calls it by rows, and none is around or within
        it."""
        taken = {place for adapter in self.adapters.values() for place in adapter.parts}
        return path in self._by_rows and not any(
            place.startswith(f"{path}.") or path.startswith(f"{place}.") for place in taken
        )

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
        self._batch[:] = pieces(names)
        model = self.adapters[names[0]].model
        if model is None:
            model = self.model
            prefix = model.get_submodule(self.root).prefix
            if isinstance(prefix, PrefixSwitch):
                prefix.num_reserved = num_reserved
        first = all(self.adapters[name].head.pooler == "first" for name in names)
        x, _ = model.encoder(tokens, features_only=True, first_only=first)
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


def changed(base: nn.Module, own: nn.Module, path: str) -> dict[str, nn.Module]:
    """Path -> module of ``own``, for the outermost modules that differ from those of ``base`` in
    more than what is inside of them: of another class, with hooks, or with other tensors.

    A module where ``base`` has neither module nor slot is no difference by itself: only what the
    method put elsewhere knows of it (Compacter's rule, which all layers share).
    """
    if own is base:  # an empty slot
        return {}
    if own is None or base is None or _differ(base, own):
        return {path: own}
    found = {}
    for name, child in own._modules.items():
        if hasattr(base, name):
            found.update(changed(getattr(base, name), child, f"{path}.{name}"))
    return found


def _differ(base, own) -> bool:
    """Whether two modules differ in themselves."""
    tensors, theirs = ({**m._parameters, **m._buffers} for m in (own, base))
    lost, new = base._modules.keys() - own._modules.keys(), own._modules.keys() - base._modules
    return (
        type(own) is not type(base)
        or "forward" in vars(own)
        or own._forward_hooks.keys() != base._forward_hooks.keys()
        or own._forward_pre_hooks.keys() != base._forward_pre_hooks.keys()
        or tensors.keys() != theirs.keys()
        or any(tensors[name] is not theirs[name] for name in theirs)
        or bool(lost or (new and isinstance(base, CONTAINERS)))
    )


@torch.no_grad()
def by_rows(model: nn.Module, root: str) -> set[str]:
    """The paths below ``root`` where a switch can stand: slots, and modules that the model calls
    with tensors alone, and that answer with one, a row for a row. Found in a pass of three rows."""
    num_rows, found, hooks = 3, set(), []

    def is_rows(value):
        return isinstance(value, torch.Tensor) and value.dim() > 1 and len(value) == num_rows

    for path, module in model.get_submodule(root).named_modules(prefix=root):
        found.update(f"{path}.{name}" for name, value in vars(module).items() if value is None)

        def look(module, inputs, named, output, path=path):
            if not named and all(map(is_rows, (*inputs, output))):
                found.add(path)

        hooks.append(module.register_forward_hook(look, with_kwargs=True))
    device = next(model.parameters()).device
    tokens = torch.full((num_rows, 2), model.encoder.dictionary.bos(), device=device)
    model.encoder(tokens, features_only=True)
    for hook in hooks:
        hook.remove()
    return found


def _put(model, path, module):
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, module)

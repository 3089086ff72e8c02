"""A model with switches: members come with the modules in which they differ from it, and go."""

from __future__ import annotations

from torch import nn

from fairseq_peft.layers.attention import Attend
from fairseq_peft.sharing.differences import by_rows
from fairseq_peft.sharing.switches import AttentionSwitch, PrefixSwitch, PromptSwitch, Switch


class Switched:
    """A model, and the switches in it.

    Attributes:
        model: in eval mode.
        root: path of its encoder (``Family.root``).
        batch: the pieces of the next pass (``rows.Piece``), which all switches look at.
    """

    def __init__(self, model: nn.Module, root: str):
        self.model = model
        self.root = root
        self.batch = []
        self._by_rows = by_rows(model, root)
        self._paths = {}

    @property
    def encoder(self) -> nn.Module:
        return self.model.get_submodule(self.root)

    @property
    def paths(self) -> set[str]:
        """Where the switches are."""
        return {path for paths in self._paths.values() for path in paths}

    def has_room(self, parts) -> bool:
        """Whether switches can stand at all paths of ``parts``: the model calls what is there by
        rows, and no switch would be within another."""
        return all(
            path in self._by_rows
            and not any(
                place.startswith(f"{path}.") or path.startswith(f"{place}.") for place in self.paths
            )
            for path in parts
        )

    def add(self, name, parts: dict[str, nn.Module | None]) -> None:
        """Let the rows of ``name`` meet these modules (path -> module)."""
        self._paths[name] = list(parts)
        for path, part in parts.items():
            self._switch(path).parts[name] = part

    def remove(self, name) -> None:
        """Take its modules out; a place that nobody needs is the model's own again."""
        for path in self._paths.pop(name):
            switch = self.model.get_submodule(path)
            del switch.parts[name]
            if not switch.parts:
                self._put(path, switch.base)

    def reserve(self, num_reserved: int) -> None:
        """Say how many positions prefixes take from the text in the next pass."""
        if isinstance(self.encoder.prefix, PrefixSwitch):
            self.encoder.prefix.num_reserved = num_reserved

    def _switch(self, path):
        """The switch at a path, put there if it is the first member's."""
        parent, _, child = path.rpartition(".")
        base = getattr(self.model.get_submodule(parent), child)
        if isinstance(base, Switch):
            return base
        if path == f"{self.root}.soft_prompt":
            switch = PromptSwitch(base, self.batch)
        elif path == f"{self.root}.prefix":
            switch = PrefixSwitch(base, self.batch, len(self.encoder.layers))
        elif isinstance(base, Attend):
            switch = AttentionSwitch(base, self.batch)
        else:
            switch = Switch(base, self.batch)
        self._put(path, switch)
        return switch

    def _put(self, path, module):
        parent, _, child = path.rpartition(".")
        setattr(self.model.get_submodule(parent), child, module)

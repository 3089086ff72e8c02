"""A model with switches: members come with the modules in which they differ from it, and go."""

from __future__ import annotations

from torch import nn

from fairseq_peft.layers.attention import Attend
from fairseq_peft.layers.dropout import Dropout
from fairseq_peft.sharing.differences import by_rows
from fairseq_peft.sharing.rows import Batch
from fairseq_peft.sharing.switches import (
    AttentionSwitch,
    DropoutSwitch,
    PrefixSwitch,
    PromptSwitch,
    Switch,
)


class Switched:
    """A model, and the switches in it.

    Attributes:
        model: in eval mode.
        root: path of its encoder (``Family.root``).
        batch: the pieces of the next pass, which all switches look at.
        switches: path -> switch.
    """

    def __init__(self, model: nn.Module, root: str):
        self.model = model
        self.root = root
        self.batch = Batch()
        self.switches = {}
        self._by_rows = by_rows(model, root)
        self._paths = {}

    @property
    def encoder(self) -> nn.Module:
        return self.model.get_submodule(self.root)

    def has_room(self, parts) -> bool:
        """Whether switches can stand at all paths of ``parts``: the model calls what is there by
        rows, and no switch would be within another."""
        return all(
            path in self._by_rows
            and not any(
                place.startswith(f"{path}.") or path.startswith(f"{place}.")
                for place in self.switches
            )
            for path in parts
        )

    def add(self, name, parts: dict[str, nn.Module | None]) -> None:
        """Let the rows of ``name`` meet these modules (path -> module)."""
        self._paths[name] = list(parts)
        for path, part in parts.items():
            if path not in self.switches:
                parent, _, child = path.rpartition(".")
                base = getattr(self.model.get_submodule(parent), child)
                self.switches[path] = self._made(path, base)
                self._put(path, self.switches[path])
            self.switches[path].parts[name] = part

    def remove(self, name) -> None:
        """Take its modules out; a place that nobody needs is the model's own again."""
        for path in self._paths.pop(name):
            del self.switches[path].parts[name]
            if not self.switches[path].parts:
                self._put(path, self.switches.pop(path).base)

    def reserve(self, num_reserved: int) -> None:
        """Say how many positions prefixes take from the text in the next pass."""
        if isinstance(self.encoder.prefix, PrefixSwitch):
            self.encoder.prefix.num_reserved = num_reserved

    def _made(self, path, base) -> Switch:
        """A switch for this path, where ``base`` was."""
        if path == f"{self.root}.soft_prompt":
            return PromptSwitch(base, self.batch)
        if path == f"{self.root}.prefix":
            return PrefixSwitch(base, self.batch, len(self.encoder.layers))
        if isinstance(base, Attend):
            return AttentionSwitch(base, self.batch)
        if isinstance(base, Dropout):
            return DropoutSwitch(base, self.batch)
        return Switch(base, self.batch)

    def _put(self, path, module):
        parent, _, child = path.rpartition(".")
        setattr(self.model.get_submodule(parent), child, module)

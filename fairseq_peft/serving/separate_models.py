"""One frozen model, many adapters, as ``shared_base``, for models whose rows no switch cuts, and
for compiled layers, whose graphs know no switch: each adapter is a model of its own around the
base's tensors, and its rows are a pass of their own.

Shape letters: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from fairseq_peft.sharing.differences import copied


class SeparateModels:
    """A model in eval mode and its adapters; as ``SharedBase``."""

    def __init__(self, model: nn.Module):
        self.model = model.eval().requires_grad_(False)
        self.padding = model.dictionary.pad()
        self.adapters = {}

    def add(self, name: str, build: Callable) -> None:
        """Add an adapter; see ``SharedBase.add``."""
        own = copied(self.model)
        head = build(own)
        heads = own.classification_heads.items()
        (head_name,) = [each for each, module in heads if module is head]
        self.adapters[name] = own.eval().requires_grad_(False), head_name

    def remove(self, name: str) -> None:
        """Remove an adapter."""
        del self.adapters[name]

    def halves(self):
        """What has a ``half_dtype``."""
        for model in (self.model, *(model for model, _ in self.adapters.values())):
            yield from (module for module in model.modules() if hasattr(module, "half_dtype"))

    def logits(self, tokens: torch.Tensor, names: Sequence[str]) -> list[torch.Tensor]:
        """tokens (B, T), names of B adapters -> for each row its logits (classes,)."""
        found = [None] * len(names)
        for name in sorted(set(names)):
            rows = [i for i, other in enumerate(names) if other == name]
            own = tokens[rows]
            own = own[:, : int(own.ne(self.padding).sum(1).max())]
            model, head = self.adapters[name]
            logits, _ = model(own, classification_head_name=head)
            for i, row in zip(rows, logits.float()):
                found[i] = row
        return found

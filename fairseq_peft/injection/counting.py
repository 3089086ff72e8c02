"""How many parameters train: the numbers, and the table that a run logs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Counts:
    """How many parameters there are, and train; tied tensors count once."""

    method: int
    head: int
    total: int

    @property
    def trainable(self) -> int:
        return self.method + self.head


def count(model: nn.Module, head_prefix: str) -> Counts:
    """Count the model's parameters; those under ``head_prefix`` are the head's."""
    method = head = total = 0
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        if parameter.requires_grad and name.startswith(head_prefix):
            head += parameter.numel()
        elif parameter.requires_grad:
            method += parameter.numel()
    return Counts(method, head, total)


def describe(model: nn.Module, head_prefix: str, label: str, max_rows: int = 40) -> Iterable[str]:
    """The table of what trains, line by line: tensors, counts, per cent of the model and fp32
    bytes, with and without the head."""
    counts = count(model, head_prefix)
    rows = [
        (name, tuple(parameter.shape), parameter.numel())
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
    width = max([len(name) for name, _, _ in rows[:max_rows]] + [28])
    yield f"trainable tensors, {label}"
    for name, shape, numel in rows[:max_rows]:
        yield f"  {name:<{width}}  {str(shape):>14}  {numel:>12,}"
    if len(rows) > max_rows:
        rest = sum(numel for _, _, numel in rows[max_rows:])
        more = f"and {len(rows) - max_rows} more tensors"
        yield f"  {more:<{width}}  {'':>14}  {rest:>12,}"
    for part, numel in [
        ("without the head", counts.method),
        ("head", counts.head),
        ("with the head", counts.trainable),
    ]:
        share = f"{100 * numel / counts.total:8.4f} % of {counts.total:,}"
        yield f"  {part:<{width}}  {'':>14}  {numel:>12,}  {share}; {4 * numel:,} bytes"

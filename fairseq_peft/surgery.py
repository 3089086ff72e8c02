"""Find targets, swap a module, freeze, count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from fairseq_peft.errors import InputError


def split_targets(targets: str) -> list[str]:
    """``"q_proj, v_proj"`` as a list, in order and without repeats."""
    return list(dict.fromkeys(part.strip() for part in targets.split(",") if part.strip()))


def match(model: nn.Module, family, targets: str) -> list[tuple[str, nn.Linear]]:
    """The linear maps that ``targets`` names, in every layer, as (dotted name, module).

    Raises:
        InputError: a target names no linear map of the model.
    """
    wanted = split_targets(targets)
    unknown = [target for target in wanted if target not in family.linears]
    if unknown or not wanted:
        raise InputError(
            f"--peft-targets {','.join(unknown) or targets!r} matches no module. "
            f"Modules here: {', '.join(family.linears)}. Try q_proj,v_proj."
        )
    layers = model.get_submodule(family.layers)
    return [
        (
            f"{family.layers}.{index}.{family.linears[target]}",
            layer.get_submodule(family.linears[target]),
        )
        for index, layer in enumerate(layers)
        for target in wanted
    ]


def swap(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` where the module called ``name`` is."""
    parent, _, child = name.rpartition(".")
    module.train(model.get_submodule(name).training)
    setattr(model.get_submodule(parent), child, module)


def freeze(model: nn.Module, trains) -> None:
    """Let exactly the parameters train for which ``trains(name)`` holds."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains(name))


@dataclass(frozen=True)
class Counts:
    """How many parameters train. Tied tensors count once; ``task_bytes`` is what a task must keep
    (fp32)."""

    method: int
    head: int
    total: int

    @property
    def trainable(self) -> int:
        return self.method + self.head

    @property
    def task_bytes(self) -> int:
        return 4 * self.trainable


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
    """The table of what trains, line by line: tensors, counts, per cent of the model, with and
    without the head."""
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
        share = 100 * numel / counts.total
        yield f"  {part:<{width}}  {'':>14}  {numel:>12,}  {share:8.4f} % of {counts.total:,}"

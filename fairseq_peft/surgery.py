"""Find targets, swap a module, freeze, count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from fairseq_peft import targets


def linears(model: nn.Module, family) -> dict[str, nn.Linear]:
    """Name below the family's root -> linear map, layer by layer."""
    return {
        f"layers.{index}.{path}": layer.get_submodule(path)
        for index, layer in enumerate(layers(model, family))
        for path in family.linears
    }


def layers(model: nn.Module, family) -> list[nn.Module]:
    """The layers of the model, from the first to the last."""
    return list(model.get_submodule(family.root).layers)


def embeddings(model: nn.Module, family) -> dict[str, nn.Embedding]:
    """Name below the family's root -> embedding that methods may change."""
    return {family.embedding: model.get_submodule(f"{family.root}.{family.embedding}")}


def match(
    modules: dict[str, nn.Module], words: str, chosen_layers: str = "", flag="--peft-targets"
):
    """Those of ``modules`` (name -> module) that ``words`` means (``targets.select``).

    Raises:
        InputError: a target matches nothing.
    """
    names = targets.select(modules, words, chosen_layers, flag)
    return {name: modules[name] for name in names}


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of distributed training, which hide its own methods."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model


def swap(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` where the module called ``name`` (its whole dotted path) is."""
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

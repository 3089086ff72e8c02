"""Find targets, swap a module, freeze, count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from torch import nn

from fairseq_peft.errors import InputError
from fairseq_peft.injection import targets


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


def tensors(model: nn.Module, family) -> dict[str, nn.Parameter]:
    """Name below the family's root -> base tensor of the body: embeddings, linear maps and layer
    norms, and nothing that methods added."""
    root = model.get_submodule(family.root)
    parts = {
        name: child
        for name, child in root.named_children()
        if name.startswith("embed") or "norm" in name
    }
    maps = linears(model, family)
    for index, layer in enumerate(layers(model, family)):
        within = f"layers.{index}."
        parts.update({name: maps[name] for name in maps if name.startswith(within)})
        parts.update({within + name: m for name, m in layer.named_children() if "norm" in name})
    return {
        f"{part}.{kind}": parameter
        for part, module in parts.items()
        for kind, parameter in module.named_parameters(recurse=False)
        if kind in ("weight", "bias")
    }


def attach(linear: nn.Module, name: str, part: nn.Module) -> None:
    """Make ``part`` the child ``name`` of ``linear``: ``part.before(x)`` replaces what goes in,
    ``part.after(y)`` what comes out. It stays where ``swap`` puts another map."""
    linear.add_module(name, part)
    # By name, not bound to ``part``: the copy of a model must call its own part.
    hooks = (
        linear.register_forward_pre_hook(partial(_before, name)),
        linear.register_forward_hook(partial(_after, name)),
    )
    linear.attached = {**getattr(linear, "attached", {}), name: hooks}


def detach(linear: nn.Module, name: str) -> None:
    """Undo ``attach``."""
    for hook in linear.attached.pop(name):
        hook.remove()
    delattr(linear, name)


def _before(name, linear, inputs):
    return (getattr(linear, name).before(inputs[0]), *inputs[1:])


def _after(name, linear, inputs, output):
    return getattr(linear, name).after(output)


def swap(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` where the module called ``name`` (its whole dotted path) is; what is attached
    there goes over to it."""
    parent, _, child = name.rpartition(".")
    old = model.get_submodule(name)
    module.train(old.training)
    for part in getattr(old, "attached", ()):
        attach(module, part, getattr(old, part))
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


def decay_learning_rates(model: nn.Module, family, decay: float) -> None:
    """Learning rates that fall from the last layer to the first: ``decay`` times that of the layer
    above, and ``decay`` times the first layer's for the embeddings; heads keep the full rate.

    Sets ``lr_scale`` of the body's parameters, those of methods too, on top of their own.
    Source: Howard and Ruder 2018, arXiv:1801.06146, section 3.2.

    Raises:
        InputError: ``decay`` is not in (0, 1].
    """
    if not 0 < decay <= 1:
        raise InputError(
            f"--layer-lr-decay {decay} is not in (0, 1]: give such as 0.9, or 1 for one learning "
            "rate."
        )
    if decay == 1:
        return
    num_layers = len(layers(model, family))
    prefix = "layers."
    for name, parameter in model.get_submodule(family.root).named_parameters():
        depth = int(name[len(prefix) :].split(".")[0]) + 1 if name.startswith(prefix) else 0
        scale = decay ** (num_layers - depth)
        parameter.lr_scale = getattr(parameter, "lr_scale", 1.0) * scale


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

"""Find what methods change, swap a module, attach to one, freeze."""

from __future__ import annotations

from functools import partial

from torch import nn

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
    ``part.after(y)`` what comes out.

    Hooks do it, not a module with a ``forward`` of its own around ``linear``, because ``linear``
    may be another method's: with ``--peft lora,ia3`` it is a ``LoRALinear``, whose tensors must
    stay ``fc2.lora_A`` and not become ``fc2.inner.lora_A``, and which must be found by its class.
    ``swap`` takes what is attached over to the map that it puts there.
    """
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

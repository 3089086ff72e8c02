"""Find what methods change, swap a module, attach to one, freeze."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from torch import nn

from fairseq_peft.errors import InputError
from fairseq_peft.injection import targets
from fairseq_peft.injection.family import Family, Stack, join


class Place(NamedTuple):
    """A layer of a model, and where it is: ``name`` is told below the family's root."""

    stack: Stack
    number: int
    name: str
    layer: nn.Module


def places(model: nn.Module, family: Family) -> list[Place]:
    """Every layer, stack by stack, from the first to the last."""
    found = []
    for stack in family.stacks:
        name = join(stack.path, stack.layers)
        layers = model.get_submodule(family.path(name))
        found += [Place(stack, n, f"{name}.{n}", layer) for n, layer in enumerate(layers)]
    return found


def linears(model: nn.Module, family: Family) -> dict[str, nn.Linear]:
    """Name below the family's root -> linear map, layer by layer."""
    return {
        f"{place.name}.{path}": place.layer.get_submodule(path)
        for place in places(model, family)
        for path in place.stack.linears()
    }


def num_layers(model: nn.Module, family: Family) -> int:
    """The layers of the only stack.

    Raises:
        InputError: there are several, so that "the last layer" means nothing.
    """
    if len(family.stacks) > 1:
        names = " and ".join(stack.path for stack in family.stacks)
        raise InputError(
            f"This model has several stacks of layers ({names}), and the method is defined for "
            "one. Choose another method."
        )
    return len(places(model, family))


def embeddings(model: nn.Module, family: Family) -> dict[str, nn.Embedding]:
    """Name below the family's root -> embedding that methods may change; one that several stacks
    share goes by its name in the first."""
    found = {}
    for stack in family.stacks:
        name = join(stack.path, stack.embedding)
        module = model.get_submodule(family.path(name)) if stack.embedding else None
        if module is not None and all(module is not other for other in found.values()):
            found[name] = module
    return found


def entrances(model: nn.Module, family: Family, slot: str) -> list[tuple[Stack, nn.Module]]:
    """The stacks with the slot ``soft_prompt`` or ``prefix``, each with the module that has it.

    Raises:
        InputError: no stack has it.
    """
    found = [
        (stack, model.get_submodule(family.path(stack.path)))
        for stack in family.stacks
        if slot in stack.entrances
    ]
    if found:
        return found
    raise InputError(
        f"This model has no place for a {slot.replace('_', ' ')}: nothing there would read it. "
        "Choose another method."
    )


def num_attentions(owner: nn.Module, stack: Stack) -> int:
    """The blocks of attention in the layers of ``owner``, which ``stack`` describes."""
    blocks = [block for block in stack.blocks if "attention" in block.name]
    return len(owner.get_submodule(stack.layers)) * len(blocks)


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


def tensors(model: nn.Module, family: Family) -> dict[str, nn.Parameter]:
    """Name below the family's root -> base tensor of the body: embeddings, linear maps and layer
    norms, and nothing that methods added."""
    parts = embeddings(model, family)
    for stack in family.stacks:
        owner = model.get_submodule(family.path(stack.path))
        parts.update((join(stack.path, name), getattr(owner, name, None)) for name in stack.others)
    maps = linears(model, family)
    for place in places(model, family):
        within = f"{place.name}."
        parts.update({name: maps[name] for name in maps if name.startswith(within)})
        for block in place.stack.blocks:
            parts[within + block.norm] = place.layer.get_submodule(block.norm)
    return {
        f"{part}.{kind}": parameter
        for part, module in parts.items()
        if module is not None
        for kind, parameter in module.named_parameters(recurse=False)
        if kind in ("weight", "bias")
    }


def fill(owner: nn.Module, slot: str, part: nn.Module) -> None:
    """Put ``part`` into a slot: an attribute of ``owner`` that its forward calls unless it is None.

    Raises:
        InputError: there is no such slot, so nothing would call ``part``.
    """
    if not hasattr(owner, slot):
        raise InputError(
            f"{type(owner).__name__} has no slot {slot}: what the method puts there would be "
            "ignored. Choose another method or placement."
        )
    setattr(owner, slot, part)


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
    """Put ``module`` where the module called ``name`` (its whole dotted path) is, and wherever else
    that one is used (a tied embedding); what is attached there goes over to it."""
    old = model.get_submodule(name)
    module.train(old.training)
    for part in getattr(old, "attached", ()):
        attach(module, part, getattr(old, part))
    for parent in list(model.modules()):
        for child in [child for child, other in parent.named_children() if other is old]:
            setattr(parent, child, module)


def freeze(model: nn.Module, trains) -> None:
    """Let exactly the parameters train for which ``trains(name)`` holds."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains(name))

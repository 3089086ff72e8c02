"""Where two models of one base differ, module by module, and which of these places a switch fits.

Nothing here knows a method, or where methods put things: whatever differs is found.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from fairseq_peft.layers.attention import Attend
from fairseq_peft.layers.settings import settings

#: Modules that call their children one after the other, a new one, too.
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def copied(model: nn.Module) -> nn.Module:
    """The modules once more, around the same tensors."""
    shared = [model.encoder.dictionary, *model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(value): value for value in shared})


def differences(base: nn.Module, own: nn.Module, root: str) -> dict[str, nn.Module | None]:
    """Path in the model -> module of ``own``, for the outermost modules below ``root`` that differ
    from those of ``base`` in more than what is inside of them: of another class, with hooks, with
    other tensors, or other settings (``layers/settings.py``).

    A module where ``base`` has neither module nor slot is no difference by itself: only what the
    method put elsewhere knows of it (Compacter's rule, which all layers share). With a prefix the
    attentions that read it differ, too.
    """
    found = _changed(base.get_submodule(root), own.get_submodule(root), root)
    return {**found, **attentions(own, root)} if f"{root}.prefix" in found else found


def attentions(model: nn.Module, root: str) -> dict[str, nn.Module]:
    """Path -> attention without its projections, of every layer."""
    modules = model.get_submodule(root).named_modules(prefix=root)
    return {path: module for path, module in modules if isinstance(module, Attend)}


def _changed(base, own, path):
    if own is base:  # an empty slot
        return {}
    if own is None or base is None or _differ(base, own):
        return {path: own}
    found = {}
    for name, child in own._modules.items():
        if hasattr(base, name):
            found.update(_changed(getattr(base, name), child, f"{path}.{name}"))
    for name in base._modules.keys() - own._modules.keys():  # a slot that only base has filled
        if hasattr(own, name):
            found.update(_changed(base._modules[name], getattr(own, name), f"{path}.{name}"))
    return found


def _differ(base, own) -> bool:
    """Whether two modules differ in themselves."""
    tensors, theirs = ({**m._parameters, **m._buffers} for m in (own, base))
    return (
        type(own) is not type(base)
        or "forward" in vars(own)
        or settings(own) != settings(base)
        or own._forward_hooks.keys() != base._forward_hooks.keys()
        or own._forward_pre_hooks.keys() != base._forward_pre_hooks.keys()
        or tensors.keys() != theirs.keys()
        or any(tensors[name] is not theirs[name] for name in theirs)
        or (isinstance(base, CONTAINERS) and own._modules.keys() != base._modules.keys())
    )


@torch.no_grad()
def by_rows(model: nn.Module, root: str) -> set[str]:
    """The paths below ``root`` where a switch can stand: slots, attention, and modules that the
    model calls with rows, and that answer with rows. Found in a pass of three rows, for which the
    model has to be in eval mode."""
    num_rows, hooks = 3, []
    found = {f"{root}.soft_prompt", f"{root}.prefix", *attentions(model, root)}

    def is_rows(value):
        return isinstance(value, torch.Tensor) and value.dim() > 1 and len(value) == num_rows

    for path, module in model.get_submodule(root).named_modules(prefix=root):
        found.update(f"{path}.{name}" for name, value in vars(module).items() if value is None)

        def look(module, inputs, named, output, path=path):
            given = [value for value in inputs if not isinstance(value, (nn.Module, type(None)))]
            if not named and all(map(is_rows, (*given, output))):
                found.add(path)

        hooks.append(module.register_forward_hook(look, with_kwargs=True))
    device = next(model.parameters()).device
    tokens = torch.full((num_rows, 2), model.encoder.dictionary.bos(), device=device)
    model.encoder(tokens, features_only=True)
    for hook in hooks:
        hook.remove()
    return found

"""Linear maps that are no ``nn.Linear``: turned into some, so that methods need not know.

``unpack`` puts an ``nn.Linear`` where a family describes a ``Map``; a map that fuses several gets
one for each, which a method may then adapt by itself. What a model computes stays, and so do the
keys and shapes of its state: it is saved as the base was, and loads from it.

Shape letters: H heads, D size of a head, n parts of a fused map.
"""

from __future__ import annotations

from functools import partial
from operator import attrgetter

import torch
from torch import nn

from fairseq_peft.injection import surgery
from fairseq_peft.injection.family import Map


class Fused(nn.Module):
    """Linear maps of one input, each a child by its name, with their outputs side by side.

    Shapes: x (..., in) -> (..., n H D): part by part, or, with ``num_heads``, head by head.
    """

    def __init__(self, parts: dict[str, nn.Linear], num_heads: int | None):
        super().__init__()
        for name, linear in parts.items():
            self.add_module(name, linear)
        self.num_heads = num_heads

    def forward(self, x):
        outputs = torch.stack([part(x) for part in self.children()], dim=-2)  # (..., n, H D)
        if self.num_heads is not None:
            outputs = outputs.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)
        return outputs.flatten(x.dim() - 1)


def split(tensor: torch.Tensor, number: int, num_heads: int | None) -> list[torch.Tensor]:
    """The rows of each part of a fused weight (out, in) or bias (out,)."""
    if num_heads is None:
        return list(tensor.chunk(number))
    heads = tensor.unflatten(0, (num_heads, number, -1))  # (H, n, D, ...)
    return [part.flatten(0, 1) for part in heads.unbind(1)]


def merge(parts: list[torch.Tensor], num_heads: int | None) -> torch.Tensor:
    """What ``split`` has split."""
    if num_heads is None:
        return torch.cat(parts)
    return torch.stack([p.unflatten(0, (num_heads, -1)) for p in parts], 1).flatten(0, 2)


def unpack(model: nn.Module, family) -> None:
    """Turn the maps that ``family`` describes by a ``Map`` into ``nn.Linear``, in place."""
    found = []
    for place in surgery.places(model, family):
        for described in [m for b in place.stack.blocks for m in b.maps if isinstance(m, Map)]:
            num_heads = attrgetter(described.heads)(place.layer) if described.heads else None
            name = family.path(f"{place.name}.{described.path}")
            surgery.swap(model, name, _unpacked(model.get_submodule(name), described, num_heads))
            found.append((name, described, num_heads))
    if found:
        model._register_state_dict_hook(partial(_pack_state, found))
        model._register_load_state_dict_pre_hook(partial(_unpack_state, found))


def _unpacked(base, described, num_heads):
    weight = base.weight.detach()
    weight = weight.t() if described.transposed else weight
    weights, biases = [weight], [base.bias]
    if described.parts:
        weights = split(weight, len(described.parts), num_heads)
        biases = [None] * len(weights)
        if base.bias is not None:
            biases = split(base.bias.detach(), len(weights), num_heads)
    linears = []
    for weight, bias in zip(weights, biases):
        linear = nn.Linear(*reversed(weight.shape), bias=bias is not None, device="meta")
        linear.weight = nn.Parameter(weight.contiguous(), base.weight.requires_grad)
        if bias is not None:
            linear.bias = nn.Parameter(bias.contiguous(), base.bias.requires_grad)
        linears.append(linear)
    return Fused(dict(zip(described.parts, linears)), num_heads) if described.parts else linears[0]


def _pack_state(found, module, state, prefix, metadata):
    """The state as the base has it, from that of the unpacked maps."""
    for name, described, num_heads in found:
        for kind in ("weight", "bias"):
            key = f"{prefix}{name}.{kind}"
            keys = [f"{prefix}{name}.{part}.{kind}" for part in described.parts] or [key]
            if keys[0] in state:
                tensors = [state.pop(k) for k in keys]
                tensor = merge(tensors, num_heads) if described.parts else tensors[0]
                transposed = described.transposed and kind == "weight"
                state[key] = tensor.t() if transposed else tensor


def _unpack_state(found, state, prefix, *unused):
    """What ``_pack_state`` has undone, before a state is loaded."""
    for name, described, num_heads in found:
        for kind in ("weight", "bias"):
            key = f"{prefix}{name}.{kind}"
            if key in state:
                tensor = state.pop(key)
                tensor = tensor.t() if described.transposed and kind == "weight" else tensor
                keys, tensors = [key], [tensor]
                if described.parts:
                    keys = [f"{prefix}{name}.{part}.{kind}" for part in described.parts]
                    tensors = split(tensor, len(keys), num_heads)
                state.update(zip(keys, tensors))

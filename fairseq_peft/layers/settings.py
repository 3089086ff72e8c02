"""What a module computes by besides its tensors: sizes, precision, scales, activations.

Two modules of one class with the same tensors, children and settings compute the same.
"""

from __future__ import annotations

import types

import torch
from torch import nn

#: What only training knows: rates of dropout, and whether a module trains at all. Who asks about
#: training looks at them, too.
TRAINING = frozenset({"training", "p", "encoder_layerdrop"})
_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.Size)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
#: What every module has, and fairseq's name for the cache of an attention, which is drawn.
_NO_SETTINGS = frozenset({*vars(nn.Module()), "_incremental_state_id"})


def settings(module: nn.Module) -> frozenset:
    """Its own (name, value), without those of the modules inside. None is nothing: an empty slot,
    layers in fp32 (``half_dtype``)."""
    names = vars(module).keys() - _NO_SETTINGS - TRAINING
    own = ((name, vars(module)[name]) for name in names)
    return frozenset((name, value) for name, value in own if _is_plain(value))


def _is_plain(value) -> bool:
    if isinstance(value, tuple):
        return all(each is None or _is_plain(each) for each in value)
    return isinstance(value, (*_PLAIN, *_FUNCTIONS))

"""Learning rates that fall from the last layer to the first (``--layer-lr-decay``)."""

from __future__ import annotations

from torch import nn

from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery
from fairseq_peft.injection.family import Family


def decay_learning_rates(model: nn.Module, family: Family, decay: float) -> None:
    """Give a layer ``decay`` times the learning rate of the layer above, and the embeddings
    ``decay`` times that of the first layer; each stack by itself. Heads keep the full rate.

    Sets ``lr_scale`` of the body's parameters, those of methods too, on top of their own; it is
    read by ``peft_adamw.py``.
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
    num_layers = {place.stack.path: place.number + 1 for place in surgery.places(model, family)}
    for name, parameter in model.named_parameters():
        stage = family.stage(name)
        if stage is not None:
            path, number = stage
            depth = 0 if number is None else number + 1
            scale = decay ** (num_layers[path] - depth)
            parameter.lr_scale = getattr(parameter, "lr_scale", 1.0) * scale

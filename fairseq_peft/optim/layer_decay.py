"""Learning rates that fall from the last layer to the first (``--layer-lr-decay``)."""

from torch import nn

from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery


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
    num_layers = len(surgery.layers(model, family))
    prefix = "layers."
    for name, parameter in model.get_submodule(family.root).named_parameters():
        depth = int(name[len(prefix) :].split(".")[0]) + 1 if name.startswith(prefix) else 0
        scale = decay ** (num_layers - depth)
        parameter.lr_scale = getattr(parameter, "lr_scale", 1.0) * scale

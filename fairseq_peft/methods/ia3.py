"""IA3: trained vectors that rescale keys, values and the feed-forward block's inner activations.

    y = s * (W x + b)        s (out,)    k_proj, v_proj: the output is scaled
    y = W (s * x) + b        s (in,)     fc2: the input is scaled ("feedforward")

s starts at one, so the start is the base model, bit for bit.
Trainable: out for a map that is scaled on its output, in for one that is scaled on its input; with
the default targets L (2 C + F). Merges: rows of W and b times s, or columns of W times s.

Where the rest is:
    injection/surgery.py  ``attach``: calls ``before`` and ``after`` around a linear map
    injection/targets.py  which maps the knobs mean
    methods/base.py       what a method is, and which of its functions is called when

Paper: Liu et al. 2022, arXiv:2205.05638, section 3.3. Hugging Face PEFT's default on RoBERTa is
``--ia3-targets k_proj,v_proj,out_proj,fc2 --ia3-feedforward out_proj,fc2``.
Shape letters: C model dim, F feed-forward dim, L layers.
"""

from dataclasses import dataclass, field

import torch
from torch import nn

from fairseq_peft.architectures import Count
from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery, targets
from fairseq_peft.methods.base import Method

NONE = "none"


@dataclass
class IA3Config:
    """Knobs of IA3."""

    targets: str = field(
        default="k_proj,v_proj,fc2",
        metadata={
            "help": "linear maps to rescale: ends of names with commas, a regular expression for "
            "whole names, or all-linear (k_proj,v_proj,fc2)"
        },
    )
    feedforward: str = field(
        default="fc2",
        metadata={"help": "those of the targets that are scaled on their input; or none (fc2)"},
    )
    layers: str = field(
        default="",
        metadata={"help": "layers to rescale, counted from 0: 0-2,5 or decoder.0-2 (all)"},
    )


class IA3(nn.Module):
    """``scale`` times the input (in,) or the output (out,) of the linear map it is attached to."""

    def __init__(self, linear: nn.Linear, on_input: bool):
        super().__init__()
        self.on_input = on_input
        size = linear.in_features if on_input else linear.out_features
        self.scale = nn.Parameter(torch.ones(size).to(linear.weight))

    def before(self, x):
        return self._scaled(x) if self.on_input else x

    def after(self, y):
        return y if self.on_input else self._scaled(y)

    def _scaled(self, x):
        # Under bf16 autocast x is bf16, whose steps around one, 1/128, are wider than those of an
        # optimizer: multiply in fp32, and hand on the type that attention expects.
        return (x * self.scale).to(x.dtype)

    def fold(self, linear: nn.Linear) -> None:
        """Multiply the map's weights by ``scale``, in place: in fp32, cast once."""
        scale = self.scale.float()
        with torch.no_grad():
            weight = linear.weight.float()
            linear.weight.copy_(weight * (scale if self.on_input else scale[:, None]))
            if linear.bias is not None and not self.on_input:
                linear.bias.copy_(linear.bias.float() * scale)


class RescaledActivations(Method):
    """IA3 on the linear maps that the config names."""

    name = "ia3"
    summary = "trained vectors that rescale keys, values and feed-forward activations"
    paper = "Liu et al. 2022, arXiv:2205.05638"
    mergeable = True
    learning_rates = (3e-3, 1e-2, 3e-2)
    stage = 1
    Config = IA3Config

    def inject(self, model, family, generator):
        linears = surgery.linears(model, family)
        for name, on_input in places(linears, self.config).items():
            surgery.attach(linears[name], "ia3", IA3(linears[name], on_input))

    def frozen_base_names(self, model, family):
        names = places(surgery.linears(model, family), self.config)
        return {family.path(f"{name}.weight") for name in names}

    def count(self, dims):
        shapes = dims.linears()
        formulas = {
            name: str(shapes[name][0 if on_input else 1])
            for name, on_input in places(shapes, self.config).items()
        }
        count = Count()
        count.add_groups("ia3", formulas)
        return count

    def merge(self, model, family):
        for name, module in list(model.named_modules()):
            if isinstance(module, IA3):
                linear = model.get_submodule(name.rpartition(".")[0])
                module.fold(linear)
                surgery.detach(linear, "ia3")


def places(names, config) -> dict[str, bool]:
    """Name of each map to rescale -> whether it is scaled on its input.

    Raises:
        InputError: the config names what is not there, or an input that is no target.
    """
    chosen = targets.select(names, config.targets, config.layers, "--ia3-targets")
    inputs = []
    if config.feedforward != NONE:
        flag = "--ia3-feedforward"
        inputs = targets.select(names, config.feedforward, config.layers, flag)
    for name in inputs:
        if name not in chosen:
            raise InputError(
                f"--ia3-feedforward {config.feedforward!r} means {name}, which is not among "
                f"--ia3-targets {config.targets!r}. Name it there, too, or give --ia3-feedforward "
                f"{NONE}."
            )
    return {name: name in inputs for name in chosen}


METHOD = RescaledActivations

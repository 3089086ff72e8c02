"""Bottleneck adapters: a small residual network behind the attention and/or the feed-forward block.

    h -> h + s (U act(D z + d) + u)        D (b, C), U (C, b)

h is the block's output after dropout, x its input; x + h and the layer's norm follow. What z is,
and what holds where a knob is left alone, is a matter of style:

    style       z                 placement  activation  s   AdapterHub
    sequential  h                 ffn        gelu        1   -
    houlsby     h                 both       silu        1   DoubleSeqBnConfig
    pfeiffer    norm(x + h)       ffn        relu        1   SeqBnConfig
    parallel    x                 ffn        relu        4   ParBnConfig

In pre-norm models no norm follows x + h: pfeiffer reads x + h, as in AdapterHub, and parallel the
x that is added, before its norm. The width is ``bottleneck``, 64 in every style, or C // reduction.
U and u start at zero, so the start is the base model, bit for bit; AdapterHub's sequential ones
start with U in N(0, 0.02), near it.

Trainable, for each adapter: 2 C b + b + C; 2 C more with an own layer norm, 1 more with a learned
s. One sequential adapter for each block (layer_norm off) is E (B + 1) + B (E + 1) for C = E, b = B.

    tensor                             shape    AdapterHub (below ...output.adapters.NAME)
    layers.{i}.ffn_adapter.down.weight (b, C)   adapter_down.0.weight (.1. with an own norm)
                          .down.bias   (b)      adapter_down.0.bias   (.1. with an own norm)
                          .up.weight   (C, b)   adapter_up.weight
                          .up.bias     (C)      adapter_up.bias
                          .norm.weight (C)      adapter_norm_before.weight; bias alike
                          .scale       (1)      scaling

``attention_adapter`` is ...attention.output.adapters.NAME. AdapterHub's reduction defaults to 16,
for parallel to 2.

Where the rest is:
    shared/bottleneck.py  the knobs but ``style``, the module in the slot, its forward
    models/encoder.py     the slots of a layer, and where it calls them
    methods/base.py       what a method is, and which of its functions is called when

Papers: Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2021, arXiv:2005.00247; He et al.
2022, arXiv:2110.04366 (parallel, scaled); Rücklé et al. 2021, arXiv:2010.11918 (skip_layers).
Shape letters: C model dim, b bottleneck.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from fairseq_peft.methods.base import Method
from fairseq_peft.methods.shared import bottleneck
from fairseq_peft.methods.shared.bottleneck import STYLES, BottleneckConfig, Style


@dataclass
class AdapterConfig(BottleneckConfig):
    """Knobs of bottleneck adapters."""

    method: ClassVar[str] = "adapter"
    styles: ClassVar[dict[str, Style]] = STYLES

    style: str = field(
        default="sequential",
        metadata={"help": f"what it reads, and its habits: {', '.join(STYLES)} (sequential)"},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.bottleneck is None and self.reduction is None:
            self.bottleneck = 64


def linear_maps(embed_dim: int, width: int, config: AdapterConfig, generator: torch.Generator):
    """``down`` (C -> b), random, and ``up`` (b -> C), zero, which makes the adapter the
    identity."""
    # On "meta" nothing is drawn from the global generator.
    down = nn.Linear(embed_dim, width, device="meta").to_empty(device="cpu")
    up = nn.Linear(width, embed_dim, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        if config.style == "parallel":  # as LoRA's A, in He et al. and in AdapterHub
            bound = embed_dim**-0.5
            down.weight.uniform_(-bound, bound, generator=generator)
        else:  # as in BERT and in AdapterHub
            down.weight.normal_(0, 0.02, generator=generator)
        for zero in (down.bias, up.weight, up.bias):
            zero.zero_()
    return down, up


class BottleneckAdapter(Method):
    """One adapter behind each chosen block of each layer."""

    name = "adapter"
    summary = "bottleneck networks behind attention and/or feed-forward"
    paper = "Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2021, arXiv:2005.00247"
    excludes = {"compacter": "both fill the slots behind the blocks, and a slot holds one adapter"}
    Config = AdapterConfig

    def inject(self, model, family, generator):
        def build(embed_dim, width):
            return linear_maps(embed_dim, width, self.config, generator)

        bottleneck.fill_slots(model, family, self.config, build)

    def count(self, dims):
        c, b = dims.embed_dim, self.config.width(dims.embed_dim)
        return bottleneck.count(dims, self.config, f"2 x {c} x {b} + {b} + {c}")


METHOD = BottleneckAdapter

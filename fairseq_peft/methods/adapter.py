"""Bottleneck adapters: a small residual network behind the attention and/or the feed-forward block.

    h -> h + U act(D h + d) + u        D (b, C), U (C, b), applied to the block's output, before
    dropout and residual

U and u start at zero, so the start is the base model, bit for bit. Trainable: 2 C b + b + C for
each place.

Papers: Houlsby et al. 2019, arXiv:1902.00751 (placement ``both``); Pfeiffer et al. 2021,
arXiv:2005.00247 (``ffn``).
Shape letters: C model dim, b bottleneck.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_peft import surgery
from fairseq_peft.architectures import Count
from fairseq_peft.errors import InputError
from fairseq_peft.methods.base import Method

PLACEMENTS = ("attention", "ffn", "both")


@dataclass
class AdapterConfig:
    """Knobs of bottleneck adapters."""

    bottleneck: int = field(default=64, metadata={"help": "width b of the adapter (64)"})
    placement: str = field(
        default="ffn", metadata={"help": "behind which block: attention, ffn or both (ffn)"}
    )

    def __post_init__(self):
        if self.bottleneck < 1:
            raise InputError(
                f"--adapter-bottleneck {self.bottleneck} is not a width: give an integer of at "
                "least 1."
            )
        if self.placement not in PLACEMENTS:
            raise InputError(
                f"--adapter-placement {self.placement!r} is unknown: give one of "
                f"{', '.join(PLACEMENTS)}."
            )


class Adapter(nn.Module):
    """``h + U gelu(D h + d) + u``; shapes: h (..., C) -> (..., C)."""

    def __init__(self, embed_dim: int, bottleneck: int, generator: torch.Generator):
        super().__init__()
        self.down = nn.Linear(embed_dim, bottleneck, device="meta")
        self.up = nn.Linear(bottleneck, embed_dim, device="meta")
        self.to_empty(device="cpu")
        with torch.no_grad():
            # N(0, 0.02) as in BERT and AdapterHub; a zero `up` makes the adapter the identity.
            self.down.weight.normal_(0, 0.02, generator=generator)
            for zero in (self.down.bias, self.up.weight, self.up.bias):
                zero.zero_()

    def forward(self, h, x, norm):
        """The block's output h, changed; x is the block's input, norm the layer norm behind it."""
        return h + self.up(F.gelu(self.down(h)))


class BottleneckAdapter(Method):
    """One adapter behind each chosen block of each layer."""

    name = "adapter"
    summary = "bottleneck networks behind attention and/or feed-forward"
    paper = "Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2021, arXiv:2005.00247"
    Config = AdapterConfig

    def inject(self, model, family, config, generator):
        outputs = {"attention": family.attention_output, "ffn": family.ffn_output}
        for layer in surgery.layers(model, family):
            for place in places(config):
                linear = layer.get_submodule(outputs[place])
                adapter = Adapter(linear.out_features, config.bottleneck, generator)
                setattr(layer, f"{place}_adapter", adapter.to(linear.weight))

    def count(self, dims, config):
        count = Count()
        c, b = dims.embed_dim, config.bottleneck
        for place in places(config):
            number = dims.num_blocks(place)
            count.add(f"adapter behind {place}", f"{number} x (2 x {c} x {b} + {b} + {c})")
        return count


def places(config) -> tuple[str, ...]:
    """The blocks that get an adapter."""
    return ("attention", "ffn") if config.placement == "both" else (config.placement,)


METHOD = BottleneckAdapter()

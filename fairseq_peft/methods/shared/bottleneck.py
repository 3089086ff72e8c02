"""The frame of bottleneck adapters: where they sit, what they read, what they add. The two linear
maps inside are the methods' (``methods/adapter.py``, ``methods/compacter.py``; several adapters
in one slot: ``methods/fusion.py``).

A block of a layer makes h from x; x + h follows, then (in post-norm models) the layer's own norm.
An adapter replaces h:

    h + drop(scale * up(act(down(norm(z)))))    z = h, x, or the layer's norm of x + h, by style

``norm`` is the adapter's own layer norm, if it has one. Shape letters: C model dim.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_peft.architectures import Count
from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery
from fairseq_peft.layers.stacks import linear_each, stacked, times

PLACEMENTS = {"attention": ("attention",), "ffn": ("ffn",), "both": ("attention", "ffn")}
ACTIVATIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
}
OUTPUT, INPUT, NORMED_SUM = "h", "x", "norm(x + h)"


class Style(NamedTuple):
    """What an adapter reads, and the values of the knobs that are left alone."""

    reads: str
    placement: str
    activation: str
    scaling: float = 1.0


#: Of adapters with two plain linear maps; ``methods/adapter.py`` explains them.
STYLES = {
    "sequential": Style(OUTPUT, "ffn", "gelu"),
    "houlsby": Style(OUTPUT, "both", "silu"),
    "pfeiffer": Style(NORMED_SUM, "ffn", "relu"),
    "parallel": Style(INPUT, "ffn", "relu", 4.0),
}


@dataclass
class BottleneckConfig:
    """The knobs of all bottleneck adapters. What is None becomes the style's own value."""

    method: ClassVar[str]
    styles: ClassVar[dict[str, Style]]

    bottleneck: Optional[int] = field(
        default=None, metadata={"help": "width b of the adapter (64, or by the reduction)"}
    )
    reduction: Optional[float] = field(
        default=None, metadata={"help": "the width as C / reduction, instead of the bottleneck"}
    )
    style: str = ""
    placement: Optional[str] = field(
        default=None,
        metadata={"help": "behind which block: attention, ffn or both (by style)"},
    )
    activation: Optional[str] = field(
        default=None, metadata={"help": f"one of {', '.join(ACTIVATIONS)} (by style)"}
    )
    layer_norm: bool = field(
        default=False, metadata={"help": "an own layer norm on the adapter's input (off)"}
    )
    scaling: Optional[str] = field(
        default=None,
        metadata={"help": "factor of what is added, or learned, which starts at 1 (by style)"},
    )
    dropout: float = field(
        default=0.0, metadata={"help": "dropout on what is added, in [0, 1) (0)"}
    )
    skip_layers: int = field(
        default=0, metadata={"help": "AdapterDrop: no adapter in the first so many layers (0)"}
    )

    def __post_init__(self):
        self._check_choice("style", self.styles)
        style = self.styles[self.style]
        self.placement = style.placement if self.placement is None else self.placement
        self._check_choice("placement", PLACEMENTS)
        self.activation = style.activation if self.activation is None else self.activation
        self._check_choice("activation", ACTIVATIONS)
        self.scaling = self._parse_scaling(style.scaling if self.scaling is None else self.scaling)
        if self.bottleneck is not None and self.reduction is not None:
            raise InputError(
                f"{self.flag('bottleneck')} {self.bottleneck} and {self.flag('reduction')} "
                f"{self.reduction:g} both set the width. Give one of them."
            )
        if self.bottleneck is not None and self.bottleneck < 1:
            raise InputError(
                f"{self.flag('bottleneck')} {self.bottleneck} is not a width: give an integer of "
                "at least 1."
            )
        if self.reduction is not None and not self.reduction > 0:
            raise InputError(
                f"{self.flag('reduction')} {self.reduction:g} divides nothing: give a positive "
                "number such as 16."
            )
        if not 0 <= self.dropout < 1:
            raise InputError(
                f"{self.flag('dropout')} {self.dropout} is not in [0, 1): give a share such as 0.1."
            )
        if self.skip_layers < 0:
            raise InputError(
                f"{self.flag('skip_layers')} {self.skip_layers} is no number of layers: give 0 or "
                "more."
            )

    def flag(self, knob: str) -> str:
        """What the user typed: ``--adapter-skip-layers``."""
        return f"--{self.method}-{knob}".replace("_", "-")

    @property
    def places(self) -> tuple[str, ...]:
        """The blocks that get an adapter."""
        return PLACEMENTS[self.placement]

    def width(self, embed_dim: int) -> int:
        """The bottleneck b for a model dimension C."""
        if self.bottleneck is not None:
            return self.bottleneck
        width = int(embed_dim // self.reduction)
        if width < 1:
            raise InputError(
                f"{self.flag('reduction')} {self.reduction:g} leaves nothing of the model "
                f"dimension {embed_dim}. Give at most {embed_dim}."
            )
        return width

    def check_layers(self, num_layers: int) -> None:
        """Raise InputError unless some layer of ``num_layers`` keeps its adapter."""
        if self.skip_layers >= num_layers:
            raise InputError(
                f"{self.flag('skip_layers')} {self.skip_layers} leaves no adapter: the model has "
                f"{num_layers} layers. Give at most {num_layers - 1}."
            )

    def _check_choice(self, knob, choices):
        value = getattr(self, knob)
        if value not in choices:
            raise InputError(
                f"{self.flag(knob)} {value!r} is unknown: give one of {', '.join(choices)}."
            )

    def _parse_scaling(self, text):
        if text == "learned":
            return text
        try:
            scaling = float(text)
        except ValueError:
            scaling = 0.0
        if not 0 < scaling < float("inf"):
            raise InputError(
                f"{self.flag('scaling')} {text!r} is no factor: give a positive number such as "
                "4, or learned."
            )
        return scaling


class Bottleneck(nn.Module):
    """An adapter in its slot: the equation on top of this file, around ``down`` (C -> b) and
    ``up`` (b -> C). Shapes: h, x (..., C) -> (..., C)."""

    def __init__(self, down: nn.Module, up: nn.Module, embed_dim: int, config: BottleneckConfig):
        super().__init__()
        self.reads = config.styles[config.style].reads
        self.norm = nn.LayerNorm(embed_dim) if config.layer_norm else None
        self.down = down
        self.up = up
        self.activation = ACTIVATIONS[config.activation]
        learned = config.scaling == "learned"
        self.scale = nn.Parameter(torch.ones(1)) if learned else config.scaling
        self.dropout = config.dropout

    def forward(self, h, x, norm):
        """What replaces h.

        Args:
            h: the block's output, after dropout.
            x: the block's input, as it is added to h.
            norm: the layer's norm that follows x + h; None in pre-norm models, where, as in
                AdapterHub, an adapter that reads the normed sum reads the plain sum.
        """
        update = self.update(self.read(h, x, norm))
        return h + F.dropout(update, self.dropout, self.training)

    def read(self, h, x, norm):
        """z of the equation, from what ``forward`` is given."""
        if self.reads == NORMED_SUM:
            return x + h if norm is None else norm(x + h)
        return x if self.reads == INPUT else h

    def update(self, z):
        """What is added to h, before dropout."""
        if self.norm is not None:
            z = self.norm(z)
        return self.scale * self.up(self.activation(self.down(z)))

    def stacks_with(self, other: nn.Module) -> bool:
        """Whether ``update_each`` takes a list with both: two plain maps each, of any width."""
        return (
            type(other) is Bottleneck
            and all(type(each) is nn.Linear for each in (self.down, self.up, other.down, other.up))
            and (self.reads, self.activation) == (other.reads, other.activation)
            and (self.norm is None) == (other.norm is None)
            and type(self.scale) is type(other.scale)
        )

    @staticmethod
    def update_each(layers: list[Bottleneck], z: torch.Tensor) -> torch.Tensor:
        """``update`` for M parts of a batch that each have an adapter of their own, in a few steps
        for all. Shapes: z (M, N, C) -> (M, N, C)."""
        first = layers[0]
        if first.norm is not None:
            weight = stacked([layer.norm.weight for layer in layers]).unsqueeze(1)
            bias = stacked([layer.norm.bias for layer in layers]).unsqueeze(1)
            z = F.layer_norm(z, z.shape[-1:], eps=first.norm.eps) * weight + bias
        # What a narrower one lacks is 0, of which every activation makes 0.
        z = first.activation(linear_each([layer.down for layer in layers], z))
        z = linear_each([layer.up for layer in layers], z)
        scales = [layer.scale for layer in layers]
        learned = isinstance(first.scale, nn.Parameter)
        return torch.stack(scales).unsqueeze(1) * z if learned else times(z, scales)


def slots(model: nn.Module, family, config: BottleneckConfig):
    """(layer, name of the slot, linear map that ends the block), for each chosen slot of each layer
    that is not skipped."""
    if config.skip_layers:
        config.check_layers(surgery.num_layers(model, family))
    for stack, number, _, layer in surgery.places(model, family):
        for block in stack.blocks:
            if number >= config.skip_layers and block.name in config.places:
                yield layer, f"{block.name}_adapter", layer.get_submodule(block.output)


def fill_slots(model: nn.Module, family, config: BottleneckConfig, build) -> None:
    """Put an adapter into each chosen slot.

    Args:
        model: the model.
        family: where it keeps what methods change.
        config: the knobs.
        build: (C, b) -> the maps ``down`` and ``up``; called layer by layer.
    """
    for layer, slot, linear in slots(model, family, config):
        c = linear.out_features
        adapter = Bottleneck(*build(c, config.width(c)), c, config)
        surgery.fill(layer, slot, adapter.to(linear.weight).train(layer.training))


def count(dims, config: BottleneckConfig, maps: str) -> Count:
    """The parameters in the slots, as terms; ``maps`` is the formula of one adapter's ``down`` and
    ``up``."""
    formula = maps
    if config.layer_norm:
        formula += f" + 2 x {dims.embed_dim}"
    if config.scaling == "learned":
        formula += " + 1"
    return count_slots(dims, config, formula)


def count_slots(dims, config: BottleneckConfig, formula: str) -> Count:
    """The parameters in the slots, as terms; ``formula`` is that of one slot."""
    if config.skip_layers:
        config.check_layers(dims.num_layers)
    found = Count()
    for place in config.places:
        number = dims.num_blocks(place) - config.skip_layers
        found.add(f"{config.method} behind {place}", f"{number} x ({formula})")
    return found

"""Compacter: a bottleneck adapter whose two maps are sums of Kronecker products.

    h -> h + up(gelu(down(z)))        down(z) = z W + b        W = sum_i A_i (x) (S_i T_i)

A (n, n, n) is the rule: n matrices A_i (n, n) that every map of every layer shares. For a map
from p to q features, S (n, p/n, r) and T (n, r, q/n) are its own; A_i (x) (S_i T_i) is (p, q).

    style     z               placement  AdapterHub
    houlsby   h               both       CompacterConfig
    pfeiffer  norm(x + h)     ffn        CompacterPlusPlusConfig

The width is C / 32 (at least n), or ``reduction``, or ``bottleneck``; n must divide C and b.
T of ``up`` starts at zero, so the start is the base model, bit for bit. AdapterHub draws it like S
and T of ``down`` (Xavier), and the rule from N(0, 1e-4): nearly the identity. Behind a zero that
rule leaves T gradients of 3e-10 (C = 512), below AdamW's eps; ours starts uniform in [-1, 1], as
in the PHM layers it comes from and as AdapterHub's ``phm_c_init="uniform"``: 1e-2.

Trainable: n^3 for the rule, and 2 r (C + b) + b + C for each adapter.

    tensor (below the root)             shape         AdapterHub (below ...output.adapters.NAME)
    compacter.rule                      (n, n, n)     shared_parameters.NAME.phm_rule
    layers.{i}.ffn_adapter.down.left    (n, C/n, r)   adapter_down.0.W_left
                          .down.right   (n, r, b/n)   adapter_down.0.W_right
                          .down.bias    (b)           adapter_down.0.b
                          .up.left      (n, b/n, r)   adapter_up.W_left
                          .up.right     (n, r, C/n)   adapter_up.W_right
                          .up.bias      (C)           adapter_up.b

Where the rest is:
    shared/bottleneck.py  the knobs of every bottleneck, the module in the slot, its forward
    models/encoder.py     the slots of a layer, and where it calls them
    methods/base.py       what a method is, and which of its functions is called when

``attention_adapter`` is ...attention.output.adapters.NAME. Paper: Mahabadi et al. 2021,
arXiv:2106.04647. Shape letters: C model dim, b bottleneck, n number of blocks, r rank.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Optional

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_peft.architectures import Count
from fairseq_peft.errors import InputError
from fairseq_peft.methods.base import Method
from fairseq_peft.methods.shared import bottleneck
from fairseq_peft.methods.shared.bottleneck import NORMED_SUM, OUTPUT, BottleneckConfig, Style

STYLES = {
    "houlsby": Style(OUTPUT, "both", "gelu"),
    "pfeiffer": Style(NORMED_SUM, "ffn", "gelu"),
}
REDUCTION = 32


@dataclass
class CompacterConfig(BottleneckConfig):
    """Knobs of Compacter."""

    method: ClassVar[str] = "compacter"
    styles: ClassVar[dict[str, Style]] = STYLES

    bottleneck: Optional[int] = field(
        default=None, metadata={"help": "width b of the adapter (by the reduction)"}
    )
    reduction: Optional[float] = field(
        default=None,
        metadata={"help": f"the width as C / reduction ({REDUCTION}, but at least n wide)"},
    )
    style: str = field(
        default="houlsby", metadata={"help": "houlsby, or pfeiffer for Compacter++ (houlsby)"}
    )
    phm_dim: int = field(default=4, metadata={"help": "number n of Kronecker products (4)"})
    rank: int = field(default=1, metadata={"help": "rank r of their right factors (1)"})

    def __post_init__(self):
        super().__post_init__()
        for knob in ("phm_dim", "rank"):
            if getattr(self, knob) < 1:
                raise InputError(
                    f"{self.flag(knob)} {getattr(self, knob)} is too small: give an integer of at "
                    "least 1."
                )

    def width(self, embed_dim):
        if self.bottleneck is None and self.reduction is None:
            width = max(embed_dim // REDUCTION, self.phm_dim)
        else:
            width = super().width(embed_dim)
        for name, size in (("model dimension", embed_dim), ("bottleneck", width)):
            if size % self.phm_dim:
                raise InputError(
                    f"{self.flag('phm_dim')} {self.phm_dim} does not divide the {name} {size}. "
                    f"Give one that does, or another {self.flag('bottleneck')}."
                )
        return width


class Rule(nn.Module):
    """The rule A (n, n, n). The model holds it once; the maps only point to it."""

    def __init__(self, phm_dim: int, generator: torch.Generator):
        super().__init__()
        rule = torch.empty(phm_dim, phm_dim, phm_dim).uniform_(-1, 1, generator=generator)
        self.rule = nn.Parameter(rule)


class PHMLinear(nn.Module):
    """``y = x W + bias``, ``W = sum_i A_i (x) (left_i right_i)``; x (..., p) -> (..., q).

    The rule's module is kept in a tuple, where torch does not look for modules: it is in no second
    state, and whatever is done to the model's own (a cast, a copy, a load) is done to this one.
    """

    def __init__(self, p: int, q: int, rule: Rule, rank: int, generator, zero=False):
        super().__init__()
        n = len(rule.rule)
        self.shared = (rule,)
        self.left = nn.Parameter(xavier(n, p // n, rank, generator))
        right = torch.zeros(n, rank, q // n) if zero else xavier(n, rank, q // n, generator)
        self.right = nn.Parameter(right)
        self.bias = nn.Parameter(torch.zeros(q))

    def weight(self) -> torch.Tensor:
        """W, (p, q)."""
        rule = self.shared[0].rule
        products = torch.einsum("iab,icr,ird->acbd", rule, self.left, self.right)
        return products.flatten(2).flatten(0, 1)

    def forward(self, x):
        return F.linear(x, self.weight().T, self.bias)


def xavier(n: int, rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """n matrices from N(0, 2 / (rows + columns))."""
    std = (2 / (rows + columns)) ** 0.5
    return torch.empty(n, rows, columns).normal_(0, std, generator=generator)


class Compacter(Method):
    """Bottleneck adapters of Kronecker products with a shared rule."""

    name = "compacter"
    summary = "bottleneck networks whose maps are Kronecker products, with one shared factor"
    paper = "Mahabadi et al. 2021, arXiv:2106.04647"
    learning_rates = (5e-4, 1e-3, 3e-3)
    excludes = {"adapter": "both fill the slots behind the blocks, and a slot holds one adapter"}
    Config = CompacterConfig

    def inject(self, model, family, generator):
        root = model.get_submodule(family.root)
        rule = Rule(self.config.phm_dim, generator)

        def build(embed_dim, width):
            down = PHMLinear(embed_dim, width, rule, self.config.rank, generator)
            up = PHMLinear(width, embed_dim, rule, self.config.rank, generator, zero=True)
            return down, up

        bottleneck.fill_slots(model, family, self.config, build)
        root.compacter = rule.to(next(root.parameters()))

    def count(self, dims):
        c, b = dims.embed_dim, self.config.width(dims.embed_dim)
        n, r = self.config.phm_dim, self.config.rank
        rule = Count()
        rule.add("compacter rule", f"{n} x {n} x {n}")
        slots = bottleneck.count(dims, self.config, f"2 x {r} x ({c} + {b}) + {b} + {c}")
        return Count(rule.terms + slots.terms)


METHOD = Compacter

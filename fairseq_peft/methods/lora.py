"""LoRA: a trained low-rank update beside a frozen linear map.

    y = x W^T + b + s drop(x) A^T B^T        s = alpha / r, with ``rslora`` alpha / sqrt(r)

             x (..., in)
       +----------+---------+
       |                    |  drop
    W (out, in)          A (r, in)         W, b: the base's, frozen
    b (out,)                |  (..., r)
       |                 B (out, r)        A, B: trained
       |                    |  times s
       +--------(+)---------+
              y (..., out)

A (r, in) starts uniform in +-1/sqrt(in), B (out, r) starts at zero, so the start is the base model,
bit for bit. With ``init`` pissa or olora, A and B start as the strongest part of W, and W becomes
W - s B A: the start is the base model within rounding, and what trains is that part of it.
Trainable: r (in + out) for each adapted map. Merges: W + s B A.

Where the rest is:
    shared/low_rank.py        the knobs but ``init``, ranks by name, PiSSA and OLoRA, the embedding
    shared/adapted_linear.py  what ``LoRALinear`` is made of: the base's W and b, its merge
    injection/surgery.py      finds linear maps by name, and swaps them
    methods/base.py           what a method is, and which of its functions is called when

Paper: Hu et al. 2021, arXiv:2106.09685, eq. 3; rsLoRA: arXiv:2312.03732; LoRA+: arXiv:2402.12354;
PiSSA: arXiv:2404.02948; OLoRA: arXiv:2406.01775. Shape letters: r rank.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_peft.architectures import Count
from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery
from fairseq_peft.layers.low_rank import add_updates, linear_with_update
from fairseq_peft.methods.base import Method
from fairseq_peft.methods.shared import low_rank
from fairseq_peft.methods.shared.adapted_linear import BesideLinear

INITS = ("zero", *low_rank.DECOMPOSITIONS)


@dataclass
class LoRAConfig(low_rank.LowRankConfig):
    """Knobs of LoRA: those of ``LowRankConfig`` (rank, alpha, dropout, targets, ...), and one."""

    init: str = field(
        default="zero",
        metadata={
            "help": "zero: B = 0; pissa or olora: from W's singular values or QR, W is corrected; "
            "embeddings always start at zero (zero)"
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.init not in INITS:
            raise InputError(
                f"--lora-init {self.init!r} is unknown: give one of {', '.join(INITS)}."
            )


class LoRALinear(BesideLinear):
    """``y = x W^T + b + s drop(x) A^T B^T`` with W and b, the base layer's own, frozen.

    Shapes: x (..., in) -> y (..., out); lora_A (r, in); lora_B (out, r).
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float, generator):
        super().__init__(base)
        self.scale = scale
        self.dropout = dropout
        self.in_one = False
        self.lora_A, self.lora_B = low_rank.init_zero(base, rank, generator)

    def forward(self, x):
        if not self.in_one or self.weight.requires_grad or (self.dropout > 0 and self.training):
            return super().forward(x)
        return linear_with_update(x, self.weight, self.bias, self.lora_A, self.lora_B, self.scale)

    def beside(self, y, x):
        update = self.scale * F.linear(F.dropout(x, self.dropout, self.training), self.lora_A)
        return y + F.linear(update, self.lora_B)

    def stacks_with(self, other):
        return type(other) is LoRALinear

    @staticmethod
    def beside_each(layers, y, x):
        factors = [(layer.lora_A, layer.lora_B) for layer in layers]
        return add_updates(y, x, factors, [layer.scale for layer in layers])

    def delta(self):
        return self.scale * (self.lora_B.float() @ self.lora_A.float())

    @torch.no_grad()
    def init_from_weight(self, factors) -> None:
        """Set A and B to ``factors(W, r, s)`` and take their product off W."""
        weight = self.weight.float()
        a, b = factors(weight, len(self.lora_A), self.scale)
        self.lora_A.copy_(a)
        self.lora_B.copy_(b)
        self.weight.copy_(weight - self.delta())


class LoRA(Method):
    """LoRA on the linear maps, and the token embedding if named, that the config means."""

    name = "lora"
    summary = "low-rank updates beside frozen linear maps"
    paper = "Hu et al. 2021, arXiv:2106.09685"
    mergeable = True
    stage = 0
    excludes = dict.fromkeys(("dora", "adalora"), "both put a low-rank update beside linear maps")
    Config = LoRAConfig

    def inject(self, model, family, generator):
        linears, embeddings = surgery.linears(model, family), surgery.embeddings(model, family)
        for name, (rank, scale) in low_rank.choose(self.config, linears, embeddings).items():
            if name in linears:
                low_rank.check_decomposition(self.config.init, name, linears[name].weight, rank)
                swapped = LoRALinear(linears[name], rank, scale, self.config.dropout, generator)
                swapped.in_one = family.updates_in_one
            else:
                swapped = low_rank.LoRAEmbedding(embeddings[name], rank, scale, generator)
                low_rank.set_output_update(model, swapped, swapped.project)
            # LoRA+: read by the optimizer (optim/peft_adamw.py).
            swapped.lora_B.lr_scale = self.config.lr_ratio
            surgery.swap(model, family.path(name), swapped)

    @property
    def logits_at_start(self):
        return "nearly" if self.config.init in low_rank.DECOMPOSITIONS else "equal"

    def adopt_base(self, model, family):
        if self.config.init == "zero":
            return
        for module in model.modules():
            if isinstance(module, LoRALinear):
                module.init_from_weight(low_rank.DECOMPOSITIONS[self.config.init])

    def trainable_base_names(self, model, family):
        return low_rank.trained_biases(model, family, self.config)

    def frozen_base_names(self, model, family):
        kinds = (LoRALinear, low_rank.LoRAEmbedding)
        return {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, kinds)}

    def corrected_base_names(self, model, family):
        if self.config.init == "zero":
            return set()
        return {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, LoRALinear)}

    def count(self, dims):
        shapes = {**dims.linears(), **dims.embeddings()}
        ranks = low_rank.choose(self.config, dims.linears(), dims.embeddings())
        count = Count()
        formulas = {n: f"{r} x ({shapes[n][0]} + {shapes[n][1]})" for n, (r, _) in ranks.items()}
        count.add_groups("lora", formulas)
        return count

    def count_base(self, dims):
        return low_rank.count_biases(dims, self.config)

    def merge(self, model, family):
        for name, module in list(model.named_modules()):
            if isinstance(module, LoRALinear):
                surgery.swap(model, name, module.merged())
            elif isinstance(module, low_rank.LoRAEmbedding):
                low_rank.set_output_update(model, module, None)
                surgery.swap(model, name, module.merge_())


METHOD = LoRA

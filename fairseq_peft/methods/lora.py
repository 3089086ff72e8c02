"""LoRA: a trained low-rank update beside a frozen linear map.

    y = x W^T + b + (alpha / r) drop(x) A^T B^T

A (r, in) starts uniform in +-1/sqrt(in), B (out, r) starts at zero, so the start is the base model,
bit for bit.
Trainable: r (in + out) for each adapted map. Merges: W + (alpha / r) B A.

Paper: Hu et al. 2021, arXiv:2106.09685, eq. 3. Shape letters: r rank.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_peft import surgery, targets
from fairseq_peft.architectures import Count
from fairseq_peft.errors import InputError
from fairseq_peft.methods.base import Method


@dataclass
class LoRAConfig:
    """Knobs of LoRA."""

    rank: int = field(default=8, metadata={"help": "rank r of the update (8)"})
    alpha: float = field(
        default=16.0, metadata={"help": "the update is scaled by alpha / rank (16)"}
    )
    dropout: float = field(
        default=0.0, metadata={"help": "dropout on the update's input, in [0, 1) (0)"}
    )
    targets: str = field(
        default="q_proj,v_proj",
        metadata={
            "flag": "peft_targets",
            "help": "linear maps to adapt: ends of names with commas, a regular expression for "
            "whole names, or all-linear (q_proj,v_proj)",
        },
    )

    def __post_init__(self):
        if self.rank < 1:
            raise InputError(
                f"--lora-rank {self.rank} is not a rank: give an integer of at least 1."
            )
        if not 0 <= self.dropout < 1:
            raise InputError(
                f"--lora-dropout {self.dropout} is not in [0, 1): give a share such as 0.1."
            )
        if self.alpha <= 0:
            raise InputError(f"--lora-alpha {self.alpha} turns LoRA off: give a positive number.")


class LoRALinear(nn.Linear):
    """``y = x W^T + b + (alpha / r) drop(x) A^T B^T`` with W and b frozen.

    Shapes: x (..., in) -> y (..., out); lora_A (r, in); lora_B (out, r).
    It holds the base layer's own ``weight`` and ``bias``, so a base checkpoint's keys stay where
    they are.
    """

    def __init__(self, base: nn.Linear, config: LoRAConfig, generator: torch.Generator):
        # On "meta" no memory is taken for the weight that the next lines replace.
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight = base.weight
        self.bias = base.bias
        self.scale = config.alpha / config.rank
        self.dropout = config.dropout
        like = {"device": base.weight.device, "dtype": base.weight.dtype}
        bound = base.in_features**-0.5
        a = torch.empty(config.rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(a.to(**like))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, config.rank, **like))

    def forward(self, x):
        update = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A)
        return F.linear(x, self.weight, self.bias) + self.scale * F.linear(update, self.lora_B)

    def delta(self) -> torch.Tensor:
        """The update of W, (out, in), in fp32."""
        return self.scale * (self.lora_B.float() @ self.lora_A.float())

    def merged(self) -> nn.Linear:
        """A plain linear layer with W + delta: added in fp32, cast once."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        weight = (self.weight.float() + self.delta()).to(self.weight.dtype)
        plain.weight = nn.Parameter(weight.detach(), requires_grad=False)
        plain.bias = self.bias
        return plain


class LoRA(Method):
    """LoRA on the linear maps that the config names."""

    name = "lora"
    summary = "low-rank updates beside frozen linear maps"
    paper = "Hu et al. 2021, arXiv:2106.09685"
    mergeable = True
    stage = 0
    Config = LoRAConfig

    def inject(self, model, family, config, generator):
        linears = surgery.linears(model, family)
        for name, linear in surgery.match(linears, config.targets).items():
            swapped = LoRALinear(linear, config, generator)
            surgery.swap(model, f"{family.root}.{name}", swapped)

    def reads(self, model, family, config):
        return {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, LoRALinear)}

    def count(self, dims, config):
        shapes = dims.linears()
        formulas = {
            name: f"{config.rank} x ({shapes[name][0]} + {shapes[name][1]})"
            for name in targets.select(shapes, config.targets)
        }
        count = Count()
        count.add_groups("lora", formulas)
        return count

    def merge(self, model):
        for name, module in list(model.named_modules()):
            if isinstance(module, LoRALinear):
                surgery.swap(model, name, module.merged())


METHOD = LoRA()

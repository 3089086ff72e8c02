"""DoRA: a low-rank update of a frozen linear map's direction, and a trained magnitude of its rows.

    y = x V^T + b        V = m / |W + s B A| * (W + s B A)       |.| the norm of each row, (out,)

m (out,) starts as |W + s B A|, and s B A as in LoRA at zero, so the start is the base model, within
rounding. As in the paper's section 4.3 and in Hugging Face PEFT, the norm gets no gradient.
Dropout is on the update's input only; PEFT's drops the input of (m / |.| - 1) x W^T, too.
Trainable: r (in + out) + out for each adapted map. Merges: V.

Where the rest is:
    shared/low_rank.py        the knobs, which are LoRA's but for --lora-init; ranks by name
    shared/adapted_linear.py  what ``DoRALinear`` is made of: the base's W and b, its merge
    injection/surgery.py      finds linear maps by name, and swaps them
    methods/base.py           what a method is, and which of its functions is called when

Paper: Liu et al. 2024, arXiv:2402.09353, eq. 5. Shape letters: r rank.
"""

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_peft.architectures import Count
from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery
from fairseq_peft.methods.base import Method
from fairseq_peft.methods.shared import low_rank
from fairseq_peft.methods.shared.adapted_linear import AdaptedLinear


class DoRALinear(AdaptedLinear):
    """``y = m / |W + s B A| * (x W^T + s drop(x) A^T B^T) + b`` with W and b frozen.

    Shapes: x (..., in) -> y (..., out); lora_A (r, in); lora_B (out, r); lora_magnitude m (out,).
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float, generator):
        super().__init__(base)
        self.scale = scale
        self.dropout = dropout
        self.lora_A, self.lora_B = low_rank.init_zero(base, rank, generator)
        self.lora_magnitude = nn.Parameter(torch.empty(base.out_features).to(base.weight))
        self.measure()

    def forward(self, x):
        update = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A)
        y = F.linear(x, self.weight) + self.scale * F.linear(update, self.lora_B)
        with torch.autocast(x.device.type, enabled=False):
            scaled = y * (self.lora_magnitude / self.norms())
            # Under bf16 autocast y is bf16, and so must be what attention gets.
            return (scaled if self.bias is None else scaled + self.bias).to(y.dtype)

    def direction(self) -> torch.Tensor:
        """W + s B A, (out, in), in fp32."""
        return self.weight.float() + self.scale * (self.lora_B.float() @ self.lora_A.float())

    @torch.no_grad()
    def norms(self) -> torch.Tensor:
        """|W + s B A| (out,), in fp32, without gradients."""
        # A row of zeros stays one: 0 / tiny, not 0 / 0.
        return self.direction().norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)

    @torch.no_grad()
    def measure(self) -> None:
        """Start m at the norms."""
        self.lora_magnitude.copy_(self.norms())

    def merged_weight(self):
        magnitude = self.lora_magnitude.float() / self.norms()
        return magnitude[:, None] * self.direction()


class DoRA(Method):
    """DoRA on the linear maps that the config means."""

    name = "dora"
    summary = "low-rank updates of directions, trained magnitudes"
    paper = "Liu et al. 2024, arXiv:2402.09353"
    mergeable = True
    logits_at_start = "nearly"
    stage = 0
    excludes = dict.fromkeys(("lora", "adalora"), "both put a low-rank update beside linear maps")
    Config = low_rank.LowRankConfig

    def inject(self, model, family, generator):
        linears = surgery.linears(model, family)
        for name, (rank, scale) in places(self.config, linears, surgery.embeddings(model, family)):
            swapped = DoRALinear(linears[name], rank, scale, self.config.dropout, generator)
            # LoRA+: read by the optimizer (optim/peft_adamw.py).
            swapped.lora_B.lr_scale = self.config.lr_ratio
            surgery.swap(model, family.path(name), swapped)

    def adopt_base(self, model, family):
        for module in model.modules():
            if isinstance(module, DoRALinear):
                module.measure()

    def trainable_base_names(self, model, family):
        return low_rank.trained_biases(model, family, self.config)

    def frozen_base_names(self, model, family):
        return {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, DoRALinear)}

    def count(self, dims):
        shapes = dims.linears()
        formulas = {
            name: f"({rank} x ({shapes[name][0]} + {shapes[name][1]}) + {shapes[name][1]})"
            for name, (rank, _) in places(self.config, shapes, dims.embeddings())
        }
        count = Count()
        count.add_groups("dora", formulas)
        return count

    def count_base(self, dims):
        return low_rank.count_biases(dims, self.config)

    def merge(self, model, family):
        for name, module in list(model.named_modules()):
            if isinstance(module, DoRALinear):
                surgery.swap(model, name, module.merged())


def places(config, linears, embeddings):
    """(name, (rank, scale)) of each map to adapt.

    Raises:
        InputError: an embedding is among them.
    """
    chosen = low_rank.choose(config, linears, embeddings)
    for name in chosen:
        if name in embeddings:
            raise InputError(
                f"--peft-targets {config.targets} means {name}, and --peft dora adapts linear maps "
                "only: the LM head shares the table, so a magnitude for each word would rescale "
                "its logit, too. Leave it out, or give --peft lora."
            )
    return chosen.items()


METHOD = DoRA

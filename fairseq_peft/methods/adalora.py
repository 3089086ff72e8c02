"""AdaLoRA: a low-rank update whose ranks go where the training needs them.

    y = x W^T + b + alpha / (r + 1e-5) drop(x) (E * A)^T B^T

A (r, in) and B (out, r) start at N(0, 0.02), E (r, 1) at zero, so the start is the base model, bit
for bit. B diag(E) A is kept near a singular value decomposition: the loss gets orthogonality times
the mean of |A A^T - I| and |B^T B - I| (Frobenius). Every map starts with ``init_rank`` ranks; the
least important of all maps lose their E until ``rank`` remain on average (``rank_budget.py``).
Trainable: r (in + out + 1) for each adapted map, r the initial rank. Merges: W plus the update.

Where the rest is:
    shared/rank_budget.py     which ranks stay, and when
    shared/adapted_linear.py  what ``AdaLoRALinear`` is made of: the base's W and b, its merge
    injection/surgery.py      finds linear maps by name, and swaps them
    methods/base.py           what a method is, and which of its functions is called when

Paper: Zhang et al. 2023, arXiv:2303.10512. Shape letters: r initial rank.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_peft.architectures import Count
from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery, targets
from fairseq_peft.methods.base import Method
from fairseq_peft.methods.shared import rank_budget
from fairseq_peft.methods.shared.adapted_linear import BesideLinear


def _knob(default, text, **metadata):
    return field(default=default, metadata={"help": text, **metadata})


@dataclass
class AdaLoRAConfig:
    """Knobs of AdaLoRA."""

    rank: int = _knob(8, "rank of a map in the end, on average (8)")
    init_rank: int = _knob(12, "rank r of every map at the start (12)")
    alpha: float = _knob(16.0, "the update is scaled by alpha / init-rank (16)")
    dropout: float = _knob(0.0, "dropout on the update's input, in [0, 1) (0)")
    targets: str = _knob(
        "q_proj,v_proj",
        "linear maps to adapt: ends of names with commas, a regular expression for whole names, "
        "or all-linear (q_proj,v_proj)",
        flag="peft_targets",
    )
    layers: str = _knob("", "layers to adapt, counted from 0: 0-2,5 or decoder.0-2 (all)")
    warmup: float = _knob(0.1, "share of the updates before the first rank goes (0.1)")
    final: float = _knob(0.5, "share of the updates after the last rank has gone (0.5)")
    interval: int = _knob(1, "updates from one choice of ranks to the next (1)")
    total_updates: int = _knob(
        0, "length of the schedule; 0: the updates that --max-epoch and --max-update plan (0)"
    )
    beta1: float = _knob(0.85, "smoothing of the sensitivity (0.85)")
    beta2: float = _knob(0.85, "smoothing of the uncertainty (0.85)")
    orthogonality: float = _knob(0.5, "weight of the orthogonality penalty (0.5)")

    def __post_init__(self):
        def check(name, good, expected):
            if not good:
                flag = f"--adalora-{name.replace('_', '-')}"
                raise InputError(f"{flag} {getattr(self, name)} is out of range: give {expected}.")

        check("rank", self.rank >= 1, "an integer of at least 1")
        check(
            "init_rank",
            self.init_rank >= self.rank,
            f"at least --adalora-rank, {self.rank}: ranks only go",
        )
        check("alpha", self.alpha > 0, "a positive number")
        check("dropout", 0 <= self.dropout < 1, "a share in [0, 1) such as 0.1")
        check("warmup", 0 <= self.warmup < 1, "a share of all updates in [0, 1)")
        check("final", 0 <= self.final < 1, "a share of all updates in [0, 1)")
        if self.warmup + self.final >= 1:
            raise InputError(
                f"--adalora-warmup {self.warmup} and --adalora-final {self.final} leave no update "
                "in between for ranks to go: give shares whose sum is less than 1."
            )
        check("interval", self.interval >= 1, "a number of updates of at least 1")
        check("total_updates", self.total_updates >= 0, "a number of updates, or 0")
        check("beta1", 0 < self.beta1 < 1, "a number between 0 and 1")
        check("beta2", 0 < self.beta2 < 1, "a number between 0 and 1")
        check("orthogonality", self.orthogonality >= 0, "0 or a positive number")


class AdaLoRALinear(BesideLinear):
    """``y = x W^T + b + alpha / (r + 1e-5) drop(x) (E * A)^T B^T`` with W and b frozen.

    Shapes: x (..., in) -> y (..., out); lora_A (r, in); lora_E (r, 1); lora_B (out, r).
    """

    def __init__(self, base: nn.Linear, config: AdaLoRAConfig, generator: torch.Generator):
        super().__init__(base)
        rank = config.init_rank
        # PEFT's scale, to the digit; it stays when ranks go.
        self.scale = config.alpha / (rank + 1e-5)
        self.dropout = config.dropout
        like = {"device": base.weight.device, "dtype": base.weight.dtype}
        a = torch.empty(rank, base.in_features).normal_(0, 0.02, generator=generator)
        b = torch.empty(base.out_features, rank).normal_(0, 0.02, generator=generator)
        self.lora_A = nn.Parameter(a.to(**like))
        self.lora_E = nn.Parameter(torch.zeros(rank, 1, **like))
        self.lora_B = nn.Parameter(b.to(**like))
        self.importance = rank_budget.Importance(self.triplets()).to(base.weight.device)

    def triplets(self) -> dict[str, nn.Parameter]:
        """The parameters that a rank has a part of."""
        return {"lora_A": self.lora_A, "lora_E": self.lora_E, "lora_B": self.lora_B}

    def beside(self, y, x):
        x_dropped = F.dropout(x, self.dropout, self.training)
        update = F.linear(F.linear(x_dropped, self.lora_A * self.lora_E), self.lora_B)
        return y + self.scale * update

    def delta(self):
        return self.scale * (self.lora_B.float() @ (self.lora_A.float() * self.lora_E.float()))


class AdaLoRA(Method):
    """AdaLoRA on the linear maps that the config names."""

    name = "adalora"
    summary = "low-rank updates that share a shrinking budget of ranks"
    paper = "Zhang et al. 2023, arXiv:2303.10512"
    mergeable = True
    learning_rates = (5e-4, 1e-3, 2e-3)
    stage = 0
    excludes = dict.fromkeys(
        ("lora", "dora"),
        "both adapt linear maps with low ranks, and the budget counts its own only",
    )
    Config = AdaLoRAConfig

    def inject(self, model, family, generator):
        linears = surgery.linears(model, family)
        for name, linear in surgery.match(linears, self.config.targets, self.config.layers).items():
            swapped = AdaLoRALinear(linear, self.config, generator)
            surgery.swap(model, family.path(name), swapped)

    def frozen_base_names(self, model, family):
        modules = model.named_modules()
        return {f"{name}.weight" for name, m in modules if isinstance(m, AdaLoRALinear)}

    def count(self, dims):
        shapes = dims.linears()
        formulas = {
            name: f"{self.config.init_rank} x ({shapes[name][0]} + {shapes[name][1]} + 1)"
            for name in targets.select(shapes, self.config.targets, self.config.layers)
        }
        count = Count()
        count.add_groups("adalora", formulas)
        return count

    def buffer_bytes(self, dims):
        # Two floats for each number that trains; for each map a byte a rank, and the schedule's
        # length, 8 bytes (``rank_budget.Importance``).
        maps = targets.select(dims.linears(), self.config.targets, self.config.layers)
        return 2 * 4 * self.count(dims).total + len(maps) * (self.config.init_rank + 8)

    def penalty(self, model):
        if self.config.orthogonality == 0:
            return None
        squares = []
        for linear in _linears(model):
            a, b = linear.lora_A.float(), linear.lora_B.float()
            squares += [a @ a.T, b.T @ b]
        distances = [torch.linalg.norm(s - torch.eye(len(s), device=s.device)) for s in squares]
        return self.config.orthogonality * torch.stack(distances).mean()

    def after_update(self, model, num_updates, planned):
        rank_budget.follow(_linears(model), self.config, num_updates, planned)

    def merge(self, model, family):
        for name, module in list(model.named_modules()):
            if isinstance(module, AdaLoRALinear):
                surgery.swap(model, name, module.merged())


def _linears(model) -> list[AdaLoRALinear]:
    return [module for module in model.modules() if isinstance(module, AdaLoRALinear)]


METHOD = AdaLoRA

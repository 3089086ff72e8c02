"""VeRA: an update through two frozen random matrices that all maps share; two vectors a map train.

    y = x W^T + b + v * ((d * (drop(x) A^T)) B^T)

A (r, in) and B (out, r) are random and frozen, one pair for the whole model: uniform with variance
2 / in and 2 / r, as in Hugging Face PEFT. d (r,) starts at ``d_initial``, v (out,) at zero, so the
start is the base model, bit for bit. Maps of several sizes use the first columns of A and the first
rows of B. A and B come from a seed, which the run draws and the checkpoint holds: 8 bytes in place
of a megabyte. Trainable: r + out for each adapted map. Merges: W + diag(v) B diag(d) A.

Where the rest is:
    shared/adapted_linear.py  what ``VeRALinear`` is made of: the base's W and b, its merge
    injection/surgery.py      finds linear maps by name, and swaps them
    methods/base.py           what a method is, and which of its functions is called when

Paper: Kopiczko et al. 2024, arXiv:2310.11454, where v is called b. Shape letters: r rank.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_peft.architectures import Count
from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery, targets
from fairseq_peft.methods.base import Method
from fairseq_peft.methods.shared.adapted_linear import BesideLinear


def _knob(default, text, **metadata):
    return field(default=default, metadata={"help": text, **metadata})


@dataclass
class VeRAConfig:
    """Knobs of VeRA."""

    rank: int = _knob(256, "rank r of the frozen matrices (256)")
    d_initial: float = _knob(0.1, "where the vector d starts (0.1)")
    dropout: float = _knob(0.0, "dropout on the update's input, in [0, 1) (0)")
    targets: str = _knob(
        "q_proj,v_proj",
        "linear maps to adapt: ends of names with commas, a regular expression for whole names, "
        "or all-linear (q_proj,v_proj)",
        flag="peft_targets",
    )
    layers: str = _knob("", "layers to adapt, counted from 0: 0-2,5 or decoder.0-2 (all)")

    def __post_init__(self):
        if self.rank < 1:
            raise InputError(
                f"--vera-rank {self.rank} is not a rank: give an integer of at least 1."
            )
        if not 0 < abs(self.d_initial) < float("inf"):
            raise InputError(
                f"--vera-d-initial {self.d_initial} lets nothing through: give a number such as "
                "0.1."
            )
        if not 0 <= self.dropout < 1:
            raise InputError(
                f"--vera-dropout {self.dropout} is not in [0, 1): give a share such as 0.1."
            )


class SharedMatrices(nn.Module):
    """A (r, in) and B (out, r), in and out the largest of all maps; drawn from ``seed``.

    All are buffers: they never train. The seed alone is in the state; A and B are drawn from it,
    here and whenever a state is loaded.
    """

    def __init__(self, rank: int, in_dim: int, out_dim: int, seed: int, like: torch.Tensor):
        super().__init__()
        kind = {"device": like.device, "dtype": like.dtype}
        self.register_buffer("seed", torch.tensor(seed, device=like.device))
        self.register_buffer("A", torch.empty(rank, in_dim, **kind), persistent=False)
        self.register_buffer("B", torch.empty(out_dim, rank, **kind), persistent=False)
        self.draw()

    @torch.no_grad()
    def draw(self) -> None:
        """A and B from the seed: on the CPU in fp32, so they are the same everywhere."""
        generator = torch.Generator().manual_seed(int(self.seed))
        for matrix in (self.A, self.B):
            bound = (6 / matrix.shape[1]) ** 0.5
            matrix.copy_(torch.empty(matrix.shape).uniform_(-bound, bound, generator=generator))

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self.draw()


class VeRALinear(BesideLinear):
    """``y = x W^T + b + v * ((d * (drop(x) A^T)) B^T)`` with W, b, A and B frozen.

    Shapes: x (..., in) -> y (..., out); vera_d (r,); vera_v (out,).
    The shared matrices are kept in a tuple, where torch does not look for modules: the model holds
    them once, and whatever is done to them there (a cast, a copy, a load) is done for this map.
    """

    def __init__(self, base: nn.Linear, matrices: SharedMatrices, config: VeRAConfig):
        super().__init__(base)
        self.shared = (matrices,)
        self.dropout = config.dropout
        like = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.vera_d = nn.Parameter(torch.full((config.rank,), config.d_initial, **like))
        self.vera_v = nn.Parameter(torch.zeros(base.out_features, **like))

    def matrices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, in) and B (out, r) for this map."""
        (shared,) = self.shared
        return shared.A[:, : self.in_features], shared.B[: self.out_features]

    def beside(self, y, x):
        a, b = self.matrices()
        inner = self.vera_d * F.linear(F.dropout(x, self.dropout, self.training), a)  # (..., r)
        # Under bf16 autocast y is bf16 and the vectors are fp32; attention refuses mixed types.
        return y + (self.vera_v * F.linear(inner, b)).to(y.dtype)

    def delta(self):
        a, b = (matrix.float() for matrix in self.matrices())
        return (self.vera_v.float()[:, None] * b) @ (self.vera_d.float()[:, None] * a)


class VeRA(Method):
    """VeRA on the linear maps that the config names; the shared matrices are at the root."""

    name = "vera"
    summary = "vectors that scale an update through shared random matrices"
    paper = "Kopiczko et al. 2024, arXiv:2310.11454"
    mergeable = True
    learning_rates = (3e-3, 1e-2, 3e-2)
    stage = 0
    excludes = dict.fromkeys(
        ("lora", "dora", "adalora", "oft"), "both put a map of their own where linear maps are"
    )
    Config = VeRAConfig

    def inject(self, model, family, generator):
        chosen = surgery.match(
            surgery.linears(model, family), self.config.targets, self.config.layers
        )
        matrices = SharedMatrices(
            self.config.rank,
            max(linear.in_features for linear in chosen.values()),
            max(linear.out_features for linear in chosen.values()),
            # Below 2^24, so that whoever makes floats of a whole state does not change it.
            int(torch.randint(2**24, (), generator=generator)),
            like=next(iter(chosen.values())).weight,
        )
        model.get_submodule(family.root).vera = matrices
        for name, linear in chosen.items():
            swapped = VeRALinear(linear, matrices, self.config)
            surgery.swap(model, family.path(name), swapped)

    def frozen_base_names(self, model, family):
        modules = model.named_modules()
        return {f"{name}.weight" for name, m in modules if isinstance(m, VeRALinear)}

    def count(self, dims):
        shapes = dims.linears()
        formulas = {
            name: f"({self.config.rank} + {shapes[name][1]})"
            for name in targets.select(shapes, self.config.targets, self.config.layers)
        }
        count = Count()
        count.add_groups("vera", formulas)
        return count

    def buffer_bytes(self, dims):
        return 8  # the seed

    def merge(self, model, family):
        root = model.get_submodule(family.root)
        root.vera.float().draw()  # those of a half-precision model have been rounded
        for name, module in list(model.named_modules()):
            if isinstance(module, VeRALinear):
                surgery.swap(model, name, module.merged())
        del root.vera


METHOD = VeRA

"""OFT: a trained rotation of what goes into a frozen linear map.

    y = (x R) W^T + b        R = diag(R_1, ..., R_n), R_i = (I + Q_i) (I - Q_i)^-1

Q_i (k, k) is skew-symmetric, so R_i is orthogonal (Cayley transform); k is the block size, n is
in / k. ``oft_q`` (n, k (k - 1) / 2) holds what is above their diagonals, row by row, and starts at
zero: R is the identity, and the start is the base model, bit for bit. Lengths of W's rows and the
angles between them stay, whatever R is. Trainable: in (k - 1) / 2 for each adapted map. Merges:
W R^T.

Hugging Face PEFT rotates the input, too; its default is a series of five terms in place of the
inverse, and k = 32. With ``use_cayley_neumann=False`` its Q is -Q here.

Where the rest is:
    shared/adapted_linear.py  what ``OFTLinear`` is made of: the base's W and b, its merge
    injection/surgery.py      finds linear maps by name, and swaps them
    methods/base.py           what a method is, and which of its functions is called when

Paper: Qiu et al. 2023, arXiv:2306.07280, eq. 2 and section 3.2; input-centric as in Qiu et al.
2025, arXiv:2506.19847. Shape letters: k block size, n number of blocks.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_peft.architectures import Count
from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery, targets
from fairseq_peft.methods.base import Method
from fairseq_peft.methods.shared.adapted_linear import AdaptedLinear


@dataclass
class OFTConfig:
    """Knobs of OFT."""

    block_size: int = field(
        default=16, metadata={"help": "size k of the blocks; divides the maps' inputs (16)"}
    )
    targets: str = field(
        default="q_proj,v_proj",
        metadata={
            "flag": "peft_targets",
            "help": "linear maps to adapt: ends of names with commas, a regular expression for "
            "whole names, or all-linear (q_proj,v_proj)",
        },
    )
    layers: str = field(
        default="", metadata={"help": "layers to adapt, counted from 0: 0-2,5 or decoder.0-2 (all)"}
    )

    def __post_init__(self):
        if self.block_size < 2:
            raise InputError(
                f"--oft-block-size {self.block_size} rotates nothing: give an integer of at least "
                "2."
            )

    def num_blocks(self, name: str, in_dim: int) -> int:
        """The number n of blocks for the inputs of the map ``name``.

        Raises:
            InputError: the block size does not divide them.
        """
        if in_dim % self.block_size:
            raise InputError(
                f"--oft-block-size {self.block_size} does not divide the {in_dim} inputs of "
                f"{name}. Give one that does."
            )
        return in_dim // self.block_size


class OFTLinear(AdaptedLinear):
    """``y = (x R) W^T + b`` with W and b frozen.

    Shapes: x (..., in) -> y (..., out); oft_q (n, k (k - 1) / 2); R is block-diagonal (in, in).
    """

    def __init__(self, base: nn.Linear, num_blocks: int, block_size: int):
        super().__init__(base)
        self.block_size = block_size
        q = torch.zeros(num_blocks, block_size * (block_size - 1) // 2)
        self.oft_q = nn.Parameter(q.to(base.weight))

    def forward(self, x):
        blocks = x.unflatten(-1, (-1, self.block_size))  # (..., n, k)
        rotated = torch.einsum("...nk,nkl->...nl", blocks, self.rotations().to(x.dtype))
        return F.linear(rotated.flatten(-2), self.weight, self.bias)

    def rotations(self) -> torch.Tensor:
        """R_1 ... R_n, (n, k, k), in fp32."""
        k = self.block_size
        # Under bf16 autocast, too: what is orthogonal in bf16 is so to two digits.
        with torch.autocast(self.oft_q.device.type, enabled=False):
            rows, columns = torch.triu_indices(k, k, 1, device=self.oft_q.device)
            upper = self.oft_q.new_zeros(len(self.oft_q), k, k, dtype=torch.float32)
            upper[:, rows, columns] = self.oft_q.float()
            q = upper - upper.transpose(1, 2)
            one = torch.eye(k, device=q.device)
            # The two factors commute. 1 - Q has an inverse for every skew-symmetric Q: to check it,
            # as solve does, is a wait for a GPU.
            return torch.linalg.solve_ex(one - q, one + q).result

    def merged_weight(self):
        blocks = self.weight.float().unflatten(1, (-1, self.block_size))  # (out, n, k)
        return torch.einsum("onl,nkl->onk", blocks, self.rotations()).flatten(1)


class OFT(Method):
    """OFT on the linear maps that the config names."""

    name = "oft"
    summary = "rotations of what goes into frozen linear maps, in blocks"
    paper = "Qiu et al. 2023, arXiv:2306.07280"
    mergeable = True
    learning_rates = (5e-4, 1e-3, 2e-3)
    stage = 0
    excludes = dict.fromkeys(
        ("lora", "dora", "adalora", "vera"), "both put a map of their own where linear maps are"
    )
    Config = OFTConfig

    def inject(self, model, family, generator):
        linears = surgery.linears(model, family)
        chosen = surgery.match(linears, self.config.targets, self.config.layers)
        for name, linear in chosen.items():
            num_blocks = self.config.num_blocks(name, linear.in_features)
            swapped = OFTLinear(linear, num_blocks, self.config.block_size)
            surgery.swap(model, family.path(name), swapped)

    def frozen_base_names(self, model, family):
        return {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, OFTLinear)}

    def count(self, dims):
        shapes, k = dims.linears(), self.config.block_size
        formulas = {
            name: f"{self.config.num_blocks(name, shapes[name][0])} x {k * (k - 1) // 2}"
            for name in targets.select(shapes, self.config.targets, self.config.layers)
        }
        count = Count()
        count.add_groups("oft", formulas)
        return count

    def merge(self, model, family):
        for name, module in list(model.named_modules()):
            if isinstance(module, OFTLinear):
                surgery.swap(model, name, module.merged())


METHOD = OFT

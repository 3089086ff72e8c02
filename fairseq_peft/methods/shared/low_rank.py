"""What LoRA and its relatives share: knobs, which maps get which rank, starts that read the base
weights, the embedding, biases that train.

Shape letters: r rank, V rows of the embedding, C model dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_peft.architectures import Count
from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery, targets

BIASES = ("none", "all", "lora_only")


def _knob(flag, default, text):
    return field(default=default, metadata={"flag": flag, "help": text})


@dataclass
class LowRankConfig:
    """Knobs of all methods with an update B A of rank r."""

    rank: int = _knob("lora_rank", 8, "rank r of the update (8)")
    alpha: float = _knob("lora_alpha", 16.0, "the update is scaled by alpha / rank (16)")
    dropout: float = _knob("lora_dropout", 0.0, "dropout on the update's input, in [0, 1) (0)")
    targets: str = _knob(
        "peft_targets",
        "q_proj,v_proj",
        "what to adapt: ends of names with commas, a regular expression for whole names, or "
        "all-linear (q_proj,v_proj)",
    )
    layers: str = _knob(
        "lora_layers", "", "layers to adapt, counted from 0: 0-2,5 or decoder.0-2 (all)"
    )
    rank_pattern: str = _knob(
        "lora_rank_pattern",
        "",
        "other ranks for some, the first that fits: fc1=16,layers.0.self_attn.q_proj=4 (none)",
    )
    alpha_pattern: str = _knob(
        "lora_alpha_pattern", "", "other alphas for some, as --lora-rank-pattern (none)"
    )
    rslora: bool = _knob(
        "lora_rslora", False, "scale by alpha / sqrt(rank), arXiv:2312.03732 (off)"
    )
    bias: str = _knob(
        "lora_bias",
        "none",
        "base biases that train: none, all of the body, or lora_only, those of the adapted maps "
        "(none)",
    )
    lr_ratio: float = _knob(
        "lora_lr_ratio",
        1.0,
        "LoRA+: learning rate of B by that of A, arXiv:2402.12354 recommends 16; needs "
        "--optimizer peft_adamw (1)",
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
        if not 0 < self.alpha < math.inf:
            raise InputError(f"--lora-alpha {self.alpha} turns LoRA off: give a positive number.")
        if not 0 < self.lr_ratio < math.inf:
            raise InputError(
                f"--lora-lr-ratio {self.lr_ratio} is no ratio of learning rates: give a positive "
                "number, such as 16 for LoRA+ or 1 for LoRA."
            )
        if self.bias not in BIASES:
            raise InputError(
                f"--lora-bias {self.bias!r} is unknown: give one of {', '.join(BIASES)}."
            )


def choose(
    config: LowRankConfig, linears: Iterable[str], embeddings: Iterable[str]
) -> dict[str, tuple[int, float]]:
    """Name -> rank and scale of the update, for what ``config`` means among the model's names.

    Raises:
        InputError: a target or a pattern means nothing here, or a knob would be ignored.
    """
    linears, embeddings = list(linears), list(embeddings)
    names = targets.select([*linears, *embeddings], config.targets, config.layers)
    if not set(names) & set(linears):
        ignored = {
            "--lora-dropout": config.dropout > 0,
            "--lora-bias lora_only": config.bias == "lora_only",
            "--lora-init": getattr(config, "init", "zero") != "zero",
        }
        for flag in [flag for flag, given in ignored.items() if given]:
            raise InputError(
                f"{flag} would be ignored: --peft-targets {config.targets} means an embedding "
                "alone. Leave the flag out, or name linear maps too."
            )
    ranks = targets.by_pattern(names, config.rank_pattern, "--lora-rank-pattern", int, config.rank)
    alphas = targets.by_pattern(
        names, config.alpha_pattern, "--lora-alpha-pattern", float, config.alpha
    )
    root = math.sqrt if config.rslora else float
    return {name: (ranks[name], alphas[name] / root(ranks[name])) for name in names}


def init_zero(
    base: nn.Linear, rank: int, generator: torch.Generator
) -> tuple[nn.Parameter, nn.Parameter]:
    """A (r, in) uniform in +-1/sqrt(in), and B (out, r) zero, so that B A is zero."""
    bound = base.in_features**-0.5
    a = torch.empty(rank, base.in_features).uniform_(-bound, bound, generator=generator)
    b = torch.zeros(base.out_features, rank)
    return nn.Parameter(a.to(base.weight)), nn.Parameter(b.to(base.weight))


def pissa(weight: torch.Tensor, rank: int, scale: float):
    """A and B from the r largest singular values of ``weight`` (out, in): scale B A is its best
    approximation of rank r. Source: Meng et al. 2024, arXiv:2404.02948."""
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    return root[:, None] * vt[:rank], u[:, :rank] * root


def olora(weight: torch.Tensor, rank: int, scale: float):
    """B the first r columns of Q, A the first r rows of R, of ``weight`` = Q R. Source: Büyükakyüz
    2024, arXiv:2406.01775."""
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]


#: What ``--lora-init`` takes beside zero: (weight, rank, scale) -> A, B.
DECOMPOSITIONS = {"pissa": pissa, "olora": olora}


def check_decomposition(init: str, name: str, weight: torch.Tensor, rank: int) -> None:
    """Raise InputError where ``weight`` has no ``rank`` singular values or columns of Q."""
    if init in DECOMPOSITIONS and rank > min(weight.shape):
        raise InputError(
            f"--lora-init {init} with rank {rank}: {name} is {tuple(weight.shape)}, so it has no "
            f"more than {min(weight.shape)} directions to start from. Give a lower --lora-rank, or "
            "--lora-init zero."
        )


class LoRAEmbedding(nn.Embedding):
    """``y = E[x] + s A[:, x]^T B^T`` with E frozen.

    Shapes: x (...) -> y (..., C); lora_A (r, V); lora_B (C, r); E (V, C).
    A starts at zero and B normal, as in Hugging Face PEFT. It holds the base's own ``weight``, so
    an LM head that shares it still does; ``project`` is what that head has to add.
    """

    def __init__(self, base: nn.Embedding, rank: int, scale: float, generator: torch.Generator):
        super().__init__(base.num_embeddings, base.embedding_dim, base.padding_idx, device="meta")
        self.weight = base.weight
        self.scale = scale
        b = torch.empty(base.embedding_dim, rank).normal_(generator=generator)
        self.lora_A = nn.Parameter(torch.zeros(rank, base.num_embeddings).to(base.weight))
        self.lora_B = nn.Parameter(b.to(base.weight))

    def forward(self, x):
        # As for E, looking up padding gives its column of A no gradient.
        rows = F.embedding(x, self.lora_A.t(), self.padding_idx)
        return super().forward(x) + self.scale * F.linear(rows, self.lora_B)

    def project(self, features):
        """What the update adds to the LM logits: features (..., C) -> (..., V)."""
        return self.scale * F.linear(F.linear(features, self.lora_B.t()), self.lora_A.t())

    @torch.no_grad()
    def merge_(self) -> nn.Embedding:
        """Write the update into E, in place, because the LM head shares the tensor; a plain
        embedding around E."""
        update = self.scale * (self.lora_B.float() @ self.lora_A.float()).t()
        self.weight.copy_(self.weight.float() + update)
        plain = nn.Embedding(
            self.num_embeddings, self.embedding_dim, self.padding_idx, device="meta"
        )
        plain.weight = self.weight
        return plain


def set_output_update(model: nn.Module, embedding: nn.Embedding, update) -> None:
    """Fill the slot ``output_update`` of the LM head, if it shares the matrix of ``embedding``.

    Raises:
        InputError: it shares the matrix and has no such slot.
    """
    for module in model.modules():
        tied = getattr(module, "weight", None) is embedding.weight
        if tied and not isinstance(module, nn.Embedding):
            surgery.fill(module, "output_update", update)


def trained_biases(model: nn.Module, family, config: LowRankConfig) -> set[str]:
    """The names of the base's biases that train."""
    parts = surgery.linears(model, family), surgery.embeddings(model, family)
    names = _biases(surgery.tensors(model, family), config, choose(config, *parts))
    return {family.path(name) for name in names}


def count_biases(dims, config: LowRankConfig) -> Count:
    """Those biases as terms."""
    shapes = dims.tensors()
    names = _biases(shapes, config, choose(config, dims.linears(), dims.embeddings()))
    count = Count()
    count.add_tensors({name: shapes[name] for name in names})
    return count


def _biases(tensors, config, adapted):
    if config.bias == "none":
        return []
    found = [name for name in tensors if name.endswith(".bias")]
    return [n for n in found if config.bias == "all" or n.rpartition(".")[0] in adapted]

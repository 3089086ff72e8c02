"""Prefix tuning: P trained keys and values that every position attends to, in every layer of a
frozen model.

    attention(q, [K_prefix; K], [V_prefix; V])       K_prefix, V_prefix (P, C) for each layer

``embeddings`` (P, 2 L C) holds all of them as Hugging Face PEFT does: seen as (P, 2 L, H, C / H),
the keys of layer l are at 2 l and its values at 2 l + 1. A decoder with cross-attention has two
attentions a layer, to itself and to its encoder, and counts as 2 L layers; encoder and decoder have
a prefix each (Li and Liang 2021, on BART).
With ``mlp`` they are the output of a two-layer tanh MLP of ``embeddings`` (P, C)
(``reparametrise.py``), which ``fold`` replaces by its output.
Positions: ``shared`` as in AdapterHub: the text keeps its positions and its length. ``reserved`` as
in Hugging Face PEFT and P-tuning v2: the text begins at position P, P tokens after where
pre-training put it, and may be P tokens shorter. On a frozen model that costs accuracy, 3.5 points
in RESULTS.md.
Trainable: 2 P L C; with an MLP of hidden size h: P C + (C + 1) h + (h + 1) 2 L C.
There is no start as the identity: what attends to a prefix attends less to the text. N(0, 0.02) is
nearer to it than Hugging Face PEFT's N(0, 1).

Where the rest is:
    shared/reparametrise.py  the trained vectors, and the MLP that ``fold`` drops
    models/encoder.py        the slot ``prefix``; layers/attention.py puts it before K and V
    methods/base.py          what a method is, and which of its functions is called when

Papers: Li and Liang 2021, arXiv:2101.00190; Liu et al. 2022, arXiv:2110.07602 (P-tuning v2: the
same keys and values in an encoder, for classification).
Shape letters: C model dim, H heads, L layers, P prefix tokens.
"""

from dataclasses import dataclass, field, replace

from fairseq_peft.architectures import Count
from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery
from fairseq_peft.methods.base import Method
from fairseq_peft.methods.shared import reparametrise

POSITIONS = ("reserved", "shared")


@dataclass
class PrefixConfig:
    """Knobs of prefix tuning."""

    num_tokens: int = field(
        default=20, metadata={"help": "number P of keys and values in each layer (20)"}
    )
    mlp: int = field(
        default=0,
        metadata={"help": "hidden size of an MLP that makes them, in training; 0 for none (0)"},
    )
    positions: str = field(
        default="shared",
        metadata={
            "help": "shared: the text keeps its positions; reserved, as in Hugging Face PEFT: it "
            "stands P positions later and may be P tokens shorter (shared)"
        },
    )

    def __post_init__(self):
        reparametrise.check_sizes(self.num_tokens, self.mlp, "prefix")
        if self.positions not in POSITIONS:
            raise InputError(
                f"--prefix-positions {self.positions!r} is unknown: give one of "
                f"{', '.join(POSITIONS)}."
            )


class Prefix(reparametrise.Vectors):
    """Keys and values for ``num_attentions``, and how many positions they take from the text."""

    def __init__(self, embeddings, mlp, num_attentions: int, positions: str):
        super().__init__(embeddings, mlp)
        self.num_attentions = num_attentions
        self.num_reserved = self.num_tokens if positions == "reserved" else 0

    def forward(self, num_heads: int) -> list:
        """For each attention its keys and values, (H, P, C / H) each."""
        parts = self.vectors().view(self.num_tokens, 2 * self.num_attentions, num_heads, -1)
        parts = parts.permute(1, 2, 0, 3)
        return list(zip(parts[0::2], parts[1::2]))


class PrefixTuning(Method):
    """Extra keys and values in every layer."""

    name = "prefix"
    summary = "trained keys and values in every layer"
    paper = "Li and Liang 2021, arXiv:2101.00190; Liu et al. 2022, arXiv:2110.07602"
    logits_at_start = "changed"
    learning_rates = (1e-3, 3e-3, 1e-2)
    Config = PrefixConfig

    def inject(self, model, family, generator):
        found = surgery.entrances(model, family, "prefix")
        table = next(iter(surgery.embeddings(model, family).values()))
        for stack, owner in found:
            number = surgery.num_attentions(owner, stack)
            prefix = self.build(table.embedding_dim, number, generator)
            surgery.fill(owner, "prefix", prefix.to(table.weight))

    def build(self, dim, num_attentions, generator) -> Prefix:
        """The prefix of a stack: C, and how many attentions read it."""
        out, mlp = 2 * num_attentions * dim, None
        if self.config.mlp:
            # An MLP wants inputs of size 1, as in Hugging Face PEFT.
            embeddings = reparametrise.normal(self.config.num_tokens, dim, 1.0, generator)
            mlp = reparametrise.mlp(dim, self.config.mlp, out, generator)
        else:
            embeddings = reparametrise.normal(self.config.num_tokens, out, 0.02, generator)
        return Prefix(embeddings, mlp, num_attentions, self.config.positions)

    def count(self, dims):
        count, c = Count(), dims.embed_dim
        for number in dims.attentions():
            out = f"2 x {number} x {c}"
            if self.config.mlp:
                count.add("prefix", f"{self.config.num_tokens} x {c}")
                count.add("prefix mlp", reparametrise.mlp_formula(c, self.config.mlp, out))
            else:
                count.add("prefix", f"{self.config.num_tokens} x {out}")
        return count

    def fold(self, model):
        for module in model.modules():
            if isinstance(module, Prefix):
                module.fold()
        return PrefixTuning(replace(self.config, mlp=0))


METHOD = PrefixTuning

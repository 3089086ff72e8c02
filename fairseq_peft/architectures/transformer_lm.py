"""fairseq's decoder-only language model: causal self-attention and feed-forward in each layer."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq_peft.architectures.counting import Count, Section, tensors


@dataclass(frozen=True)
class TransformerLMDims:
    """Sizes of a ``transformer_lm``.

    Attributes:
        max_positions: rows that a learned position embedding has for tokens; 0 for sinusoids, which
            have no parameters.
        tied: whether the output matrix is the token embedding.
        last_norm: whether a layer norm follows the last layer, as where norms come first.
        embedding_norm: whether one follows the embeddings.
    """

    num_layers: int
    embed_dim: int
    ffn_dim: int
    num_heads: int
    max_positions: int
    vocab_size: int
    tied: bool = False
    last_norm: bool = True
    embedding_norm: bool = False

    def linears(self) -> dict[str, tuple[int, int]]:
        """Name below the root -> (in, out) of every linear map."""
        c, f = self.embed_dim, self.ffn_dim
        shapes = {f"self_attn.{name}_proj": (c, c) for name in ("q", "k", "v", "out")}
        shapes.update(fc1=(c, f), fc2=(f, c))
        return {
            f"layers.{layer}.{name}": shape
            for layer in range(self.num_layers)
            for name, shape in shapes.items()
        }

    def embeddings(self) -> dict[str, tuple[int, int]]:
        """Name below the root -> (rows, C) of the embeddings that methods may change."""
        return {"embed_tokens": (self.vocab_size, self.embed_dim)}

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name below the root -> shape of every tensor of the body."""
        tables = self.embeddings()
        if self.max_positions:
            tables["embed_positions"] = (self.max_positions + 2, self.embed_dim)
        norms = [
            f"layers.{layer}.{name}_layer_norm"
            for layer in range(self.num_layers)
            for name in ("self_attn", "final")
        ]
        norms += ["layernorm_embedding"] * self.embedding_norm + ["layer_norm"] * self.last_norm
        return tensors(self.linears(), tables, norms, self.embed_dim)

    def num_blocks(self, place: str) -> int:
        """How many blocks there are to put an adapter behind; ``place`` is attention or ffn."""
        return self.num_layers

    def attentions(self) -> list[int]:
        """How many attentions a prefix reaches, stack by stack."""
        return [self.num_layers]

    def body(self) -> Count:
        """What full fine-tuning trains: everything."""
        c, f, n = self.embed_dim, self.ffn_dim, self.num_layers
        count = Count()
        count.add("token embedding", f"{self.vocab_size} x {c}")
        if not self.tied:
            count.add("output matrix", f"{self.vocab_size} x {c}")
        if self.max_positions:
            count.add("position embedding", f"({self.max_positions} + 2) x {c}")
        count.add("attention", f"{n} x 4 x ({c} x {c} + {c})")
        count.add("feed-forward", f"{n} x (2 x {c} x {f} + {f} + {c})")
        count.add("layer norms", f"({n} x 2 + {self.last_norm + self.embedding_norm}) x 2 x {c}")
        return count

    def head(self, num_classes: int) -> Count:
        """Nothing: the answer is text."""
        return Count()

    def sections(self) -> list[Section]:
        """The whole model."""
        return [Section("whole model", self.body())]

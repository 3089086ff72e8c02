"""GPT-2 and BLOOM: decoder-only language models. ``models/hf_models.py`` builds them.

Query, key and value are one linear map; every linear map has a bias; layer norms come before each
block, and one at the end; the output matrix is the token embedding. Names within a layer are
Hugging Face's.
"""

from __future__ import annotations

from dataclasses import dataclass

from fairseq_peft.architectures.counting import Count, Section, tensors


@dataclass(frozen=True)
class DecoderDims:
    """Sizes of a decoder-only model.

    Attributes:
        max_positions: rows of the position embedding; 0 for none (ALiBi).
        embedding_norm: whether a layer norm follows the token embedding.
        embedding, qkv, out, fc1, fc2: names of the embedding and of a layer's linear maps.
    """

    num_layers: int
    embed_dim: int
    ffn_dim: int
    num_heads: int
    max_positions: int
    vocab_size: int
    embedding_norm: bool
    embedding: str
    qkv: str
    out: str
    fc1: str
    fc2: str

    def linears(self) -> dict[str, tuple[int, int]]:
        """Name -> (in, out) of every linear map."""
        c, f = self.embed_dim, self.ffn_dim
        shapes = {self.qkv: (c, 3 * c), self.out: (c, c), self.fc1: (c, f), self.fc2: (f, c)}
        return {
            f"layers.{layer}.{name}": shape
            for layer in range(self.num_layers)
            for name, shape in shapes.items()
        }

    def embeddings(self) -> dict[str, tuple[int, int]]:
        """The embedding, tied to the output."""
        return {self.embedding: (self.vocab_size, self.embed_dim)}

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor."""
        tables = self.embeddings()
        if self.max_positions:
            tables["positions"] = (self.max_positions, self.embed_dim)
        norms = [f"layers.{n}.norm_{k}" for n in range(self.num_layers) for k in (1, 2)]
        norms += ["embedding_norm"] * self.embedding_norm + ["last_norm"]
        return tensors(self.linears(), tables, norms, self.embed_dim)

    def num_blocks(self, place: str) -> int:
        """One a layer, for ``ffn`` and ``attention``."""
        return self.num_layers

    def attentions(self) -> list[int]:
        """How many attentions a prefix reaches, stack by stack."""
        return [self.num_layers]

    def body(self) -> Count:
        """Every tensor of the model."""
        c, f, n = self.embed_dim, self.ffn_dim, self.num_layers
        count = Count()
        count.add("token embedding, tied to the output", f"{self.vocab_size} x {c}")
        if self.max_positions:
            count.add("position embedding", f"{self.max_positions} x {c}")
        if self.embedding_norm:
            count.add("layer norm of the embedding", f"2 x {c}")
        count.add("query, key, value", f"{n} x ({c} x 3 x {c} + 3 x {c})")
        count.add("attention output", f"{n} x ({c} x {c} + {c})")
        count.add("feed-forward", f"{n} x (2 x {c} x {f} + {f} + {c})")
        count.add("layer norms", f"{n} x 2 x 2 x {c}")
        count.add("last layer norm", f"2 x {c}")
        return count

    def head(self, num_classes: int) -> Count:
        """Nothing: the answer is text."""
        return Count()

    def sections(self) -> list[Section]:
        """The whole model."""
        return [Section("whole model", self.body())]


SIZES = {
    "gpt2_small": DecoderDims(
        num_layers=12,
        embed_dim=768,
        ffn_dim=3072,
        num_heads=12,
        max_positions=1024,
        vocab_size=50_257,
        embedding_norm=False,
        embedding="wte",
        qkv="attn.c_attn",
        out="attn.c_proj",
        fc1="mlp.c_fc",
        fc2="mlp.c_proj",
    ),
    "bloom_560m": DecoderDims(
        num_layers=24,
        embed_dim=1024,
        ffn_dim=4096,
        num_heads=16,
        max_positions=0,
        vocab_size=250_880,
        embedding_norm=True,
        embedding="word_embeddings",
        qkv="self_attention.query_key_value",
        out="self_attention.dense",
        fc1="mlp.dense_h_to_4h",
        fc2="mlp.dense_4h_to_h",
    ),
}

"""RoBERTa: a bidirectional encoder with a classification head; layer norms after each block."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq_peft.architectures.counting import Count, Section, tensors


@dataclass(frozen=True)
class Dims:
    """Sizes of a RoBERTa: C ``embed_dim``, F ``ffn_dim``, L ``num_layers``, V ``vocab_size``
    with specials."""

    num_layers: int
    embed_dim: int
    ffn_dim: int
    num_heads: int
    max_positions: int
    vocab_size: int

    def linears(self) -> dict[str, tuple[int, int]]:
        """Name below the root -> (in, out) of every linear map, as ``targets.select`` takes
        them."""
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
        positions = {"embed_positions": (self.max_positions + 2, self.embed_dim)}
        norms = [
            f"layers.{layer}.{name}_layer_norm"
            for layer in range(self.num_layers)
            for name in ("self_attn", "final")
        ]
        return tensors(
            self.linears(),
            {**self.embeddings(), **positions},
            ["layernorm_embedding", *norms],
            self.embed_dim,
        )

    def num_blocks(self, place: str) -> int:
        """How many blocks there are to put an adapter behind; ``place`` is attention or ffn."""
        return self.num_layers

    def attentions(self) -> list[int]:
        """How many attentions a prefix reaches, stack by stack."""
        return [self.num_layers]

    def body(self) -> Count:
        """What full fine-tuning trains: everything but the heads."""
        return Count(matrices(self).terms + encoder_rest(self).terms)

    def head(self, num_classes: int, kind: str = "roberta") -> Count:
        """What a task adds to the model before any method does (``--classifier-head``)."""
        return classification_head(self, num_classes, kind)

    def sections(self) -> list[Section]:
        """The model without the task's head, part by part."""
        return [
            Section("encoder, matrices alone", matrices(self), tuple(layer_matrices(self).terms)),
            Section("encoder", encoder_rest(self)),
            Section("with LM head", lm_head(self)),
        ]


SIZES = {
    "roberta_small": Dims(4, 512, 512, 8, 256, 32_000),
    "roberta_base": Dims(12, 768, 3072, 12, 512, 50_265),
    "roberta_large": Dims(24, 1024, 4096, 16, 512, 50_265),
}


def layer_matrices(dims: Dims) -> Count:
    """The matrices of one layer."""
    c, f = dims.embed_dim, dims.ffn_dim
    count = Count()
    count.add("attention, per layer", f"4 x {c} x {c}")
    count.add("feed-forward, per layer", f"2 x {c} x {f}")
    return count


def matrices(dims: Dims) -> Count:
    """The encoder without biases, normalisation layers and LM head."""
    c = dims.embed_dim
    count = Count()
    count.add("token embedding", f"{dims.vocab_size} x {c}")
    count.add("position embedding", f"({dims.max_positions} + 2) x {c}")
    count.add(f"{dims.num_layers} layers", f"{dims.num_layers} x {layer_matrices(dims).total}")
    return count


def encoder_rest(dims: Dims) -> Count:
    """Biases and normalisation layers of the encoder."""
    c, f, n = dims.embed_dim, dims.ffn_dim, dims.num_layers
    count = Count()
    count.add("biases of attention", f"{n} x 4 x {c}")
    count.add("biases of feed-forward", f"{n} x ({f} + {c})")
    count.add("layer norms", f"({n} x 2 + 1) x 2 x {c}")
    return count


def lm_head(dims: Dims) -> Count:
    """The part of the LM head that is not tied to the token embedding."""
    c = dims.embed_dim
    count = Count()
    count.add("LM head: dense", f"{c} x {c} + {c}")
    count.add("LM head: layer norm", f"2 x {c}")
    count.add("LM head: bias", f"{dims.vocab_size}")
    return count


def classification_head(dims: Dims, num_classes: int, kind: str = "roberta") -> Count:
    """A head of ``kind`` roberta (dense, tanh, projection) or linear (the projection alone)."""
    c = dims.embed_dim
    count = Count()
    if kind == "roberta":
        count.add("head: dense", f"{c} x {c} + {c}")
    count.add("head: projection", f"{c} x {num_classes} + {num_classes}")
    return count

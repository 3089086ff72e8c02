"""T5: text to text, an encoder and a decoder. ``models/hf_models.py`` builds it.

No biases; norms that only scale (RMS); distances between tokens are scalars a head, in one table
for each of the two stacks; the output matrix is the token embedding. Names are Hugging Face's,
with ``encoder.layers.0.`` for ``encoder.block.0.layer.*.``.
"""

from __future__ import annotations

from dataclasses import dataclass

from fairseq_peft.architectures.counting import Count, Section, Undefined, tensors


@dataclass(frozen=True)
class T5Dims:
    """Sizes of a T5 whose heads are C / H wide."""

    num_encoder_layers: int
    num_decoder_layers: int
    embed_dim: int
    ffn_dim: int
    num_heads: int
    num_buckets: int
    vocab_size: int

    @property
    def num_layers(self) -> int:
        """Undefined: there are two stacks."""
        raise Undefined(
            "it is defined for one stack of layers, and T5 has an encoder and a decoder. Choose "
            "another --arch."
        )

    def linears(self) -> dict[str, tuple[int, int]]:
        """Name -> (in, out) of every linear map."""
        c, f = self.embed_dim, self.ffn_dim
        attention = dict.fromkeys(("q", "k", "v", "o"), (c, c))
        ffn = {"wi": (c, f), "wo": (f, c)}
        blocks = {"SelfAttention": attention, "EncDecAttention": attention, "DenseReluDense": ffn}
        stacks = {"encoder": self.num_encoder_layers, "decoder": self.num_decoder_layers}
        return {
            f"{stack}.layers.{layer}.{block}.{name}": shape
            for stack, number in stacks.items()
            for layer in range(number)
            for block, shapes in blocks.items()
            for name, shape in shapes.items()
            if (stack, block) != ("encoder", "EncDecAttention")
        }

    def embeddings(self) -> dict[str, tuple[int, int]]:
        """The embedding that both stacks and the output share."""
        return {"shared": (self.vocab_size, self.embed_dim)}

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor."""
        tables, norms = self.embeddings(), []
        stacks = {"encoder": (self.num_encoder_layers, 2), "decoder": (self.num_decoder_layers, 3)}
        for stack, (number, blocks) in stacks.items():
            tables[f"{stack}.relative_positions"] = (self.num_buckets, self.num_heads)
            norms += [f"{stack}.layers.{n}.norm_{k}" for n in range(number) for k in range(blocks)]
            norms.append(f"{stack}.last_norm")
        return tensors(self.linears(), tables, norms, self.embed_dim, biases=False)

    def num_blocks(self, place: str) -> int:
        """One a layer, for ``ffn`` and ``attention``: as in AdapterHub, cross-attention has
        none."""
        return self.num_encoder_layers + self.num_decoder_layers

    def attentions(self) -> list[int]:
        """Of each stack; a layer of the decoder has two, to itself and to its encoder."""
        return [self.num_encoder_layers, 2 * self.num_decoder_layers]

    def body(self) -> Count:
        """Every tensor of the model."""
        c, f, heads = self.embed_dim, self.ffn_dim, self.num_heads
        ne, nd = self.num_encoder_layers, self.num_decoder_layers
        count = Count()
        count.add("token embedding, tied to the output", f"{self.vocab_size} x {c}")
        count.add("encoder: self-attention", f"{ne} x 4 x {c} x {c}")
        count.add("encoder: feed-forward", f"{ne} x 2 x {c} x {f}")
        count.add("encoder: norms", f"({ne} x 2 + 1) x {c}")
        count.add("decoder: self- and cross-attention", f"{nd} x 2 x 4 x {c} x {c}")
        count.add("decoder: feed-forward", f"{nd} x 2 x {c} x {f}")
        count.add("decoder: norms", f"({nd} x 3 + 1) x {c}")
        count.add("relative positions", f"2 x {self.num_buckets} x {heads}")
        return count

    def head(self, num_classes: int) -> Count:
        """Nothing: the answer is text."""
        return Count()

    def sections(self) -> list[Section]:
        """The whole model."""
        return [Section("whole model", self.body())]


SIZES = {"t5_small": T5Dims(6, 6, 512, 2048, 8, 32, 32_128)}

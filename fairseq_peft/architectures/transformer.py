"""fairseq's encoder-decoders: transformer, BART, mBART, M2M-100. Self-attention and feed-forward in
each layer of the encoder, with cross-attention between them in each of the decoder."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq_peft.architectures.counting import Count, Section, Undefined, tensors


@dataclass(frozen=True)
class TransformerDims:
    """Sizes of a ``transformer`` or ``bart`` whose two halves are of one width.

    Attributes:
        max_positions: rows that each learned position embedding has for tokens; 0 for sinusoids,
            which have no parameters.
        vocab_size: rows of the embedding, of the source where there are two.
        target_vocab_size: rows of the decoder's own embedding; 0 where the encoder's is shared.
        tied: whether the output matrix is the decoder's embedding.
        last_norm: whether a layer norm follows the last layers, as where norms come first.
        embedding_norm: whether one follows the embeddings.
    """

    num_encoder_layers: int
    num_decoder_layers: int
    embed_dim: int
    ffn_dim: int
    num_heads: int
    max_positions: int
    vocab_size: int
    target_vocab_size: int = 0
    tied: bool = True
    last_norm: bool = False
    embedding_norm: bool = False

    @property
    def num_layers(self) -> int:
        """Undefined: there are two stacks."""
        raise Undefined(
            "it is defined for one stack of layers, and an encoder-decoder has two. Choose another "
            "method or --arch."
        )

    def _stacks(self):
        """Stack -> number of its layers, and its blocks of attention by name."""
        return {
            "encoder": (self.num_encoder_layers, ("self_attn",)),
            "decoder": (self.num_decoder_layers, ("self_attn", "encoder_attn")),
        }

    def linears(self) -> dict[str, tuple[int, int]]:
        """Name below the root -> (in, out) of every linear map."""
        c, f = self.embed_dim, self.ffn_dim
        found = {}
        for stack, (number, blocks) in self._stacks().items():
            maps = [f"{block}.{name}_proj" for block in blocks for name in ("q", "k", "v", "out")]
            shapes = {**dict.fromkeys(maps, (c, c)), "fc1": (c, f), "fc2": (f, c)}
            for layer in range(number):
                found.update({f"{stack}.layers.{layer}.{n}": shapes[n] for n in shapes})
        return found

    def embeddings(self) -> dict[str, tuple[int, int]]:
        """Name below the root -> (rows, C) of the embeddings that methods may change."""
        found = {"encoder.embed_tokens": (self.vocab_size, self.embed_dim)}
        if self.target_vocab_size:
            found["decoder.embed_tokens"] = (self.target_vocab_size, self.embed_dim)
        return found

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name below the root -> shape of every tensor of the body."""
        tables, norms = self.embeddings(), []
        for stack, (number, blocks) in self._stacks().items():
            if self.max_positions:
                tables[f"{stack}.embed_positions"] = (self.max_positions + 2, self.embed_dim)
            own = [*blocks, "final"]
            norms += [f"{stack}.layers.{n}.{b}_layer_norm" for n in range(number) for b in own]
            norms += [f"{stack}.layernorm_embedding"] * self.embedding_norm
            norms += [f"{stack}.layer_norm"] * self.last_norm
        return tensors(self.linears(), tables, norms, self.embed_dim)

    def num_blocks(self, place: str) -> int:
        """How many blocks there are to put an adapter behind; ``place`` is attention or ffn, and
        cross-attention has none."""
        return self.num_encoder_layers + self.num_decoder_layers

    def attentions(self) -> list[int]:
        """How many attentions a prefix reaches: the encoder's, the decoder's."""
        return [self.num_encoder_layers, 2 * self.num_decoder_layers]

    def body(self) -> Count:
        """What full fine-tuning trains: everything."""
        c, f, ne, nd = (
            self.embed_dim,
            self.ffn_dim,
            self.num_encoder_layers,
            self.num_decoder_layers,
        )
        target = self.target_vocab_size or self.vocab_size
        count = Count()
        count.add("token embedding", f"{self.vocab_size} x {c}")
        if self.target_vocab_size:
            count.add("token embedding of the decoder", f"{target} x {c}")
        if not self.tied:
            count.add("output matrix", f"{target} x {c}")
        if self.max_positions:
            count.add("position embeddings", f"2 x ({self.max_positions} + 2) x {c}")
        count.add("attention", f"({ne} + 2 x {nd}) x 4 x ({c} x {c} + {c})")
        count.add("feed-forward", f"({ne} + {nd}) x (2 x {c} x {f} + {f} + {c})")
        around = 2 * (self.last_norm + self.embedding_norm)
        count.add("layer norms", f"({ne} x 2 + {nd} x 3 + {around}) x 2 x {c}")
        return count

    def head(self, num_classes: int) -> Count:
        """Nothing: the answer is text."""
        return Count()

    def sections(self) -> list[Section]:
        """The whole model."""
        return [Section("whole model", self.body())]

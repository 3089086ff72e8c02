"""Classification heads of encoder-decoders, as in fairseq's recipe for BART: the decoder reads the
text that the encoder reads, and the head what the decoder has at its last ``</s>``.

Shape letters: B batch, T tokens, C model dim.
"""

from __future__ import annotations

import torch

from fairseq_peft.models import heads
from fairseq_peft.models.options import ROBERTA
from fairseq_peft.models.roberta import HEADS
from fairseq_peft.seeds import stream_seed

#: The flags of such a model, besides.
FLAGS = {
    name: ROBERTA[name]
    for name in ("pooler_activation_fn", "pooler_dropout", "load_checkpoint_heads", "reset_head")
}


def decoder_input(tokens: torch.Tensor, pad: int) -> torch.Tensor:
    """tokens (B, T), padded at the right -> (B, T): each row turned by one, its last token first,
    as fairseq's ``--add-prev-output-tokens`` has it."""
    last = tokens.ne(pad).sum(1, keepdim=True) - 1
    turned = torch.cat([tokens.gather(1, last), tokens[:, :-1]], 1)
    return turned.masked_fill(tokens.eq(pad), pad)


class EndHeads:
    """Mixin in front of a ``PeftModel`` with fairseq's BART."""

    def trains(self, name, chosen):
        """Of the heads, all that are there."""
        return name.startswith(HEADS) or super().trains(name, chosen)

    def own_names(self) -> set[str]:
        """As ``PeftModel.own_names``, and the heads."""
        return super().own_names() | {n for n in super().state_dict() if n.startswith(HEADS)}

    def register_classification_head(
        self, name, num_classes=None, inner_dim=None, seed=None, **kwargs
    ):
        """Register a head, which trains from now on; with ``seed`` it is the same for every
        method."""
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(stream_seed(seed, "head", name))
            super().register_classification_head(name, num_classes, inner_dim, **kwargs)
        self.freeze()

    def forward(
        self,
        src_tokens,
        src_lengths=None,
        prev_output_tokens=None,
        features_only=False,
        classification_head_name=None,
        **kwargs,
    ):
        """fairseq's forward; with a head, ``prev_output_tokens`` follow from ``src_tokens``.

        Returns:
            logits (B, classes) with ``classification_head_name``, else what BART's forward does.
        """
        if classification_head_name is None:
            return super().forward(
                src_tokens, src_lengths, prev_output_tokens, features_only=features_only, **kwargs
            )
        pad, eos = self.dictionary.pad(), self.dictionary.eos()
        encoded = self.encoder(src_tokens, src_lengths=src_lengths)
        before = decoder_input(src_tokens, pad)
        x, extra = self.decoder(before, encoder_out=encoded, features_only=True)  # (B, T, C)
        end = src_tokens.shape[1] - 1 - src_tokens.eq(eos).flip(1).long().argmax(1)
        features = x[torch.arange(len(x), device=x.device), end]  # (B, C)
        return self.classification_heads[classification_head_name](features), extra

    def keep_features(self, kept) -> None:
        """None stay the same here: the decoder reads all of the encoder's."""

    def check_pooler(self, state) -> None:
        """There is one way to read."""

    def upgrade_state_dict_named(self, state_dict, name):
        """As ``EncoderDecoder.upgrade_state_dict_named``; heads come from the checkpoint, or are as
        they stand, with the classes of the data."""
        prefix = name + "." if name else ""
        heads.fit(self, super().state_dict(), state_dict, prefix + HEADS)
        super().upgrade_state_dict_named(state_dict, name)

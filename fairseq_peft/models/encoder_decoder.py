"""The two halves of fairseq's encoder-decoders, batch first inside, with attention that calls its
projections and slots for what methods add.

The way of a batch: source tokens (B, S) -> ``SourceEncoder``: as ``models/encoder.py``, the soft
prompt in front of the text and kept -> memory (B, P + S, C) -> ``TargetDecoder``: as
``models/decoder.py``, with cross-attention to the memory in each layer -> features (B, T, C)
-> ``OutputProjection``.

A prefix reaches every attention: the encoder's own, the decoder's own, the one between them. A soft
prompt belongs to the encoder, and the decoder reads what became of it (Lester et al. 2021).
Parameter names and results are stock fairseq's. Shape letters: B batch, S source tokens, T target
tokens, C model dim, H heads, P prompt or prefix tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fairseq.models.transformer import TransformerConfig
from torch import nn
from torch.utils.checkpoint import checkpoint

from fairseq_peft import precision
from fairseq_peft.errors import InputError
from fairseq_peft.injection.family import Stack
from fairseq_peft.layers import attention
from fairseq_peft.models.blocks import CROSS_ATTENTION, FEED_FORWARD, SELF_ATTENTION
from fairseq_peft.models.decoder import Decoder, DecoderLayer
from fairseq_peft.models.encoder import Encoder

_OTHERS = ("embed_positions", "layernorm_embedding", "layer_norm")

STACKS = (
    Stack(
        path="encoder",
        blocks=(SELF_ATTENTION, FEED_FORWARD),
        embedding="embed_tokens",
        others=_OTHERS,
        entrances=("soft_prompt", "prefix"),
    ),
    Stack(
        path="decoder",
        blocks=(SELF_ATTENTION, CROSS_ATTENTION, FEED_FORWARD),
        embedding="embed_tokens",
        others=_OTHERS,
        entrances=("prefix",),
    ),
)


class SourceEncoder(Encoder):
    """fairseq's transformer encoder, whose output a decoder reads.

    A soft prompt is in the first columns, whatever padding follows; attention knows no order but
    that of positions. By these it stands in front of the text, or, with the placement after_bos,
    behind the ``<s>`` of a text that begins with one.
    """

    def max_positions(self):
        """The tokens that there is room for."""
        return super().max_positions() - self.num_reserved

    def forward(
        self, src_tokens, src_lengths=None, return_all_hiddens=False, token_embeddings=None
    ):
        """src_tokens (B, S) -> fairseq's dictionary; ``encoder_out`` holds one tensor
        (P + S, B, C), ``encoder_padding_mask`` one (B, P + S).

        Raises:
            InputError: S + P is more than the model has positions.
        """
        out = super().forward(src_tokens, src_lengths, return_all_hiddens, token_embeddings)
        if self.soft_prompt is not None:
            (padding,) = out["encoder_padding_mask"]
            out["encoder_padding_mask"] = [F.pad(padding, (self.soft_prompt.num_tokens, 0))]
        return out

    def reorder_encoder_out(self, encoder_out, new_order):
        """As fairseq's; where each row is repeated, as a beam search begins, ``num_beams`` says how
        often."""
        out = super().reorder_encoder_out(encoder_out, new_order)
        num_rows = encoder_out["encoder_out"][0].shape[1]
        each = torch.arange(num_rows, device=new_order.device)
        num_beams = len(new_order) // max(num_rows, 1)
        if num_beams > 1 and torch.equal(new_order, each.repeat_interleave(num_beams)):
            out["num_beams"] = [num_beams]
        return out

    def insert_prompt(self, x, padding):
        prompt = self.soft_prompt.vectors().to(x.dtype).expand(len(x), -1, -1)
        return torch.cat([prompt, x], 1), F.pad(padding, (self.soft_prompt.num_tokens, 0))

    def add_positions(self, x, padding, src_tokens):
        """x (B, P + S, C) with its positions: learned ones, sinusoids, or none.

        Raises:
            InputError: S + P is more than there are learned ones.
        """
        if self.embed_positions is None:
            return x
        num_tokens = src_tokens.shape[1]
        if isinstance(self.embed_positions, nn.Embedding) and num_tokens > self.max_positions():
            raise InputError(
                f"A source has {num_tokens} tokens, and there is room for {self.max_positions()} "
                f"beside {self.num_reserved} prompt or prefix tokens. Give a lower "
                "--max-source-positions, by which fairseq leaves longer ones out, or shorten it."
            )
        word, pad = self.padding_idx + 1, self.padding_idx
        reserved = self.prefix.num_reserved if self.prefix is not None else 0
        counted = F.pad(torch.where(padding, pad, word), (reserved, 0), value=word)
        positions = self.embed_positions(counted)[:, reserved:]
        if self.soft_prompt is not None and self.soft_prompt.start > 0:
            positions = self.behind_bos(positions, src_tokens)
        return x + positions

    def behind_bos(self, positions, src_tokens):
        """positions (B, P + S, C) of a prompt and a text, where the prompt is to stand behind the
        first token of those texts that begin with ``<s>``: that one has the first position."""
        p = self.soft_prompt.num_tokens
        first = src_tokens.ne(self.padding_idx).long().argmax(1, keepdim=True)  # (B, 1)
        begins = src_tokens.gather(1, first) == self.dictionary.bos()
        column = torch.arange(positions.shape[1], device=first.device)
        place = torch.where(column < p - 1, column + 1, column).expand(len(first), -1).clone()
        place[:, p - 1 : p] = p + first
        place.scatter_(1, p + first, 0)
        place = torch.where(begins, place, column)
        return positions.gather(1, place[..., None].expand_as(positions))

    def finish(self, x, half_dtype):
        """What follows the last layer, in fp32 behind autocast; a prompt stays for the decoder."""
        x = x if half_dtype is None else x.float()
        return x if self.layer_norm is None else self.layer_norm(x)


class TargetLayer(DecoderLayer):
    """fairseq's decoder layer with cross-attention, batch first, with slots for adapters: behind
    self-attention and behind the feed-forward block, as in AdapterHub."""

    def __init__(self, cfg):
        super().__init__(cfg, no_encoder_attn=False)

    def build_encoder_attention(self, embed_dim, cfg):
        return attention.CrossAttention(
            embed_dim,
            cfg.decoder.attention_heads,
            kdim=cfg.encoder.embed_dim,
            vdim=cfg.encoder.embed_dim,
            dropout=cfg.attention_dropout,
            encoder_decoder_attention=True,
        )

    def forward(self, x, keep, prefixes, memory, memory_keep, incremental_state, weights):
        """x (B, T, C), the rest as ``CausalSelfAttention`` and ``CrossAttention`` take it, the two
        ``prefixes`` in this order -> (B, T, C)."""
        norm = self.self_attn_layer_norm
        h = self.self_attn(self.before(x, norm), keep, prefixes[0], incremental_state)
        x = self.join(x, h, self.attention_adapter, norm)
        norm = self.encoder_attn_layer_norm
        h = self.encoder_attn(
            self.before(x, norm), memory, memory_keep, prefixes[1], incremental_state, weights
        )
        return self.feed_forward(self.join(x, h, None, norm))


class TargetDecoder(Decoder):
    """fairseq's transformer decoder with an encoder beside it."""

    attentions_per_layer = 2
    masks_unseen = True  # sentences differ in length
    shorten = (
        "Give a lower --max-target-positions, by which fairseq leaves longer ones out, or shorten "
        "the text."
    )

    def __init__(self, args, dictionary, embed_tokens):
        super().__init__(args, dictionary, embed_tokens)
        self.checkpoint_activations = bool(args.checkpoint_activations)

    def build_decoder_layer(self, args, no_encoder_attn=False):
        return TargetLayer(TransformerConfig.from_namespace(args))

    def extract_features(
        self,
        prev_output_tokens,
        encoder_out,
        incremental_state=None,
        alignment_layer=None,
        alignment_heads=None,
        **unused,
    ):
        """prev_output_tokens (B, T) and the encoder's output -> features (B, T, C) and fairseq's
        extras; with ``incremental_state``, features (B, Q, C) of the Q tokens that are new.

        In eval mode ``attn`` holds the weights (B, T, S) of cross-attention in the layer
        ``alignment_layer`` (the last), the mean over ``alignment_heads`` (all); those of a prefix
        and a prompt are left out.

        Raises:
            InputError: T is more than the model has positions.
        """
        num_cached = self.num_cached(incremental_state)
        x, keep, prefixes = self.embed(prev_output_tokens, num_cached)
        memory = memory_keep = None
        if num_cached == 0:  # later on the keys are known
            (num_beams,) = encoder_out.get("num_beams", (1,))
            memory = encoder_out["encoder_out"][0].transpose(0, 1)[::num_beams].contiguous()
            padding = encoder_out["encoder_padding_mask"][0][::num_beams]
            if attention.may_have_padding(padding):
                memory_keep = ~padding[:, None, None]
        if alignment_layer is None:
            alignment_layer = self.num_layers - 1
        call, weights, states = self.caller(incremental_state), [], [x]
        half_dtype = precision.around(x, self.half_dtype)
        with precision.autocast(x, half_dtype):
            for number, layer in enumerate(self.layers):
                seen = weights if number == alignment_layer and not self.training else None
                own = prefixes[2 * number : 2 * number + 2]
                rest = (keep, own, memory, memory_keep, incremental_state, seen)
                if self.checkpoint_activations and self.training:
                    x = checkpoint(call, layer, x, *rest, use_reentrant=False)
                else:
                    x = call(layer, x, *rest)
                states.append(x)
        x = self.finish(self.call.end(x), half_dtype)[:, num_cached - prev_output_tokens.shape[1] :]
        attn = None
        if weights:
            num_source = encoder_out["encoder_embedding"][0].shape[1]
            attn = weights[0][:alignment_heads, ..., -num_source:].mean(0)
        return x, {"attn": [attn], "inner_states": [state.transpose(0, 1) for state in states]}

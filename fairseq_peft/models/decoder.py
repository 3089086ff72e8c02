"""fairseq's transformer decoder, without an encoder beside it, with batch-first layers, attention
that calls its projections, and slots for what methods add: soft prompts, prefixes, adapters.

The way of a batch: tokens (B, T) -> ``Decoder.embed``: words, soft prompt, positions, norm, dropout
-> each ``DecoderLayer``: causal attention and feed-forward, each with its adapter's slot
-> ``Decoder.finish``: last norm, prompt out -> features (B, T, C) -> ``OutputProjection``.

Decoding step by step goes the same way with the tokens that are new; keys and values of those
before, the prompt's and the prefix's among them, are in ``incremental_state``.

Parameter names and results are stock fairseq's. Shape letters: B batch, T tokens, C model dim, P
prompt or prefix tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fairseq.models.transformer import TransformerConfig, TransformerDecoder
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase
from torch import nn

from fairseq_peft import compiling, precision
from fairseq_peft.errors import InputError
from fairseq_peft.injection.family import Stack
from fairseq_peft.layers import attention, word_losses
from fairseq_peft.layers.dropout import Dropout
from fairseq_peft.layers.slots import Slots
from fairseq_peft.models.blocks import FEED_FORWARD, SELF_ATTENTION

STACK = Stack(
    blocks=(SELF_ATTENTION, FEED_FORWARD),
    embedding="embed_tokens",
    others=("embed_positions", "layernorm_embedding", "layer_norm"),
    entrances=("soft_prompt", "prefix"),
)


class DecoderLayer(Slots, TransformerDecoderLayerBase):
    """fairseq's decoder layer without cross-attention, batch first, with slots for adapters."""

    def __init__(self, cfg, no_encoder_attn=True):
        super().__init__(cfg, no_encoder_attn)
        self.add_slots()

    def build_self_attention(self, embed_dim, cfg, add_bias_kv=False, add_zero_attn=False):
        return attention.CausalSelfAttention(
            embed_dim,
            cfg.decoder.attention_heads,
            dropout=cfg.attention_dropout,
            self_attention=True,
        )

    def forward(self, x, keep=None, prefix=None, incremental_state=None):
        """x (B, Q, C), the rest as ``CausalSelfAttention`` takes it -> (B, Q, C)."""
        norm = self.self_attn_layer_norm
        h = self.self_attn(self.before(x, norm), keep, prefix, incremental_state)
        return self.feed_forward(self.join(x, h, self.attention_adapter, norm))


class OutputProjection(nn.Linear):
    """Features (..., C) -> logits (..., V); ``weight`` may be the token embedding's.

    ``output_update`` is a slot: None, or a module's method, of the features, that returns what is
    added to the logits, where the embedding is not its weight alone; all that trains in the module
    has a part in it.
    """

    def __init__(self, weight: nn.Parameter, half_dtype=None):
        super().__init__(*reversed(weight.shape), bias=False, device="meta")
        self.weight = weight
        self.output_update = None
        self.half_dtype = half_dtype

    def forward(self, features):
        with precision.autocast(self.weight, self.half_dtype):
            logits = F.linear(features, self.weight)
            return logits if self.output_update is None else logits + self.output_update(features)

    def word_losses(self, features, target, pad: int, smoothing: float):
        """features (N, C) and the words (N,) that follow -> the summed loss with label smoothing,
        and without, in nats, of all that is not ``pad``: without the logits of all (N, V)."""
        given = (self.weight, self.output_update, self.half_dtype)
        return word_losses.word_losses(features, target, pad, smoothing, *given)


class Decoder(TransformerDecoder):
    """fairseq's transformer decoder, batch first inside, with the slots of ``models/encoder.py``.

    A soft prompt stands behind the first token or in front of it. The features of that place, which
    predict the second token, are those of the last of the two, for only they have seen the prompt.
    """

    #: The attentions of a layer that a prefix reaches.
    attentions_per_layer = 1
    #: Whether a GPU masks padding without a look for it, which would be a wait. A language model's
    #: batches are blocks without any, and torch's causal kernel takes no mask: they look.
    masks_unseen = False
    #: What to do where a text is too long.
    shorten = "Give a lower --tokens-per-sample."

    def __init__(self, args, dictionary, embed_tokens):
        self.half_dtype = precision.half(args.precision)
        super().__init__(args, dictionary, embed_tokens, no_encoder_attn=True)
        self.dropout_module = Dropout(self.dropout_module.p)
        self.soft_prompt = None
        self.prefix = None
        self.call = compiling.Caller(compiling.of(args))

    def build_decoder_layer(self, args, no_encoder_attn=True):
        return DecoderLayer(TransformerConfig.from_namespace(args))

    def build_output_projection(self, args, dictionary, embed_tokens):
        super().build_output_projection(args, dictionary, embed_tokens)
        self.output_projection = OutputProjection(self.output_projection.weight, self.half_dtype)

    @property
    def num_reserved(self) -> int:
        """Positions that methods take from the text."""
        prompt = self.soft_prompt.num_tokens if self.soft_prompt is not None else 0
        return prompt + (self.prefix.num_reserved if self.prefix is not None else 0)

    def max_positions(self):
        """The tokens that there is room for."""
        return super().max_positions() - self.num_reserved

    def extract_features(
        self, prev_output_tokens, encoder_out=None, incremental_state=None, **unused
    ):
        """prev_output_tokens (B, T), padded at the right -> features (B, T, C) and fairseq's
        extras; with ``incremental_state``, features (B, Q, C) of the Q tokens that are new.

        Raises:
            InputError: T + P is more than the model has positions, or padding comes first, where a
                soft prompt stands behind the first token.
        """
        num_cached = self.num_cached(incremental_state)
        x, keep, prefixes = self.embed(prev_output_tokens, num_cached)
        call, states = self.caller(incremental_state), [x]
        half_dtype = precision.around(x, self.half_dtype)
        with precision.autocast(x, half_dtype):
            for layer, prefix in zip(self.layers, prefixes):
                x = call(layer, x, keep, prefix, incremental_state)
                states.append(x)
        x = self.finish(self.call.end(x), half_dtype)[:, num_cached - prev_output_tokens.shape[1] :]
        return x, {"attn": [None], "inner_states": [state.transpose(0, 1) for state in states]}

    def caller(self, incremental_state) -> compiling.Caller:
        """What calls the layers: step by step, whose keys grow with each call, no graph does."""
        return self.call if incremental_state is None else compiling.Caller()

    def num_cached(self, incremental_state) -> int:
        """How many tokens ``incremental_state`` has, without those of a prompt or prefix."""
        num_keys = self.layers[0].self_attn.num_cached(incremental_state)
        methods = [part for part in (self.soft_prompt, self.prefix) if part is not None]
        return max(num_keys - sum(part.num_tokens for part in methods), 0)

    def embed(self, tokens, num_cached=0):
        """What the layers work on.

        Args:
            tokens: (B, T), all of them.
            num_cached: how many of them the layers have seen in earlier calls.

        Returns:
            x (B, Q, C), the new tokens, with the prompt in the first call; keep and, for each
            attention that reads one, prefix as ``DecoderLayer`` takes them.
        """
        self.call.begin()
        padding = tokens.eq(self.padding_idx)
        x = self.embed_scale * self.embed_tokens(tokens[:, num_cached:])
        if self.soft_prompt is not None:
            if self.soft_prompt.start > 0 and padding[:, 0].any():
                raise InputError(
                    "A batch begins with padding, so a soft prompt cannot stand behind the first "
                    "token. Pad at the right, or give --prompt-placement before_bos."
                )
            if num_cached == 0:
                x, _ = self.soft_prompt.insert(x, padding)
            padding = F.pad(padding, (self.soft_prompt.num_tokens, 0))  # for it is not padding
        x = self.add_positions(x, padding, tokens.shape[1])
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        x = self.dropout_module(x)

        prefixes = [None] * len(self.layers) * self.attentions_per_layer
        num_prefix = 0
        if self.prefix is not None:
            prefixes = self.prefix(self.layers[0].self_attn.num_heads)
            num_prefix = self.prefix.num_tokens
        keep = None
        if attention.may_have_padding(padding) if self.masks_unseen else padding.any():
            seen = F.pad(~padding, (num_prefix, 0), value=True)  # (B, K)
            keep = attention.may_see(x.shape[1], seen.shape[1], x.device)
            # Padding sees itself: where a row of keys is all masked, softmax makes NaN of it.
            itself = keep.triu(seen.shape[1] - x.shape[1])
            keep = keep & seen[:, None, None] | itself
        return x, keep, prefixes

    def add_positions(self, x, padding, num_tokens):
        """x (B, Q, C) with the positions of the last Q of ``padding`` (B, P + T), which fairseq
        counts from padding_idx + 1 on, without padding."""
        if self.embed_positions is None:
            return x
        if isinstance(self.embed_positions, nn.Embedding) and num_tokens > self.max_positions():
            raise InputError(
                f"A batch has {num_tokens} tokens and {self.num_reserved} prompt or prefix tokens; "
                f"the model has {self.max_positions() + self.num_reserved} positions. "
                f"{self.shorten}"
            )
        word, pad = self.padding_idx + 1, self.padding_idx
        reserved = self.prefix.num_reserved if self.prefix is not None else 0
        counted = F.pad(torch.where(padding, pad, word), (reserved, 0), value=word)
        return x + self.embed_positions(counted)[:, -x.shape[1] :]

    def finish(self, x, half_dtype):
        """What follows the last layer, in fp32 behind autocast."""
        x = x if half_dtype is None else x.float()
        return x if self.layer_norm is None else self.layer_norm(x)

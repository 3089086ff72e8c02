"""RoBERTa's encoder with batch-first layers, attention that calls its projections, and slots for
what methods add: soft prompts, prefixes, adapters.

The way of a batch: tokens (B, T) -> ``Encoder.embed``: words, soft prompt, positions, norm, dropout
-> each ``EncoderLayer``: attention and feed-forward, each with its adapter's slot
-> ``Encoder.finish``: last norm, prompt out -> features (B, T, C) -> a head, or ``LMHead``.

Parameter names and results are stock fairseq's. Shape letters: B batch, T tokens, C model dim, P
prompt or prefix tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fairseq.models.roberta import RobertaEncoder, RobertaLMHead
from fairseq.models.transformer import TransformerEncoder
from fairseq.models.transformer.transformer_config import TransformerConfig
from fairseq.modules.transformer_layer import TransformerEncoderLayerBase
from fairseq.modules.transformer_sentence_encoder import init_bert_params
from torch.utils.checkpoint import checkpoint

from fairseq_peft import compiling, precision
from fairseq_peft.errors import InputError
from fairseq_peft.injection.family import Stack

# The module, not the class: whoever imports it first has it half-way through when the plugin comes.
from fairseq_peft.layers import attention
from fairseq_peft.layers.dropout import Dropout
from fairseq_peft.layers.slots import Slots
from fairseq_peft.models.blocks import FEED_FORWARD, SELF_ATTENTION
from fairseq_peft.models.kept_features import KeptFeatures
from fairseq_peft.models.norms import eps_of, set_eps

STACK = Stack(
    blocks=(SELF_ATTENTION, FEED_FORWARD),
    embedding="embed_tokens",
    others=("embed_positions", "layernorm_embedding", "layer_norm"),
    entrances=("soft_prompt", "prefix"),
)


class EncoderLayer(Slots, TransformerEncoderLayerBase):
    """fairseq's encoder layer, batch first, with slots for adapters."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.add_slots()

    def build_self_attention(self, embed_dim, cfg):
        return attention.SelfAttention(
            embed_dim,
            cfg.encoder.attention_heads,
            dropout=cfg.attention_dropout,
            self_attention=True,
        )

    def forward(self, x, keep=None, first_only=False, prefix=None):
        """x (B, T, C), keep and prefix as ``SelfAttention`` takes them -> (B, T, C); (B, 1, C) for
        the first position only."""
        residual, norm = x[:, :1] if first_only else x, self.self_attn_layer_norm
        h = self.self_attn(self.before(x, norm), keep, first_only, prefix)
        return self.feed_forward(self.join(residual, h, self.attention_adapter, norm))


class Encoder(TransformerEncoder):
    """fairseq's transformer encoder, batch first inside.

    Two slots, None until a method fills them: ``soft_prompt`` (``methods/prompt.py``), and
    ``prefix``, a module that is called with the number of heads H and returns for each layer keys
    and values (H, P, C / H), and has ``num_tokens`` P and ``num_reserved``, the positions before
    the text that it takes.
    """

    def __init__(self, args, dictionary, embed_tokens):
        super().__init__(args, dictionary, embed_tokens)
        self.dropout_module = Dropout(self.dropout_module.p)
        self.soft_prompt = None
        self.prefix = None
        self.half_dtype = precision.half(args.precision)
        self.checkpoint_activations = bool(getattr(args, "checkpoint_activations", False))
        self.call = compiling.Caller(compiling.of(args))
        self.kept = KeptFeatures()

    def build_encoder_layer(self, args):
        return EncoderLayer(TransformerConfig.from_namespace(args))

    @property
    def num_reserved(self) -> int:
        """Positions that methods take from the text."""
        prompt = self.soft_prompt.num_tokens if self.soft_prompt is not None else 0
        return prompt + (self.prefix.num_reserved if self.prefix is not None else 0)

    def forward(
        self,
        src_tokens,
        src_lengths=None,
        return_all_hiddens=False,
        token_embeddings=None,
        first_only=False,
    ):
        """src_tokens (B, T) -> fairseq's dictionary; ``encoder_out`` holds one tensor (T, B, C).

        With ``first_only`` it is (1, B, C): the last layer is computed only where a classification
        head reads it.

        Raises:
            InputError: T + P is more than the model has positions.
        """
        x, keep, prefixes, embedding = self.embed(src_tokens, token_embeddings)
        states = [x] if return_all_hiddens else []
        # What the first layers make of the batch may be known: see kept_features.py.
        whole = return_all_hiddens or token_embeddings is not None
        depth, known = (0, None) if whole else self.kept.below(self, src_tokens, first_only)
        x = x if known is None else known  # which may be in an autocast's precision
        half_dtype = precision.around(embedding, self.half_dtype)
        with precision.autocast(embedding, half_dtype):
            for index, (layer, prefix) in enumerate(zip(self.layers, prefixes), start=1):
                if index <= depth:
                    continue
                rest = (keep, first_only and index == len(self.layers), prefix)
                if self.checkpoint_activations and self.training:
                    # Its inside is computed again in the backward pass, with the same dropout.
                    x = checkpoint(self.call, layer, x, *rest, use_reentrant=False)
                else:
                    x = self.call(layer, x, *rest)
                if return_all_hiddens:
                    states.append(x)
        x = self.finish(self.call.end(x), half_dtype)
        padding = src_tokens.eq(self.padding_idx)
        return {
            "encoder_out": [x.transpose(0, 1)],
            "encoder_padding_mask": [padding],
            "encoder_embedding": [embedding],
            "encoder_states": [state.transpose(0, 1) for state in states],
            "fc_results": [],
            "src_tokens": [],
            "src_lengths": [(~padding).sum(1, dtype=torch.int32).reshape(-1, 1)],
        }

    def first_layers(self, src_tokens, number, first_only=False):
        """What the first ``number`` layers make of src_tokens (B, T), without prompt and prefix:
        (B, T, C); (B, 1, C) with ``first_only``."""
        x, keep, _, _ = self.embed(src_tokens)
        with precision.autocast(x, self.half_dtype):
            for index, layer in zip(range(1, number + 1), self.layers):
                x = self.call(layer, x, keep, first_only and index == number)
        return self.call.end(x)

    def embed(self, src_tokens, token_embeddings=None):
        """What the layers work on.

        Returns:
            x (B, T + P, C); keep and, for each layer, prefix as ``EncoderLayer`` takes them; the
            token embeddings (B, T, C).
        """
        self.call.begin()
        padding = src_tokens.eq(self.padding_idx)
        embedding = self.embed_tokens(src_tokens) if token_embeddings is None else token_embeddings
        x = self.embed_scale * embedding
        if self.soft_prompt is not None:
            x, padding = self.insert_prompt(x, padding)
        x = self.add_positions(x, padding, src_tokens)
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        x = self.dropout_module(x)

        keep = None
        if self.call.compiles or attention.may_have_padding(padding):
            x = x.masked_fill(padding.unsqueeze(-1), 0)
            keep = ~padding[:, None, None, :]
        prefixes = [None] * len(self.layers)
        if self.prefix is not None:
            prefixes = self.prefix(self.layers[0].self_attn.num_heads)
            if keep is not None:
                keep = F.pad(keep, (self.prefix.num_tokens, 0), value=True)
        return x, keep, prefixes, embedding

    def insert_prompt(self, x, padding):
        """x (B, T, C) and padding (B, T) with the prompt among them, T + P."""
        return self.soft_prompt.insert(x, padding)

    def add_positions(self, x, padding, src_tokens):
        """x (B, T + P, C) with its positions: learned ones.

        Raises:
            InputError: T + P is more than there are.
        """
        num_tokens = src_tokens.shape[1]
        if num_tokens + self.num_reserved > self.max_positions():
            raise InputError(
                f"A batch has {num_tokens} tokens and {self.num_reserved} prompt or "
                f"prefix tokens; the model has {self.max_positions()} positions. "
                "Shorten the input (the task sentence_classification does)."
            )
        # fairseq numbers tokens from padding_idx + 1 on and leaves padding at padding_idx.
        first = self.prefix.num_reserved if self.prefix is not None else 0
        positions = ((~padding).cumsum(1) + first).mul(~padding) + self.padding_idx
        return x + F.embedding(positions, self.embed_positions.weight, self.padding_idx)

    def finish(self, x, half_dtype):
        """What follows the last layer: x (B, T + P, C) -> (B, T, C) in fp32 behind
        autocast."""
        x = x if half_dtype is None else x.float()
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return x if self.soft_prompt is None else self.soft_prompt.remove(x)


class LMHead(RobertaLMHead):
    """fairseq's LM head, whose ``weight`` is the token embedding's.

    ``output_update`` is a slot: None, or a function of the last features (..., C) that returns what
    is added to the logits (..., V), where the embedding is not its weight alone. With
    ``half_dtype`` the linear maps are in it, and so are the logits.
    """

    def __init__(self, embed_dim, output_dim, activation_fn, weight=None, half_dtype=None):
        super().__init__(embed_dim, output_dim, activation_fn, weight)
        self.output_update = None
        self.half_dtype = half_dtype

    def forward(self, features, masked_tokens=None, **unused):
        if masked_tokens is not None:
            features = features[masked_tokens, :]
        with precision.autocast(self.weight, self.half_dtype):
            x = self.layer_norm(self.activation_fn(self.dense(features)))
            if self.half_dtype is not None:  # no (..., V) in fp32
                logits = F.linear(x, self.weight, self.bias)
            else:  # stock's, bit for bit
                logits = F.linear(x, self.weight) + self.bias
            return logits if self.output_update is None else logits + self.output_update(x)


class PeftRobertaEncoder(RobertaEncoder):
    """fairseq's RoBERTa encoder around ``Encoder`` and ``LMHead``, with the eps of its own."""

    def __init__(self, args, dictionary):
        super().__init__(args, dictionary)
        set_eps(self, eps_of(args))

    def build_encoder(self, args, dictionary, embed_tokens):
        encoder = Encoder(args, dictionary, embed_tokens)
        encoder.apply(init_bert_params)
        return encoder

    def build_lm_head(self, embed_dim, output_dim, activation_fn, weight):
        return LMHead(
            embed_dim, output_dim, activation_fn, weight, precision.half(self.args.precision)
        )

    def forward(
        self,
        src_tokens,
        features_only=False,
        return_all_hiddens=False,
        masked_tokens=None,
        first_only=False,
        **unused,
    ):
        """As fairseq's, and ``first_only`` for features (B, 1, C) of the first position alone."""
        out = self.sentence_encoder(
            src_tokens, return_all_hiddens=return_all_hiddens, first_only=first_only
        )
        x = out["encoder_out"][0].transpose(0, 1)
        if not features_only:
            x = self.output_layer(x, masked_tokens=masked_tokens)
        return x, {"inner_states": out["encoder_states"] if return_all_hiddens else None}

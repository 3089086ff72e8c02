"""Attention for Hugging Face's models, which reads a prefix: keys and values before all others;
and rows that stand one behind the other in one sequence, each of which sees itself alone.

transformers calls ``attend`` in place of its own; its layers' linear maps are called as ever.
Shape letters: B batch, H heads, G heads of keys and values, Q queries, K keys, P prefix tokens, D
size of a head.
"""

from __future__ import annotations

import contextlib
import contextvars

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_peft.layers.dropout import dropout as drop

#: The lengths of the rows in a sequence, inside ``apart``.
_LENGTHS = contextvars.ContextVar("lengths", default=None)


@contextlib.contextmanager
def apart(lengths: list[int]):
    """Inside, the tokens of a sequence, which is alone in its batch, are rows of these lengths, and
    ``attend`` lets each see itself alone, causally, whatever the mask.

    No mask of all tokens with all tokens is made: that would grow with the square of the batch.
    """
    token = _LENGTHS.set(lengths)
    try:
        yield
    finally:
        _LENGTHS.reset(token)


def mask_by(make):
    """The function that makes transformers' masks, ``make``, for all but rows that are apart."""
    return lambda *args, **kwargs: make(*args, **kwargs) if _LENGTHS.get() is None else None


def attend(
    module,
    query,
    key,
    value,
    attention_mask,
    dropout=0.0,
    scaling=None,
    position_bias=None,
    sliding_window=None,
    **_,
):
    """As transformers asks for it: query (B, H, Q, D), key and value (B, G, K, D), what is added to
    the scores before softmax (B or 1, 1 or H, Q, K) -> (B, Q, H, D), None.

    What ``module.prefix`` holds, keys and values (G, P, D), every query sees, at no distance: it
    gets no bias of positions. Of rows that are ``apart``, ``position_bias`` is that of the keys of
    a row as long as all together, and ``sliding_window`` how many tokens a query sees.
    """
    prefix = getattr(module, "prefix", None)
    lengths = _LENGTHS.get()
    if lengths is None:
        bias = None if attention_mask is None else attention_mask[..., : key.shape[2]]
        if position_bias is not None:
            bias = position_bias if bias is None else bias + position_bias
        out = _attend(prefix, query, key, value, bias, dropout, scaling)
        return out.transpose(1, 2), None
    bias = _causal(max(lengths), sliding_window, query)
    if position_bias is not None:
        bias = bias + position_bias[..., : len(bias)]
    rows = zip(lengths, *(part.split(lengths, 2) for part in (query, key, value)))
    out = [
        _attend(prefix, *parts, bias[..., :length, :length], dropout, scaling)
        for length, *parts in rows
    ]
    return torch.cat(out, 2).transpose(1, 2), None


def _causal(length: int, window: int | None, like) -> torch.Tensor:
    """(T, T), what is added to the scores: nothing where a query sees a key."""
    sees = torch.ones(length, length, dtype=torch.bool, device=like.device).tril()
    if window is not None:
        sees = sees.triu(1 - window)
    return torch.zeros_like(sees, dtype=like.dtype).masked_fill(~sees, float("-inf"))


def _attend(prefix, query, key, value, bias, dropout, scaling):
    """As ``attend``, with one ``bias``; (B, H, Q, D)."""
    if prefix is not None:
        first = (part.to(key.dtype).expand(len(key), -1, -1, -1) for part in prefix)
        key, value = (torch.cat(pair, 2) for pair in zip(first, (key, value)))
        bias = None if bias is None else F.pad(bias, (key.shape[2] - bias.shape[-1], 0))
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    bias = None if bias is None else bias.to(query.dtype)
    if dropout and query.device.type == "cpu":  # torch's own draws a double for each weight
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = torch.matmul(query * scale, key.transpose(-2, -1))
        weights = F.softmax(scores if bias is None else scores + bias, -1)
        out = torch.matmul(drop(weights, dropout), value)
    else:
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=dropout, scale=scaling
        )
    return out


class BloomAttention(nn.Module):
    """The forward of BLOOM's attention with ``attend``, which transformers' own does not ask for:
    a mixin in front of its class. The linear maps are called."""

    def forward(self, hidden_states, residual, alibi, attention_mask, layer_past=None, **unused):
        """hidden_states, residual (B, Q, C), alibi (B H, 1, K) -> (B, Q, C), None."""
        query, key, value = self._reshape(self.query_key_value(hidden_states))
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)
        context, _ = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout.p if self.training else 0.0,
            scaling=self.inv_norm_factor,
            position_bias=alibi.unflatten(0, (-1, self.num_heads)),
        )
        h = self.dense(context.flatten(2))
        return residual + (drop(h, self.hidden_dropout) if self.training else h), None

"""Attention for Hugging Face's models, which reads a prefix: keys and values before all others.

transformers calls ``attend`` in place of its own; its layers' linear maps are called as ever.
Shape letters: B batch, H heads, G heads of keys and values, Q queries, K keys, P prefix tokens, D
size of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_peft.layers.dropout import dropout as drop


def attend(
    module, query, key, value, attention_mask, dropout=0.0, scaling=None, position_bias=None, **_
):
    """As transformers asks for it: query (B, H, Q, D), key and value (B, G, K, D), what is added to
    the scores before softmax (B or 1, 1 or H, Q, K) -> (B, Q, H, D), None.

    What ``module.prefix`` holds, keys and values (G, P, D), every query sees, at no distance: it
    gets no bias of positions.
    """
    bias = None if attention_mask is None else attention_mask[..., : key.shape[2]]
    if position_bias is not None:
        bias = position_bias if bias is None else bias + position_bias
    prefix = getattr(module, "prefix", None)
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
    return out.transpose(1, 2), None


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

"""Self-attention that calls its projections.

fairseq's own forward hands ``q_proj.weight`` to a fused function and never calls ``q_proj``:
whatever wraps the projection is skipped, without an error. Here ``q_proj``, ``k_proj``, ``v_proj``
and ``out_proj`` are called, in train and eval mode, and torch's ``scaled_dot_product_attention``
does the rest.
Parameter names are fairseq's.

Shape letters: B batch, T tokens, C model dim, H heads, P prefix length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fairseq.modules import MultiheadAttention


class SelfAttention(MultiheadAttention):
    """fairseq's attention with the same parameters and another, batch-first forward."""

    def forward(self, x, keep=None, first_only=False, prefix=None):
        """Attend within x, and to a prefix.

        Args:
            x: (B, T, C).
            keep: (B, 1, 1, P + T), True where a token may be attended to; None if all may.
            first_only: whether only the first position asks.
            prefix: keys and values (H, P, C / H) that every position may attend to; None for none.

        Returns:
            (B, T, C), or (B, 1, C) for the first position only, before dropout and residual.
        """
        batch = x.shape[0]

        def heads(projected):  # (B, T, C) -> (B, H, T, C / H)
            return projected.view(batch, -1, self.num_heads, self.head_dim).transpose(1, 2)

        query = heads(self.q_proj(x[:, :1] if first_only else x))
        key, value = heads(self.k_proj(x)), heads(self.v_proj(x))
        if prefix is not None:
            more_keys, more_values = (
                part.to(key.dtype).expand(batch, -1, -1, -1) for part in prefix
            )
            key, value = torch.cat([more_keys, key], 2), torch.cat([more_values, value], 2)
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=keep,
            dropout_p=self.dropout_module.p if self.training else 0.0,
        )
        return self.out_proj(attended.transpose(1, 2).reshape(batch, -1, self.embed_dim))

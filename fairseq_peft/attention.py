"""Self-attention that calls its projections.

fairseq's own forward hands ``q_proj.weight`` to a fused function and never calls ``q_proj``:
whatever wraps the projection is skipped, without an error. Here ``q_proj``, ``k_proj``, ``v_proj``
and ``out_proj`` are called, in train and eval mode. Parameter names are fairseq's.

Shape letters: B batch, T tokens, C model dim, H heads, D = C / H, P prefix length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fairseq.modules import MultiheadAttention

from fairseq_peft.dropout import Dropout, dropout


def attend(query, key, value, keep=None, dropout_p=0.0):
    """``dropout(softmax(query key^T / sqrt(D))) value``, in the way that is quickest here.

    torch's fused kernel is, except on a CPU with dropout, where it is not fused, and on a CPU in
    bf16, where it is slower than the two products in bf16 with the softmax in fp32 between them.

    Args:
        query: (B, H, Q, D).
        key, value: (B, H, K, D).
        keep: (B, 1, 1, K), True where a key may be attended to; None if all may.
        dropout_p: share of the attention weights to drop.

    Returns:
        (B, H, Q, D).
    """
    plain = query.dtype == torch.float32 and dropout_p == 0
    if query.device.type != "cpu" or plain:
        return F.scaled_dot_product_attention(query, key, value, keep, dropout_p)
    scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-2, -1)).float()
    if keep is not None:
        scores = scores.masked_fill(~keep, float("-inf"))
    weights = dropout(scores.softmax(-1), dropout_p)
    return torch.matmul(weights.to(value.dtype), value)


class SelfAttention(MultiheadAttention):
    """fairseq's attention with the same parameters and another, batch-first forward.

    ``dropout_module.p`` is the dropout of the attention weights.
    """

    def __init__(self, *args, dropout=0.0, **kwargs):
        super().__init__(*args, dropout=dropout, **kwargs)
        self.dropout_module = Dropout(dropout)

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
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # once, not once a projection

        def heads(projected):  # (B, T, C) -> (B, H, T, C / H)
            return projected.view(batch, -1, self.num_heads, self.head_dim).transpose(1, 2)

        # Contiguous: for a slice with a frozen weight torch copies the weight once a row.
        query = heads(self.q_proj(x[:, :1].contiguous() if first_only else x))
        key, value = heads(self.k_proj(x)), heads(self.v_proj(x))
        if prefix is not None:
            more_keys, more_values = (
                part.to(key.dtype).expand(batch, -1, -1, -1) for part in prefix
            )
            key, value = torch.cat([more_keys, key], 2), torch.cat([more_values, value], 2)
        p = self.dropout_module.p if self.training else 0.0
        attended = attend(query, key, value, keep, p)
        return self.out_proj(attended.transpose(1, 2).reshape(batch, -1, self.embed_dim))

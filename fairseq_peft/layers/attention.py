"""Attention that calls its projections: of an encoder, of a decoder, of a decoder to its encoder.

fairseq's own forward hands ``q_proj.weight`` to a fused function and never calls ``q_proj``:
whatever wraps the projection is skipped, without an error. Here ``q_proj``, ``k_proj``, ``v_proj``
and ``out_proj`` are called, in train and eval mode. Parameter names are fairseq's.

Shape letters: B batch, T tokens, C model dim, H heads, D = C / H, P prefix length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fairseq.modules import MultiheadAttention
from torch import nn

from fairseq_peft.layers.dropout import Dropout, mask_like

#: Where incremental_state keeps what the last reordering asked of the memory.
ORDER = "fairseq_peft.order"


class _Attend(torch.autograd.Function):
    """Attention in the type of its inputs, with as few passes over the weights as there can be.

    The weights are B H Q K numbers, more than anything else in a layer, so nothing else is done to
    them: query is scaled before, what dropout scales is scaled after, and the mask of dropout has
    their own type. softmax and its gradient compute in fp32.

    Shapes: query, key, value (B H, Q or K, D), contiguous: of other tensors torch would copy even
    the transposed. bias (B or 1, 1, Q or 1, K) or None.
    """

    @staticmethod
    def forward(ctx, query, key, value, bias, p):
        ctx.scale, ctx.gain = query.shape[-1] ** -0.5, 1 / (1 - p)
        out, *kept = _attended(query, key, value, bias, p)
        ctx.save_for_backward(*kept)
        return out

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, weights, mask, kept = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        gradient = gradient * ctx.gain if mask is not None else gradient.contiguous()
        of_query = of_key = of_value = None
        if wanted[2]:
            of_value = torch.bmm(kept.transpose(1, 2), gradient)
        if wanted[0] or wanted[1]:
            of_weights = torch.bmm(gradient, value.transpose(1, 2))
            if mask is not None:
                of_weights *= mask
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            if wanted[0]:
                of_query = torch.bmm(of_scores, key).mul_(ctx.scale)
            if wanted[1]:
                of_key = torch.bmm(of_scores.transpose(1, 2), query)
        return of_query, of_key, of_value, None, None


def _attended(query, key, value, bias, p):
    """What ``_Attend`` computes, and what its gradient needs."""
    query = query * query.shape[-1] ** -0.5
    scores = torch.bmm(query, key.transpose(1, 2))
    if bias is not None:
        scores.view(len(bias), -1, *scores.shape[1:]).add_(bias)
    # In bf16 torch's softmax takes twice the time, where K is no multiple of 32.
    weights = torch.softmax(scores.float(), -1).to(scores.dtype)
    mask, kept = None, weights
    if p > 0:
        mask = mask_like(weights, p)
        kept = weights * mask
    out = torch.bmm(kept, value)
    return out.mul_(1 / (1 - p)) if p > 0 else out, query, key, value, weights, mask, kept


def may_see(num_queries: int, num_keys: int, device) -> torch.Tensor:
    """(1, 1, Q, K), True for the keys up to a query's own; the queries are the last of the keys."""
    ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return ones.tril(num_keys - num_queries)[None, None]


def may_have_padding(padding: torch.Tensor) -> bool:
    """Whether a batch is to be masked where ``padding`` (B, T) is True.

    A CPU looks, for without a mask it has less to do. A GPU works behind the process that gives it
    work, which would have to wait for the answer, and nearly every batch has padding: there, and in
    a graph, which has no branch on data, a mask that hides nothing does no harm.
    """
    return padding.device.type != "cpu" or torch.compiler.is_compiling() or bool(padding.any())


def attend(query, key, value, keep=None, dropout_p=0.0, causal=False):
    """``dropout(softmax(query key^T / sqrt(D))) value``, in the way that is quickest here.

    torch's fused kernel is, except on a CPU with dropout, where it is not fused, and on a CPU in
    bf16, where it is slower than two products with the softmax between them.

    Args:
        query: (B, H, Q, D).
        key, value: (B, H, K, D), of the type of query.
        keep: (B or 1, 1, Q or 1, K), True where a key may be attended to; None if all may.
        dropout_p: share of the attention weights to drop.
        causal: without ``keep``, and Q = K: whether a query attends to keys up to its own only.

    Returns:
        (B, H, Q, D).
    """
    plain = query.dtype == torch.float32 and dropout_p == 0
    if query.device.type != "cpu" or plain:
        return F.scaled_dot_product_attention(query, key, value, keep, dropout_p, causal)
    if causal:
        keep = may_see(query.shape[2], key.shape[2], query.device)
    bias = None
    if keep is not None:
        bias = torch.zeros(keep.shape, dtype=query.dtype).masked_fill_(~keep, float("-inf"))
    parts = [part.reshape(-1, *part.shape[2:]).contiguous() for part in (query, key, value)]
    if torch.compiler.is_compiling():  # a graph finds the gradient by itself
        return _attended(*parts, bias, dropout_p)[0].view(query.shape)
    return _Attend.apply(*parts, bias, dropout_p).view(query.shape)


class Attend(nn.Module):
    """``attend`` as a module without parameters: what rows of a batch may have of their own, while
    they share the projections around it (``sharing/switches.py``)."""

    def __init__(self, dropout_module: Dropout):
        super().__init__()
        self.dropout_module = dropout_module

    def forward(self, query, key, value, keep=None, causal=False):
        return attend(query, key, value, keep, self.dropout_module.rate, causal)


class SelfAttention(MultiheadAttention):
    """fairseq's attention with the same parameters and another, batch-first forward.

    ``dropout_module.p`` is the dropout of the attention weights.
    """

    def __init__(self, *args, dropout=0.0, **kwargs):
        super().__init__(*args, dropout=dropout, **kwargs)
        self.dropout_module = Dropout(dropout)
        self.attend = Attend(self.dropout_module)

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
        x = self.cast(x)
        # Contiguous: for a slice with a frozen weight torch copies the weight once a row.
        query = self.heads(self.q_proj(x[:, :1].contiguous() if first_only else x), x.dtype)
        key, value = self.heads(self.k_proj(x), x.dtype), self.heads(self.v_proj(x), x.dtype)
        if prefix is not None:
            key, value = prepend(prefix[0], key), prepend(prefix[1], value)
        return self.output(self.attend(query, key, value, keep))

    def cast(self, x):
        """x in the type that the projections compute in: once, not once a projection."""
        if torch.is_autocast_enabled(x.device.type):
            return x.to(torch.get_autocast_dtype(x.device.type))
        return x

    def heads(self, projected, dtype):
        """(B, T, C) -> (B, H, T, C / H); what rescales may have made it fp32."""
        projected = projected.to(dtype)
        shape = (projected.shape[0], -1, self.num_heads, self.head_dim)
        return projected.view(shape).transpose(1, 2)

    def output(self, attended):
        """What the heads have read, (B, H, T, C / H), projected: (B, T, C)."""
        joined = attended.transpose(1, 2).reshape(attended.shape[0], -1, self.embed_dim)
        return self.out_proj(joined)


def prepend(first, rest):
    """``first`` (B, H, P, D), or (H, P, D) for all rows, in front of ``rest`` (B, H, T, D)."""
    return torch.cat([first.to(rest.dtype).expand(rest.shape[0], -1, -1, -1), rest], 2)


class CausalSelfAttention(SelfAttention):
    """Self-attention of a decoder: a position attends to the prefix, what comes before, itself.

    With fairseq's ``incremental_state``, x has the tokens that are new since the last call; keys
    and values of all before, and of the prefix, are kept there as fairseq keeps its own, so
    ``reorder_incremental_state`` reorders them.
    """

    def num_cached(self, incremental_state) -> int:
        """The keys that the last call has left, with the prefix's; 0 before the first call."""
        saved = self._get_input_buffer(incremental_state)
        return saved["prev_key"].shape[2] if saved else 0

    def forward(self, x, keep=None, prefix=None, incremental_state=None):
        """Attend from x to all up to it.

        Args:
            x: (B, Q, C), the last Q tokens.
            keep: (B or 1, 1, Q, K), True where a token may be attended to, K = P + T of all tokens;
                None for all tokens up to a query's own.
            prefix: as ``SelfAttention`` takes it.
            incremental_state: fairseq's; None where x has all tokens.

        Returns:
            (B, Q, C), before dropout and residual.
        """
        x = self.cast(x)
        query, key, value = (
            self.heads(project(x), x.dtype) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        saved = self._get_input_buffer(incremental_state)
        earlier = (saved["prev_key"], saved["prev_value"]) if saved else prefix
        if earlier is not None:
            key, value = prepend(earlier[0], key), prepend(earlier[1], value)
        if incremental_state is not None:
            self._set_input_buffer(incremental_state, {"prev_key": key, "prev_value": value})
        causal = False
        if keep is None and key.shape[2] == query.shape[2]:
            causal = True  # decided here: in a graph the sizes are symbols
        elif keep is None and query.shape[2] > 1:
            keep = may_see(query.shape[2], key.shape[2], x.device)
        return self.output(self.attend(query, key, value, keep, causal=causal))


class CrossAttention(SelfAttention):
    """Attention of a decoder to what its encoder has computed, the memory.

    With fairseq's ``incremental_state`` keys and values are computed once, and kept for each row of
    the memory, which all beams of a sentence ask.
    Shape letters: M rows of the memory, S its tokens.
    """

    def forward(self, x, memory, keep=None, prefix=None, incremental_state=None, weights=None):
        """Attend from x to the memory, and to a prefix.

        Args:
            x: (B, Q, C); B is n M, for n rows in a row, the beams of a sentence, may ask one row.
            memory: (M, S, C); not read where ``incremental_state`` has its keys.
            keep: (M, 1, 1, S), True where a token may be attended to; None if all may.
            prefix: as ``SelfAttention`` takes it.
            incremental_state: fairseq's, or None.
            weights: a list, to which the weights (H, B, Q, P + S) are added; None for no list.

        Returns:
            (B, Q, C), before dropout and residual.
        """
        x = self.cast(x)
        query = self.heads(self.q_proj(x), x.dtype)
        saved = self._get_input_buffer(incremental_state)
        if saved:
            key, value, keep = saved["prev_key"], saved["prev_value"], saved["keep"]
        else:
            memory = self.cast(memory)
            key, value = (self.heads(part(memory), x.dtype) for part in (self.k_proj, self.v_proj))
            if prefix is not None:
                key, value = prepend(prefix[0], key), prepend(prefix[1], value)
                keep = None if keep is None else F.pad(keep, (prefix[0].shape[1], 0), value=True)
            if incremental_state is not None:
                saved = {"prev_key": key, "prev_value": value, "keep": keep}
                saved["num_beams"] = len(x) // len(key)
                self._set_input_buffer(incremental_state, saved)
        query = together(query, len(key))
        if weights is not None:
            weights.append(apart(_weights(query, key, keep), len(x)).transpose(0, 1))
        return self.output(apart(self.attend(query, key, value, keep), len(x)))

    def reorder_incremental_state(self, incremental_state, new_order):
        """Let row i of the next call be what row ``new_order[i]`` was. Beams that change places
        within their sentence ask the same row of the memory as before, and nothing is copied."""
        saved = self._get_input_buffer(incremental_state)
        if not saved:
            return incremental_state
        # All layers are asked the same: the first finds the answer, which a GPU is waited for.
        question = (saved["num_beams"], len(saved["prev_key"]))
        found = incremental_state.get(ORDER, {})
        if found.get("order") is not new_order or found["question"] != question:
            rows, num_beams = _rows_asked(new_order, *question)
            found = {"order": new_order, "question": question, "rows": rows, "beams": num_beams}
            incremental_state[ORDER] = found
        saved["num_beams"] = found["beams"]
        if found["rows"] is not None:
            for name in ("prev_key", "prev_value", "keep"):
                if saved[name] is not None:
                    saved[name] = saved[name].index_select(0, found["rows"])
        self._set_input_buffer(incremental_state, saved)
        return incremental_state


def _rows_asked(new_order, num_beams: int, num_rows: int):
    """Which rows of the memory the next call reads, where ``num_beams`` beams have shared each of
    its ``num_rows``.

    Returns:
        Their numbers, None for all as they are; and how many beams share each from now on.
    """
    asked = new_order.cpu() // num_beams  # the row of the memory for each of the next call
    by_sentence = None
    if len(asked) % num_beams == 0:
        by_sentence = asked.view(-1, num_beams)
    if by_sentence is not None and (by_sentence == by_sentence[:, :1]).all():
        asked = by_sentence[:, 0]
    else:
        num_beams = 1
    if torch.equal(asked, torch.arange(num_rows)):
        return None, num_beams
    return asked.to(new_order.device), num_beams


def together(query, num_rows: int):
    """Queries (B, H, Q, D) of B = n M rows, those that share their keys in one row: (M, H, n Q, D),
    M = ``num_rows``."""
    if len(query) == num_rows:
        return query
    return query.unflatten(0, (num_rows, -1)).transpose(1, 2).flatten(2, 3)


def apart(rows, num_queries: int):
    """``together`` undone: (M, H, n Q, D) -> (B, H, Q, D), B = ``num_queries``."""
    if len(rows) == num_queries:
        return rows
    n = num_queries // len(rows)
    return rows.unflatten(2, (n, -1)).transpose(1, 2).flatten(0, 1)


def _weights(query, key, keep):
    """The attention weights (M, H, Q, S), which ``attend`` does not show."""
    scores = (query.float() * query.shape[-1] ** -0.5) @ key.float().transpose(2, 3)
    if keep is not None:
        scores = scores.masked_fill(~keep, float("-inf"))
    return scores.softmax(-1)

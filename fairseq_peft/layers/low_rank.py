"""A frozen linear map and a low-rank update of it, as one step of the computation.

On a processor a product whose result has 8 columns takes up to four times what the same product
takes with 8 rows, and each sum is a pass over (N, out) numbers. So here results lie down, (r, N) in
place of (N, r), and sums are part of the products.

Shape letters: N rows, all but the last dimension of x; r rank; M updates of one map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fairseq_peft.layers.stacks import stacked, stacked_inputs, times


def linear_with_update(x, weight, bias, a, b, scale: float):
    """``x W^T + b + scale x A^T B^T`` for a frozen W.

    Args:
        x: (..., in).
        weight: (out, in); it gets no gradient.
        bias: (out,), or None.
        a: (r, in).
        b: (out, r).

    Returns:
        (..., out), in the type of autocast where that is on.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        parts = [None if part is None else part.to(dtype) for part in (x, weight, bias, a, b)]
    else:
        parts = [x, weight, bias, a, b]
    if torch.compiler.is_compiling():  # a graph finds the gradient by itself
        return _updated(*parts, scale)[0]
    return _LinearWithUpdate.apply(*parts, scale)


def add_updates(y, x, factors, scales):
    """``y + scale x A^T B^T`` for M parts of a batch with an update each, in two products for all.

    Args:
        y, x: (M, N, out) and (M, N, in).
        factors: M pairs A (r, in) and B (out, r); r may differ.
        scales: M numbers.
    """
    each_a, each_b = zip(*factors)
    low = times(torch.bmm(x, stacked(each_a).transpose(1, 2)), scales)  # (M, N, r)
    return torch.baddbmm(y, low, stacked_inputs(each_b))


def _updated(x, weight, bias, a, b, scale):
    """The result; and of x and of the update, rows (N, in) and low (r, N)."""
    rows = x.reshape(-1, x.shape[-1])
    y = F.linear(rows, weight, bias)
    low = a @ rows.t()
    y.addmm_(low.t(), b.t(), alpha=scale)
    return y.view(*x.shape[:-1], -1), rows, low


class _LinearWithUpdate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, a, b, scale):
        y, rows, low = _updated(x, weight, bias, a, b, scale)
        ctx.save_for_backward(rows, weight, a, b, low)
        ctx.scale, ctx.shape = scale, x.shape
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        rows, weight, a, b, low = ctx.saved_tensors
        gradient = gradient.reshape(-1, gradient.shape[-1])  # (N, out)
        of_low = (b.t() @ gradient.t()).mul_(ctx.scale)  # (r, N)
        of_x = of_bias = of_a = of_b = None
        if ctx.needs_input_grad[0]:
            of_x = (gradient @ weight).addmm_(of_low.t(), a).view(ctx.shape)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(0)
        if ctx.needs_input_grad[3]:
            of_a = of_low @ rows
        if ctx.needs_input_grad[4]:
            of_b = (low @ gradient).t().mul(ctx.scale)
        return of_x, None, of_bias, of_a, of_b, None

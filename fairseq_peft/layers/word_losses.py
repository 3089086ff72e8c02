"""The loss of words in parts: for some rows of features at a time their logits, the loss, and at
once its gradient. So there never is a tensor of all tokens times all words, of which fairseq's own
way holds four or five, and which is most of the memory where a dictionary is as long as mBART's.

The gradient of a row's logits is softmax(logits) - a onehot(target) - b, with b = smoothing / (V -
1) and a = 1 - smoothing - b, fairseq's label smoothing. Source of the way: Hsu et al. 2024, Liger
Kernel, arXiv:2410.10989. Shape letters: N rows, C model dim, V words.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

#: A part has so many logits, at least ROWS rows of them: fewer make products slow.
LOGITS, ROWS = 2**24, 256


def word_losses(features, target, pad: int, smoothing: float, weight, update, half_dtype):
    """The summed loss with label smoothing, and without, in nats.

    Args:
        features: (N, C) fp32.
        target: (N,) numbers of words; rows where it is ``pad`` are left out.
        smoothing: of labels, in [0, 1).
        weight: (V, C) fp32, which makes logits of features.
        update: None, or a module's method: features -> what is added to the logits.
        half_dtype: what products are computed in; None for fp32.
    """
    if features.device.type == "cpu":  # a GPU would wait for the number of rows
        real = target.ne(pad)
        if not real.all():
            features, target = features[real], target[real]
    others = [] if update is None else update.__self__.parameters()
    return _InParts.apply(
        (target, pad, smoothing, update, half_dtype, torch.is_grad_enabled()),
        features,
        weight,
        *(p for p in others if p.requires_grad and p is not weight),
    )


class _InParts(torch.autograd.Function):
    """given, features (N, C), weight (V, C), tensors that train in ``update`` -> two sums."""

    @staticmethod
    def forward(ctx, given, features, weight, *others):
        target, pad, smoothing, update, half, learns = given
        words = weight.detach().to(half or weight.dtype)
        num_words = len(words)
        b = smoothing / (num_words - 1)
        a = 1 - smoothing - b
        needed = [learns and needs for needs in ctx.needs_input_grad[1:]]
        grads = [
            torch.zeros_like(t) if needs else None
            for t, needs in zip((features, weight, *others), needed)
        ]
        loss, nll = features.new_zeros(2).unbind()
        size = max(LOGITS // num_words, ROWS)
        for start in range(0, len(features), size):
            part = slice(start, start + size)
            x, goal = features[part].detach(), target[part, None]
            with torch.autocast(x.device.type, half, enabled=half is not None):
                logits = F.linear(x, words)
                if update is not None:
                    with torch.set_grad_enabled(learns):
                        more = update(x.requires_grad_(learns))
                    logits = logits + more.detach()
            log_probs = F.log_softmax(logits, -1, dtype=torch.float32)
            real = goal.ne(pad)
            part_nll = -(log_probs.gather(1, goal) * real).sum()
            nll = nll + part_nll
            smooth = -(log_probs.sum(1, keepdim=True) * real).sum() if smoothing else 0.0
            loss = loss + a * part_nll + b * smooth
            if not learns:
                continue
            g = log_probs.exp_()
            if smoothing:
                g.sub_(b)
            g.scatter_add_(1, goal, torch.full_like(goal, -a, dtype=g.dtype))
            g = g.mul_(real).to(logits.dtype)
            if needed[0]:
                grads[0][part] = g @ words
            if needed[1]:
                grads[1].add_(g.t() @ x.detach().to(g.dtype))
            if update is not None:
                of_x, *of_others = torch.autograd.grad(more, [x, *others], g.to(more.dtype))
                if needed[0]:
                    grads[0][part] += of_x
                for grad, found in zip(grads[2:], of_others):
                    grad.add_(found)
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    @once_differentiable
    def backward(ctx, of_loss, of_nll):
        return (None, *(grad if grad is None else grad * of_loss for grad in ctx.saved_tensors))

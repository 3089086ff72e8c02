"""Attention: both ways to compute it agree, forward and backward, and dropout does what it says."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import torch.nn.functional as F  # noqa: E402
from helpers import TOLERANCE  # noqa: E402

from fairseq_peft.layers import attention  # noqa: E402


@pytest.fixture
def parts():
    """query, key, value (3, 4, 7, 8) that want gradients, and a mask with padding."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(3, 4, 7, 8, generator=generator).requires_grad_() for _ in range(3)]
    keep = torch.arange(7)[None] < torch.tensor([7, 5, 1])[:, None]
    return tensors, keep[:, None, None, :]


def grads(out, tensors):
    return torch.autograd.grad(
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), tensors
    )


@pytest.mark.parametrize("masked", [False, True])
def test_the_unfused_way_equals_torchs(parts, masked, monkeypatch):
    """With a dropout that drops nothing, and only scales, the two ways give the same."""
    tensors, keep = parts
    keep = keep if masked else None
    expected = F.scaled_dot_product_attention(*tensors, attn_mask=keep) / 0.9
    monkeypatch.setattr(attention, "mask_like", lambda x, p: torch.ones_like(x))
    found = attention.attend(*tensors, keep, dropout_p=0.1)
    assert (found - expected).abs().max() < TOLERANCE["fp32"]
    for one, other in zip(grads(found, tensors), grads(expected, tensors)):
        assert (one - other).abs().max() < TOLERANCE["fp32"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_and_its_gradients_are_those_of_the_formula(parts, dtype, monkeypatch):
    tensors, keep = parts
    tensors = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
    generator = torch.Generator().manual_seed(1)
    mask = (torch.rand(12, 7, 7, generator=generator) > 0.3).float()
    monkeypatch.setattr(attention, "mask_like", lambda x, p: mask.to(x.dtype))
    found = attention.attend(*tensors, keep, dropout_p=0.3)

    query, key, value = exact = [tensor.detach().float().requires_grad_() for tensor in tensors]
    scores = (query @ key.transpose(-2, -1) / 8**0.5).masked_fill(~keep, float("-inf"))
    expected = (scores.softmax(-1) * mask.view(scores.shape) / 0.7) @ value
    tolerance = TOLERANCE["fp32" if dtype == torch.float32 else "bf16"]
    assert (found - expected).abs().max() < tolerance
    for one, other in zip(grads(found, tensors), grads(expected, exact)):
        assert (one - other).abs().max() < tolerance


@pytest.mark.parametrize("wanted", range(3))
def test_gradients_of_one_input_alone(parts, wanted):
    """As where only one projection trains."""
    tensors, keep = parts
    torch.manual_seed(0)
    every = grads(attention.attend(*tensors, keep, dropout_p=0.3), tensors)[wanted]
    for index, tensor in enumerate(tensors):
        tensor.requires_grad_(index == wanted)
    torch.manual_seed(0)
    alone = grads(attention.attend(*tensors, keep, dropout_p=0.3), tensors[wanted])
    assert torch.equal(alone[0], every) and every.abs().max() > 0


def test_without_dropout_fp32_is_torchs_own(parts):
    tensors, keep = parts
    expected = F.scaled_dot_product_attention(*tensors, attn_mask=keep)
    assert torch.equal(attention.attend(*tensors, keep), expected)


def test_bf16_keeps_the_softmax_in_fp32(parts):
    """Closer to fp32 than torch's own in bf16, and never far."""
    tensors, keep = parts
    exact = F.scaled_dot_product_attention(*tensors, attn_mask=keep)
    halves = [tensor.bfloat16() for tensor in tensors]
    found = attention.attend(*halves, keep)
    assert found.dtype == torch.bfloat16
    assert (found - exact).abs().max() < TOLERANCE["bf16"]


def test_the_mean_over_dropout_is_the_output_without(parts):
    tensors, keep = parts
    expected = attention.attend(*tensors, keep)
    torch.manual_seed(0)
    with torch.no_grad():
        draws = torch.stack([attention.attend(*tensors, keep, dropout_p=0.3) for _ in range(4000)])
    error = (draws.mean(0) - expected).abs() / (draws.std(0) / 4000**0.5 + 1e-4)
    assert error.max() < 5
    # A key that may not be attended to stays out, whatever is dropped.
    assert torch.equal(draws[:, 2].ne(0).any(-1), draws[:, 2].ne(0).all(-1))

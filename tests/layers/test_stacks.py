"""What parts of a batch have of their own, as one tensor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fairseq_peft.layers.stacks import linear_each, times


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factors", [(2.0, 2.0), (1.0, 1.0), (0.5, 3.0)])
def test_each_row_has_its_own_factor(dtype, factors):
    x = torch.arange(1.0, 13.0).view(2, 3, 2).to(dtype)
    found = times(x, factors)
    assert found.dtype == dtype
    for own, row, factor in zip(found, x, factors):
        assert torch.equal(own, row * factor)


def test_what_was_made_in_prediction_serves_in_training():
    """torch refuses gradients through a tensor that inference mode has made."""
    factors = (0.5, 7.0)
    with torch.inference_mode():
        times(torch.ones(2, 3), factors)
    x = torch.ones(2, 3, requires_grad=True)
    times(x, factors).sum().backward()
    assert torch.equal(x.grad, torch.tensor(factors)[:, None].expand(2, 3))


@pytest.mark.parametrize("widths", [(4, 4), (4, 2)])
def test_two_maps_for_each_part(widths):
    """A narrower inside is no other result, and gradients are those of each map by itself."""
    torch.manual_seed(1)
    down = [nn.Linear(3, width) for width in widths]
    up = [nn.Linear(width, 5) for width in widths]
    x = torch.randn(2, 6, 3)
    found = linear_each(up, linear_each(down, x).tanh())
    expected = torch.stack([up[m](down[m](x[m]).tanh()) for m in (0, 1)])
    torch.testing.assert_close(found, expected)
    wanted = [part for each in (*down, *up) for part in each.parameters()]
    weights = torch.arange(60.0).view(2, 6, 5)
    pairs = zip(*(torch.autograd.grad((weights * y).sum(), wanted) for y in (found, expected)))
    for one, other in pairs:
        torch.testing.assert_close(one, other)
        assert one.is_contiguous() or widths != (4, 4)

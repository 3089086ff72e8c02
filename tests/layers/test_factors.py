"""Factors of rows."""

from __future__ import annotations

import pytest
import torch

from fairseq_peft.layers.factors import times


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

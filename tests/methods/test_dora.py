"""DoRA: magnitudes, their start and their gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fairseq_peft.methods.dora import DoRALinear


def maps(model):
    return [module for module in model.modules() if isinstance(module, DoRALinear)]


@pytest.fixture
def linear():
    """A map (5 -> 7) whose tensors are all away from the start."""
    torch.manual_seed(0)
    linear = DoRALinear(torch.nn.Linear(5, 7), 2, 1.5, 0.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        linear.lora_B.normal_()
        linear.lora_magnitude.mul_(torch.rand(7) + 0.5)
    return linear


def test_the_magnitude_is_the_norm_of_the_rows(linear):
    """Whatever A and B are, the rows of what is computed are as long as m says."""
    x = torch.randn(3, 4, 5)
    merged = linear.merged()
    assert torch.allclose(merged.weight.norm(dim=1), linear.lora_magnitude, atol=1e-6)
    assert torch.allclose(linear(x), merged(x), atol=1e-5)
    direction = linear.weight + 1.5 * linear.lora_B @ linear.lora_A
    cosine = F.cosine_similarity(merged.weight, direction, dim=1)
    assert torch.allclose(cosine, torch.ones(7), atol=1e-6)


def test_the_norm_gets_no_gradient(linear):
    """Section 4.3 of the paper: it is a constant, so B's gradient is LoRA's times m / norm."""
    x = torch.randn(3, 5)
    linear(x).sum().backward()
    factor = (linear.lora_magnitude / linear.norms()).detach()
    expected = 1.5 * factor[:, None] * (x @ linear.lora_A.T).sum(0)
    assert torch.allclose(linear.lora_B.grad, expected, atol=1e-5)


def test_the_magnitude_is_measured_on_the_base_that_is_loaded(build):
    base = build("full", seed=11, head=False).state_dict()
    model = build("dora")
    before = [module.lora_magnitude.clone() for module in maps(model)]
    model.load_state_dict(dict(base))
    for module, old in zip(maps(model), before):
        assert torch.equal(module.lora_magnitude, module.weight.norm(dim=1))
        assert not torch.allclose(module.lora_magnitude, old)
    own = {k: torch.ones_like(v) if "magnitude" in k else v for k, v in model.state_dict().items()}
    model.load_state_dict(own)
    assert all(module.lora_magnitude.eq(1).all() for module in maps(model))


def test_a_row_of_zeros_gives_no_nan():
    base = torch.nn.Linear(4, 3)
    with torch.no_grad():
        base.weight[1] = 0
    linear = DoRALinear(base, 2, 1.0, 0.0, torch.Generator().manual_seed(0))
    x = torch.randn(2, 4)
    assert torch.allclose(linear(x), base(x), atol=1e-6)
    linear(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in (linear.lora_A, linear.lora_B))


@pytest.mark.parametrize(
    "given, message",
    [
        ({"lora_rank": 0}, "--lora-rank 0"),
        ({"peft_targets": "embed_tokens,fc1"}, "--peft dora adapts linear maps only"),
        ({"lora_init": "pissa"}, "--lora-init would be ignored: --peft dora"),
        ({"lora_rank_pattern": "fc1=2"}, "--lora-rank-pattern fc1=2 would be ignored"),
    ],
)
def test_bad_knobs_are_refused(build, given, message):
    with pytest.raises(ValueError) as error:
        build("dora", **given)
    assert message in str(error.value)

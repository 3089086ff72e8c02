"""IA3: where the vectors are, in company, and its knobs."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import TOLERANCE

from fairseq_peft.methods.ia3 import IA3


def vectors(model):
    """Name below the body -> shape of every vector."""
    return {
        name.split("sentence_encoder.")[1]: tuple(p.shape)
        for name, p in model.named_parameters()
        if ".ia3." in name
    }


def test_the_default_is_the_papers(build):
    """Keys, values, and what the second map of the feed-forward block takes in."""
    assert vectors(build("ia3")) == {
        f"layers.{layer}.{name}.ia3.scale": shape
        for layer in (0, 1)
        for name, shape in [
            ("self_attn.k_proj", (16,)),
            ("self_attn.v_proj", (16,)),
            ("fc2", (24,)),
        ]
    }


@pytest.mark.parametrize("name, on_input", [("v_proj", False), ("fc1", False), ("fc2", True)])
def test_what_is_scaled(build, name, on_input):
    model = build("ia3", ia3_targets=name, ia3_feedforward=name if on_input else "none")
    (linear,) = (
        m for path, m in model.named_modules() if path.endswith(name) and ".layers.1." in path
    )
    x = torch.randn(3, linear.in_features)
    with torch.no_grad():
        scale = linear.ia3.scale.uniform_(0.5, 2)
        linear.bias.normal_()
        weight, bias = linear.weight, linear.bias
        expected = (scale * x) @ weight.T + bias if on_input else scale * (x @ weight.T + bias)
        assert torch.allclose(linear(x), expected, atol=TOLERANCE["fp32"])


def test_small_steps_count_under_autocast(build, batch, logits):
    """A vector of 1.002 is 1 in bf16: it must not be rounded before it multiplies."""
    model = build("ia3", precision="bf16")
    part = model.encoder.sentence_encoder.layers[0].fc2.ia3
    x = torch.full((1, 24), 3.0, dtype=torch.bfloat16)
    with torch.no_grad():
        part.scale.fill_(1.003)
    scaled = part.before(x)
    assert scaled.dtype == torch.bfloat16
    assert torch.equal(scaled, torch.full_like(x, 3.009)) and not torch.equal(scaled, x)


def test_a_copy_calls_its_own_vectors(build, batch, logits):
    """fairseq copies models (--store-ema); what is attached by closures would stay with the
    first."""
    model = build("ia3")
    before = logits(model, batch)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for module in other.modules():
            if isinstance(module, IA3):
                module.scale.mul_(3)
    assert torch.equal(logits(model, batch), before)
    assert (logits(other, batch) - before).abs().max() > 1e-3
    other.merge()
    assert torch.equal(logits(model, batch), before) and vectors(model) and not vectors(other)


def test_merging_with_lora_folds_the_product(build, batch, logits):
    """LoRA's merged map takes the vectors over; negative control: without them it differs."""
    from fairseq_peft.models.roberta import FAMILY

    settings = {"peft_targets": "k_proj,v_proj,fc2"}
    model = build("lora,ia3", **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in model.added:
            tensor = model.get_parameter(name)
            tensor.add_(0.5 * torch.randn(tensor.shape, generator=generator))
    expected = logits(model, batch)
    lora_only = copy.deepcopy(model)
    for method in model.setting:
        if method.name == "lora":
            method.merge(lora_only, FAMILY)
    assert vectors(lora_only) == vectors(model)
    assert (logits(lora_only, batch) - expected).abs().max() < TOLERANCE["fp32"]
    model.merge()
    assert not vectors(model)
    assert (logits(model, batch) - expected).abs().max() < TOLERANCE["fp32"]
    for module in lora_only.modules():
        if isinstance(module, IA3):
            module.scale.data.fill_(1)
    assert (logits(lora_only, batch) - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    "given, message",
    [
        ({"ia3_targets": "key"}, "--ia3-targets 'key' matches no module"),
        ({"ia3_feedforward": "output"}, "--ia3-feedforward 'output' matches no module"),
        ({"ia3_targets": "k_proj,v_proj"}, "means layers.0.fc2, which is not among --ia3-targets"),
        ({"ia3_layers": "2"}, "there is no layer 2"),
        ({"ia3_layers": "x"}, "neither a layer nor a range"),
        ({"peft": "lora", "ia3_layers": "1"}, "--ia3-layers would be ignored: --peft lora"),
    ],
)
def test_bad_knobs_are_refused(build, given, message):
    with pytest.raises(ValueError) as error:
        build(**{"peft": "ia3", **given})
    assert message in str(error.value)

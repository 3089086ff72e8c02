"""Compacter: the Kronecker maps, the shared rule, and knobs."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from fairseq_peft import methods
from fairseq_peft.architectures import SIZES

RULE = "encoder.sentence_encoder.compacter.rule"


def encoder(model):
    return model.encoder.sentence_encoder


def maps(model):
    """All Kronecker maps of the model."""
    return [
        part
        for layer in encoder(model).layers
        for adapter in (layer.attention_adapter, layer.ffn_adapter)
        for part in (adapter.down, adapter.up)
    ]


def move(model):
    """Everything away from zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in maps(model):
            for parameter in part.parameters():
                parameter.normal_(generator=generator)
    return model


def config(**knobs):
    return methods.get("compacter").Config(**knobs)


def test_a_map_is_a_sum_of_kronecker_products(build):
    model = move(build("compacter", compacter_rank=2, compacter_bottleneck=8))
    rule = model.state_dict()[RULE]
    for part, shape in zip(maps(model), [(16, 8), (8, 16)] * 4):
        expected = sum(
            torch.kron(a, left @ right) for a, left, right in zip(rule, part.left, part.right)
        )
        assert part.weight().shape == shape
        assert torch.allclose(part.weight(), expected, atol=1e-5)
        x = torch.randn(3, 5, shape[0])
        assert torch.allclose(part(x), x @ expected + part.bias, atol=1e-4)


def test_the_rule_is_one_tensor(build):
    model = build("compacter")
    assert [key for key in model.state_dict() if "rule" in key] == [RULE]
    assert [key for key, _ in model.named_parameters(remove_duplicate=False) if "rule" in key] == [
        RULE
    ]
    assert sum(name.endswith("compacter") for name, _ in model.named_modules()) == 1


def pickled(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def loaded(model):
    state = {key: value.clone() for key, value in model.state_dict().items()}
    torch.nn.Module.load_state_dict(model, state, assign=True)
    return model


@pytest.mark.parametrize(
    "treat",
    [
        lambda model: model.to(torch.float64),
        lambda model: model.bfloat16().float(),
        lambda model: model.to_empty(device="cpu"),
        copy.deepcopy,
        pickled,
        loaded,
    ],
    ids=["double", "bfloat16", "to_empty", "deepcopy", "pickle", "assign"],
)
def test_the_rule_stays_one_tensor(build, treat):
    """Whatever is done to a model: its maps compute with the rule that its state has."""
    original = build("compacter")
    model = treat(original)
    parameter = dict(model.named_parameters())[RULE]
    assert all(part.shared[0] is encoder(model).compacter for part in maps(model))
    with torch.no_grad():
        move(model)
        parameter.fill_(1)
    for part in maps(model):
        assert part.weight().dtype == parameter.dtype
        expected = torch.kron(torch.ones(4, 4).to(parameter), (part.left @ part.right).sum(0))
        assert torch.allclose(part.weight(), expected, atol=1e-5)
    if model is not original:  # a copy has its own
        assert not torch.equal(encoder(original).compacter.rule, parameter)


def test_gradients_of_all_maps_meet_in_the_rule(build, batch):
    model = move(build("compacter"))
    model(batch, features_only=True, classification_head_name="head")[0].sum().backward()
    whole = encoder(model).compacter.rule.grad.clone()
    parts = torch.zeros_like(whole)
    for kept in maps(model):
        model.zero_grad()
        for part in maps(model):  # only one map's share
            frozen = copy.deepcopy(part.shared) if part is not kept else (encoder(model).compacter,)
            part.shared = frozen
        model(batch, features_only=True, classification_head_name="head")[0].sum().backward()
        parts += encoder(model).compacter.rule.grad
    assert torch.allclose(parts, whole, rtol=1e-3, atol=1e-4 * whole.abs().max().item())


def test_the_start_can_be_learnt_from(build, batch):
    """Behind the zero that makes the start the identity, gradients stay far above AdamW's eps
    (1e-8): with AdapterHub's rule, N(0, 1e-4), they would not."""
    model = build("compacter")
    scores, _ = model(batch, features_only=True, classification_head_name="head")
    torch.nn.functional.cross_entropy(scores, torch.tensor([0, 1, 1, 0])).backward()
    for layer in encoder(model).layers:
        for adapter in (layer.attention_adapter, layer.ffn_adapter):
            assert adapter.up.right.count_nonzero() == 0
            assert adapter.up.right.grad.abs().max() > 1e-6


def test_two_compacters_of_adapterhub():
    assert (config().placement, config().activation) == ("both", "gelu")
    plus_plus = config(style="pfeiffer")
    assert (plus_plus.placement, plus_plus.activation) == ("ffn", "gelu")


def test_widths_and_counts():
    def count(**knobs):
        return methods.get("compacter")(config(**knobs)).count(SIZES["roberta_small"]).total

    assert (config().width(512), config().width(768), config().width(16)) == (16, 24, 4)
    assert config(reduction=8).width(512) == 64
    one = 2 * (512 + 16) + 16 + 512  # two maps of rank 1, two biases
    assert count() == 64 + 8 * one
    assert count(style="pfeiffer") == 64 + 4 * one
    assert count(phm_dim=2, rank=3, placement="ffn") == 8 + 4 * (2 * 3 * 528 + 528)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"compacter_phm_dim": 0}, "--compacter-phm-dim 0"),
        ({"compacter_rank": 0}, "--compacter-rank 0"),
        ({"compacter_phm_dim": 3}, "--compacter-phm-dim 3 does not divide the model dimension 16"),
        ({"compacter_bottleneck": 6}, "--compacter-phm-dim 4 does not divide the bottleneck 6"),
        ({"compacter_reduction": 32.0}, "--compacter-reduction 32 leaves nothing"),
        ({"compacter_style": "parallel"}, "--compacter-style 'parallel' is unknown"),
        ({"adapter_bottleneck": 4}, "--adapter-bottleneck would be ignored: --peft compacter"),
    ],
)
def test_bad_knobs_are_refused(build, given, message):
    with pytest.raises(ValueError) as error:
        build("compacter", **given)
    assert message in str(error.value)


@pytest.mark.parametrize("peft", ["adapter,compacter", "compacter,adapter"])
def test_one_adapter_a_slot(build, peft):
    with pytest.raises(ValueError, match="do not go together: both fill the slots behind"):
        build(peft)


def test_each_of_the_two_says_why():
    for name, other in (("adapter", "compacter"), ("compacter", "adapter")):
        assert "fill the slots" in methods.get(name).excludes[other]

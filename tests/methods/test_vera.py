"""VeRA: what it computes, and the matrices that all maps share."""

from __future__ import annotations

import copy

import adapter_folders
import pytest
import torch

from fairseq_peft.adapters import folder as adapter_folder
from fairseq_peft.architectures import SIZES
from fairseq_peft.methods.vera import SharedMatrices, VeRA, VeRAConfig, VeRALinear

ROOT = "encoder.sentence_encoder"


def maps(model):
    return [module for module in model.modules() if isinstance(module, VeRALinear)]


def shared(model):
    return model.get_submodule(f"{ROOT}.vera")


def test_what_it_computes(build):
    model = build("vera", peft_targets="all-linear", vera_rank=5)
    linear = model.encoder.sentence_encoder.layers[1].fc2
    x = torch.randn(3, linear.in_features)
    with torch.no_grad():
        d, v = linear.vera_d.normal_(), linear.vera_v.normal_()
        a, b = shared(model).A[:, : len(x[0])], shared(model).B[: len(v)]
        expected = x @ linear.weight.T + linear.bias + v * (b @ (d * (x @ a.T)).T).T
        assert torch.allclose(linear(x), expected, atol=1e-5)


def test_all_maps_share_one_pair_of_the_largest_size(build):
    model = build("vera", peft_targets="q_proj,fc1,fc2", vera_rank=5)
    kinds = [module for module in model.modules() if isinstance(module, SharedMatrices)]
    assert kinds == [shared(model)] and len(maps(model)) == 6
    assert all(linear.shared[0] is shared(model) for linear in maps(model))
    assert shared(model).A.shape == (5, 24) and shared(model).B.shape == (24, 5)  # F = 24, C = 16
    assert not shared(model).A.requires_grad


def test_variances_are_those_of_peft():
    made = SharedMatrices(256, 512, 300, seed=3, like=torch.zeros(1))
    assert made.A.var().item() == pytest.approx(2 / 512, rel=0.02)
    assert made.B.var().item() == pytest.approx(2 / 256, rel=0.02)


def test_the_state_holds_a_seed_from_which_the_matrices_come(build, dictionary, tmp_path):
    """Another run draws other matrices; those of this run come with its state, and its folder."""
    model, other, third = build("vera", seed=1), build("vera", seed=2), build("vera", seed=2)
    assert not torch.equal(shared(model).A, shared(other).A)
    assert {name for name in model.added if "vera" in name and "_proj" not in name} == {
        f"{ROOT}.vera.seed"
    }
    other.load_state_dict(model.state_dict())
    base = adapter_folders.base_state(dictionary)
    folder = adapter_folders.write(tmp_path / "adapter", model, base)
    adapter_folder.apply(third, adapter_folder.read(folder))
    for loaded in (other, third):
        assert torch.equal(shared(loaded).A, shared(model).A)
        assert torch.equal(shared(loaded).B, shared(model).B)


def test_a_copy_of_the_model_has_matrices_of_its_own(build, batch, logits):
    model = build("vera")
    with torch.no_grad():
        for linear in maps(model):
            linear.vera_v.fill_(1)
    before, other = logits(model, batch), copy.deepcopy(model)
    assert torch.equal(logits(other, batch), before)
    shared(other).A.mul_(2)
    assert torch.equal(logits(model, batch), before)
    assert not torch.equal(logits(other, batch), before)


def test_merging_leaves_nothing(build):
    model = build("vera")
    model.merge()
    assert not maps(model) and not any("vera" in name for name, _ in model.named_modules())


def test_counts():
    def count(**knobs):
        return VeRA(VeRAConfig(**knobs)).count(SIZES["roberta_small"]).total

    assert count() == 2 * 4 * (256 + 512) == 6_144
    assert count(targets="fc1", layers="0", rank=64) == 64 + 512


@pytest.mark.parametrize(
    "given, message",
    [
        ({"vera_rank": 0}, "--vera-rank 0 is not a rank"),
        ({"vera_d_initial": 0.0}, "--vera-d-initial 0.0 lets nothing through"),
        ({"vera_dropout": 1.0}, "--vera-dropout 1.0 is not in [0, 1)"),
        ({"vera_layers": "2"}, "there is no layer 2"),
        ({"peft_targets": "query"}, "--peft-targets 'query' matches no module"),
        ({"peft": "lora,vera"}, "vera and lora do not go together"),
        ({"peft": "vera,last_layers", "peft_targets": "fc1"}, "one of the two is in vain"),
    ],
)
def test_bad_knobs_are_refused(build, given, message):
    with pytest.raises(ValueError) as error:
        build(**{"peft": "vera", **given})
    assert message in str(error.value)

"""Attention of Hugging Face's models where it trains with dropout, in a way of its own on a CPU."""

from __future__ import annotations

import types

import pytest
import torch
from helpers import TOLERANCE
from hf_families import KINDS, Kind
from torch import nn

from fairseq_peft.layers import hf_attention
from fairseq_peft.layers.dropout import QuickDropout


@pytest.mark.parametrize("with_prefix", [False, True])
@pytest.mark.parametrize("scaling", [None, 1.0])
@pytest.mark.parametrize("with_bias", [False, True])
def test_where_nothing_is_dropped_it_is_torchs(monkeypatch, scaling, with_bias, with_prefix):
    """Two heads of keys for four of queries, masks, and distances that differ by head."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    query, key, value = random(2, 4, 5, 8), random(2, 2, 6, 8), random(2, 2, 6, 8)
    prefix = (random(2, 3, 8), random(2, 3, 8)) if with_prefix else None
    mask = torch.zeros(2, 1, 5, 6).masked_fill(random(2, 1, 1, 6) > 1, -1e9) if with_bias else None
    given = {"scaling": scaling, "position_bias": random(1, 4, 5, 6) if with_bias else None}
    module = types.SimpleNamespace(prefix=prefix)
    wanted, _ = hf_attention.attend(module, query, key, value, mask, **given)
    asked = []
    monkeypatch.setattr(hf_attention, "drop", lambda x, p: asked.append(p) or x)
    found, _ = hf_attention.attend(module, query, key, value, mask, dropout=0.25, **given)
    assert asked == [0.25] and found.shape == (2, 5, 4, 8)
    assert (found - wanted).abs().max() < TOLERANCE["fp32"]


def test_it_drops_as_often_as_it_is_told_and_keeps_the_mean():
    torch.manual_seed(3)
    query, value = torch.zeros(8, 4, 64, 4), torch.eye(64).expand(8, 4, 64, 64)
    module = types.SimpleNamespace()
    weights, _ = hf_attention.attend(module, query, query, value, None, dropout=0.25)
    kept = weights.ne(0)
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.01)
    assert torch.allclose(weights[kept], torch.tensor(1 / 64 / 0.75))


@pytest.mark.parametrize("name", KINDS)
def test_dropouts_of_its_layers_are_quick_ones(name, tmp_path):
    model = Kind(name, tmp_path).build("lora")
    found = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert all(type(module) is QuickDropout for module in found)
    assert found or name in (
        "bart",
        "opt",
        "llama",
        "llama-grouped",
    )  # they have functions, or none
    x = torch.ones(100, 100)
    for module in {type(module): module for module in found}.values():
        module.p = 0.5
        assert module.eval()(x) is x
        assert module.train()(x).unique().tolist() == [0, 2]


@pytest.mark.parametrize("name", ["gpt2", "bloom", "t5-gated"])
def test_their_gelu_is_torchs(name, tmp_path):
    """The same function, and what it teaches, as the module that transformers has there."""
    kind = Kind(name, tmp_path)
    ours, theirs = kind.build().hf, kind.stock(kind.build().state_dict())
    gelus = [path for path, module in ours.named_modules() if isinstance(module, nn.GELU)]
    assert gelus
    for path in gelus:
        x = torch.linspace(-6, 6, 101, requires_grad=True)
        found, wanted = ours.get_submodule(path)(x), theirs.get_submodule(path)(x)
        assert torch.allclose(found, wanted, atol=1e-6)
        both = [torch.autograd.grad(y.square().sum(), x)[0] for y in (found, wanted)]
        assert torch.allclose(*both, atol=1e-5)

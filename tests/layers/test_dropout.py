"""Dropout from random bits: the right share, the right scale, the same mask backward, seeded."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from families import FAMILIES  # noqa: E402
from hf_families import KINDS, Kind  # noqa: E402

from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.layers.attention import Attend  # noqa: E402
from fairseq_peft.layers.dropout import Dropout, dropout  # noqa: E402


@pytest.mark.parametrize("p", [0.001, 0.01, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_share_and_scale(p, dtype):
    """A call drops one of the two neighbours of p among the 256ths; the mean of many drops p."""
    torch.manual_seed(0)
    x = torch.ones(20, 101, dtype=dtype)
    draws = torch.stack([dropout(x, p) for _ in range(2000)])
    assert draws.dtype == dtype and draws.shape[1:] == x.shape
    dropped = (draws == 0).double().mean((1, 2))
    step = 1 / 256
    # Of the mean: the choice of a neighbour is one draw a call, the rest one a number.
    deviation = (step**2 / 4 / len(draws) + p * (1 - p) / draws.numel()) ** 0.5
    assert abs(dropped.mean().item() - p) < 5 * deviation
    assert (dropped - p).abs().max() < step + 6 * (p * (1 - p) / x.numel() + 1e-6) ** 0.5
    assert torch.allclose(draws[draws != 0].double(), torch.tensor(1 / (1 - p)).double(), rtol=1e-2)


def test_every_place_is_as_likely_and_no_two_go_together():
    """Eight decisions share a random word: none of them may lean on another."""
    torch.manual_seed(1)
    zero = (dropout(torch.ones(200_000, 8), 0.25) == 0).double()
    assert (zero.mean(0) - 0.25).abs().max() < 0.005
    correlation = torch.corrcoef(zero.T) - torch.eye(8)
    assert correlation.abs().max() < 0.01


def test_the_gradient_goes_where_the_numbers_went():
    torch.manual_seed(2)
    x = torch.randn(7, 13, requires_grad=True)
    y = dropout(x, 0.3)
    y.sum().backward()
    assert torch.equal(x.grad * x.detach(), y.detach())
    assert 0 < (x.grad == 0).sum() < x.numel()


def test_a_seed_gives_the_same_mask_again():
    x = torch.ones(50, 3)
    torch.manual_seed(3)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.5), first) and not torch.equal(first, second)


def test_off_in_eval_mode_and_at_zero():
    x = torch.randn(4, 5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x
    assert not torch.equal(Dropout(0.5).train()(x), x)


@pytest.mark.parametrize("flag", ["dropout", "attention_dropout", "activation_dropout"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_share_that_cannot_be_is_refused_by_every_model(dictionary, family, flag):
    """1 divides by zero, and 1.5 or -0.1 train on what is wrongly scaled."""
    build, name = FAMILIES[family](dictionary).build, flag.replace("_", "-")
    for share in (1.0, 1.5, -0.1, float("nan")):
        with pytest.raises(InputError, match=rf"--{name} {share} is not in \[0, 1\): give"):
            build(**{flag: share})


def test_a_share_of_the_classifiers_head_is_looked_at_too(build):
    with pytest.raises(InputError, match=r"--pooler-dropout 1.5 is not in \[0, 1\)"):
        build("lora", pooler_dropout=1.5)


@pytest.mark.parametrize("name, key", [("t5", "dropout_rate"), ("gpt2", "attn_pdrop")])
def test_a_share_of_a_config_of_hugging_faces_is_looked_at_too(tmp_path, monkeypatch, name, key):
    config, flags = KINDS[name]
    monkeypatch.setitem(KINDS, name, ({**config, key: 1.0}, flags))
    with pytest.raises(InputError, match=rf"{name}.json: {key} 1.0 is not in \[0, 1\)"):
        Kind(name, tmp_path).build("lora")


def test_fairseqs_retain_dropout_holds_in_eval_mode():
    """fairseq-generate --retain-dropout: words are drawn from the model as it trains."""
    layer, x = Dropout(0.5).eval(), torch.ones(1, 2, 8, 4)
    attend = Attend(layer).eval()
    assert layer(x) is x and torch.equal(attend(x, x, x), x)
    layer.make_generation_fast_(name="layer", need_attn=False)
    assert layer(x) is x
    layer.make_generation_fast_(name="layer", retain_dropout=True, retain_dropout_modules=None)
    assert (layer(x) == 0).any() and not torch.equal(attend(x, x, x), x)
    with pytest.raises(InputError, match="--retain-dropout-modules"):
        layer.make_generation_fast_("layer", retain_dropout=True, retain_dropout_modules=["Other"])

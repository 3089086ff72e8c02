"""``--layer-norm-eps``: every norm has it, a base decides it, and stock fairseq computes the same
with rescaled weights."""

from __future__ import annotations

import argparse

import adapter_folders
import pytest
from helpers import TOLERANCE
from verbs import refused, run

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

from families import Roberta  # noqa: E402

from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.models import norms, sizes  # noqa: E402
from fairseq_peft.models.roberta import BASE_SIZES  # noqa: E402

LARGE = 0.02  # what a model of any size shows

PLACES = [
    {},
    {"encoder_normalize_before": True},
    {"encoder_normalize_before": True, "layernorm_embedding": False},
    {"untie_weights_roberta": True},
]


def lively(build, **given):
    model = build(**given)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("given", PLACES)
def test_every_norm_has_it(build, given):
    model = build("lora", layer_norm_eps=LARGE, **given)
    found = [m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(found) >= 5 and set(found) == {LARGE}
    found = [m.eps for m in build("lora").modules() if isinstance(m, torch.nn.LayerNorm)]
    assert set(found) == {norms.STOCK_EPS}


@pytest.mark.parametrize("eps", [LARGE, 1e-12])
@pytest.mark.parametrize("given", PLACES)
def test_rescaled_weights_are_the_same_model_for_stock(given, eps, dictionary, build, batch):
    model = lively(build, layer_norm_eps=eps, **given)
    stock = Roberta(dictionary).stock(model)
    real = batch.ne(dictionary.pad())

    def differences(weights):
        stock.load_state_dict(dict(weights))
        found = []
        for more in ({"features_only": True}, {"classification_head_name": "head"}, {}):
            with torch.no_grad():
                ours, theirs = model(batch, **more)[0], stock(batch, **more)[0]
            if ours.dim() == 3:
                ours, theirs = ours[real], theirs[real]
            found.append(((ours - theirs).abs().max() / ours.abs().max()).item())
        return found

    features, scores, words = differences(norms.for_stock(model.state_dict(), model.args))
    assert features < TOLERANCE["fp32"] and scores < TOLERANCE["fp32"]
    if eps == LARGE:  # the check sees what is not rescaled; the LM head's own norm cannot be
        assert min(differences(model.state_dict())[0], words) > 1e-3
    else:
        assert words < 1e-3


def test_without_an_eps_of_its_own_nothing_is_rescaled(build):
    model = build()
    state = model.state_dict()
    found = norms.for_stock(state, model.args)
    assert all(found[name] is state[name] for name in state)


@pytest.mark.parametrize("eps", [0.0, -1e-5, float("inf"), float("nan")])
def test_an_eps_that_cannot_be_is_refused(build, eps):
    with pytest.raises(InputError, match="--layer-norm-eps .* above 0"):
        build(layer_norm_eps=eps)


def test_a_base_decides_it(build):
    weights = build(head=False).state_dict()

    def completed(given, **told):
        args = argparse.Namespace(layer_norm_eps=given)
        state = {"model": weights, "args": {"encoder_attention_heads": 4, **told}}
        sizes.complete(args, BASE_SIZES, "roberta_lora", state, "base.pt")
        return args.layer_norm_eps

    assert completed(None) == completed(1e-5) == norms.STOCK_EPS
    assert completed(None, layer_norm_eps=1e-12) == completed(1e-12, layer_norm_eps=1e-12) == 1e-12
    with pytest.raises(InputError, match="layer_norm_eps 1e-05 .the base has 1e-12"):
        completed(1e-5, layer_norm_eps=1e-12)


def test_merge_rescales_and_says_so(dictionary, tmp_path, capsys):
    base = adapter_folders.base_state(dictionary)
    path = adapter_folders.save_base(tmp_path / "base.pt", base)
    model = adapter_folders.perturbed(dictionary, base, layer_norm_eps=1e-3)
    folder = adapter_folders.write(tmp_path / "adapter", model, base, path)
    words = ("merge", folder, tmp_path / "merged.pt", "--base", path)
    line = refused(capsys, *words, "--dtype", "fp16")
    assert "too large for fp16. Give --dtype bf16 or fp32" in line
    run(*words)  # which compares the logits
    assert "eps 1e-05, this model's 0.001: its weights are rescaled" in capsys.readouterr().out
    merged = torch.load(tmp_path / "merged.pt", weights_only=True)
    scale = 0.1  # sqrt(1e-5 / 1e-3)
    name = "encoder.sentence_encoder.embed_tokens.weight"
    assert torch.allclose(merged["model"][name], scale * base[name])
    assert merged["model"]["encoder.lm_head.weight"].data_ptr() == merged["model"][name].data_ptr()
    assert "layer_norm_eps" not in merged["cfg"]["model"]

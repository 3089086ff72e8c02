"""``--classifier-head linear``, and what an adapter weighs with either head."""

from __future__ import annotations

import types

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")

import adapter_folders  # noqa: E402
from families import Roberta  # noqa: E402

from fairseq_peft.architectures import SIZES  # noqa: E402
from fairseq_peft.models import folder  # noqa: E402

LINEAR = {"classifier_head": "linear"}
PREFIX = "classification_heads.head."


def test_it_is_one_linear_map_of_the_first_feature(build, batch, logits):
    model = build("lora", num_classes=3, **LINEAR)
    own = {key: value for key, value in model.state_dict().items() if key.startswith(PREFIX)}
    shapes = {key: tuple(value.shape) for key, value in own.items()}
    assert shapes == {f"{PREFIX}out_proj.weight": (3, 16), f"{PREFIX}out_proj.bias": (3,)}
    with torch.no_grad():
        features = model(batch, features_only=True)[0][:, 0]
    weight, bias = own.values()
    assert (logits(model, batch) - (features @ weight.t() + bias)).abs().max() < 1e-5
    assert all(parameter.requires_grad for parameter in model.classification_heads.parameters())


def test_the_count_is_the_formula(build, dictionary):
    for kind in ("roberta", "linear"):
        model = build("lora", classifier_head=kind)
        number = sum(p.numel() for p in model.classification_heads.parameters())
        assert Roberta(dictionary).dims.head(2, kind).total == number


def test_dropout_of_the_head_is_applied(build, batch):
    model = build("head_only", pooler_dropout=0.5, dropout=0, attention_dropout=0, **LINEAR)
    model.train()
    first, second = (
        model(batch, features_only=True, classification_head_name="head")[0] for _ in range(2)
    )
    assert not torch.equal(first, second)


def test_the_same_seed_is_the_same_head_whatever_the_method(build):
    heads = [build(peft, seed=4, **LINEAR).classification_heads for peft in ("lora", "prompt")]
    first, second = (list(head.parameters()) for head in heads)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_a_checkpoint_with_the_other_head_is_refused(build):
    states = {
        kind: build("full", classifier_head=kind).state_dict() for kind in ("roberta", "linear")
    }
    for kind, state in states.items():
        build("lora", classifier_head=kind).load_state_dict(dict(state))
        other = "linear" if kind == "roberta" else "roberta"
        with pytest.raises(ValueError, match=f"is that of --classifier-head {kind}, not {other}"):
            build("lora", classifier_head=other).load_state_dict(dict(state))
        fresh = build("lora", classifier_head=other, reset_head=True)
        before = fresh.classification_heads.head.out_proj.weight.clone()
        fresh.load_state_dict(dict(state))
        assert torch.equal(fresh.classification_heads.head.out_proj.weight, before)


def test_a_base_may_have_a_linear_head_of_another_name(build):
    """fairseq takes every head of a checkpoint for one with a dense layer."""
    state = {
        key.replace("heads.head.", "heads.other."): value
        for key, value in build("full", **LINEAR).state_dict().items()
    }
    for kind in ("roberta", "linear"):
        model = build("lora", seed=2, classifier_head=kind)
        before = model.classification_heads.head.out_proj.weight.clone()
        model.load_state_dict(dict(state))
        assert torch.equal(model.classification_heads.head.out_proj.weight, before)


def test_an_unknown_head(build):
    with pytest.raises(
        ValueError, match="--classifier-head 'deep' is unknown: give roberta or lin"
    ):
        build("lora", classifier_head="deep")


@pytest.mark.parametrize(("kind", "limit"), [("roberta", 1_400_000), ("linear", 300_000)])
def test_what_lora_of_rank_8_weighs_on_roberta_small(dictionary, tmp_path, kind, limit):
    """adapter.safetensors; the size of the vocabulary has no part in it."""
    size = SIZES["roberta_small"]
    sizes = {
        "encoder_layers": size.num_layers,
        "encoder_embed_dim": size.embed_dim,
        "encoder_ffn_embed_dim": size.ffn_dim,
        "encoder_attention_heads": size.num_heads,
        "max_positions": size.max_positions,
    }
    model = Roberta(dictionary).build("lora", classifier_head=kind, **sizes)
    base = {k: v for k, v in model.state_dict().items() if k not in model.own_names()}
    path = adapter_folders.write(tmp_path / "adapter", model, base)
    weight = (path / "adapter.safetensors").stat().st_size
    assert 260_000 < weight < limit
    told = folder.content(model, "head", {"path": "", "sha256": ""})[1]
    assert 0 < weight - 4 * (told["parameters"]["method"] + told["parameters"]["head"]) < 4000


def test_a_model_from_before_the_flag_has_robertas(build):
    from fairseq_peft.models.heads import kind_of

    assert kind_of(types.SimpleNamespace()) == "roberta"

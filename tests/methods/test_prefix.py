"""Prefix tuning: layout, positions, masks, the MLP, combinations and knobs."""

from __future__ import annotations

import pytest
import torch
from helpers import TOLERANCE, first_input
from settings.prefix import SETTINGS
from torch import nn

from fairseq_peft import methods
from fairseq_peft.architectures import SIZES


def prefix_of(model):
    return model.encoder.sentence_encoder.prefix


def test_the_layout_is_that_of_hugging_face_peft(build):
    """A flat row is seen as (2 L, H, C / H): keys of layer l at 2 l, its values at 2 l + 1."""
    model = build("prefix", prefix_num_tokens=3)
    flat = prefix_of(model).embeddings
    assert flat.shape == (3, 2 * 2 * 16)
    parts = prefix_of(model)(4)
    assert len(parts) == 2
    for layer, (keys, values) in enumerate(parts):
        for token in range(3):
            for head in range(4):
                start = 2 * layer * 16 + head * 4
                assert torch.equal(keys[head, token], flat[token, start : start + 4])
                assert torch.equal(values[head, token], flat[token, start + 16 : start + 20])


def test_attention_with_a_prefix_is_attention_over_more_keys(build, batch):
    """The block of a layer against the textbook: softmax over prefix and text."""
    model = build("prefix", prefix_num_tokens=3)
    attention = model.encoder.sentence_encoder.layers[0].self_attn
    nn.init.normal_(prefix_of(model).embeddings)
    keys, values = prefix_of(model)(4)[0]
    x = torch.randn(1, 6, 16)
    with torch.no_grad():
        found = attention(x, prefix=(keys, values))
        q, k, v = (
            project(x).view(6, 4, 4).transpose(0, 1)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        k, v = torch.cat([keys, k], 1), torch.cat([values, v], 1)
        weights = torch.softmax(q @ k.transpose(1, 2) / 4**0.5, -1)
        expected = attention.out_proj((weights @ v).transpose(0, 1).reshape(1, 6, 16))
    assert (found - expected).abs().max() < TOLERANCE["fp32"]


@pytest.mark.parametrize("positions, shift", [("reserved", 5), ("shared", 0)])
def test_every_token_stands_at_its_position(build, batch, positions, shift):
    model = build("prefix", prefix_num_tokens=5, prefix_positions=positions)
    encoder = model.encoder.sentence_encoder
    found = first_input(model, batch)
    assert found.shape[1] == batch.shape[1] and model.num_reserved == shift
    with torch.no_grad():
        for row, tokens in zip(found, batch):
            length = int(tokens.ne(1).sum())
            words = encoder.embed_tokens(tokens[:length])
            places = encoder.embed_positions.weight[2 + shift :][:length]
            expected = encoder.layernorm_embedding(words + places)
            assert torch.allclose(row[:length], expected, atol=1e-6)


@pytest.mark.parametrize("peft, given", [("prefix", {}), *SETTINGS])
def test_masks_follow_the_prefix(build, batch, logits, peft, given):
    """A row's scores do not depend on how much padding the longest row gives it."""
    model = build(peft, **given)
    for parameter in prefix_of(model).parameters():
        nn.init.normal_(parameter)
    together = logits(model, batch)
    for row, scores in zip(batch, together):
        alone = logits(model, row[row.ne(1)][None])[0]
        assert (alone - scores).abs().max() < TOLERANCE["fp32"]


def test_folding_drops_the_mlp_of_every_part(build):
    model = build("prefix,prompt", prefix_mlp=6, prompt_mlp=5)
    assert sum(".mlp." in key for key in model.added) == 8
    model.fold()
    root = "encoder.sentence_encoder."
    assert model.added == {root + "prefix.embeddings", root + "soft_prompt.embeddings"}
    assert model.setting.knobs()["prefix"]["mlp"] == model.setting.knobs()["prompt"]["mlp"] == 0
    assert (model.args.prefix_mlp, model.args.prompt_mlp) == (0, 0)
    assert prefix_of(model).embeddings.shape == (20, 2 * 2 * 16)
    model.fold()  # again: nothing is left to do


def test_a_checkpoint_of_training_keeps_the_mlp(build):
    """Unlike Hugging Face PEFT's, from which training could not go on."""
    state = build("prefix", prefix_mlp=6).state_dict()
    assert {key for key in state if ".mlp." in key} == {
        f"encoder.sentence_encoder.prefix.mlp.{i}.{kind}"
        for i in (0, 2)
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(
    "peft, given, reserved",
    [
        ("prefix", {"prefix_num_tokens": 3, "prefix_positions": "reserved"}, 3),
        ("prompt,prefix", {"prompt_num_tokens": 1, "prefix_num_tokens": 60}, 1),
        ("prefix", {"prefix_num_tokens": 60}, 0),
    ],
)
def test_too_long_a_text_is_refused(build, peft, given, reserved):
    model = build(peft, **given)
    assert model.num_reserved == reserved
    with torch.no_grad():
        model(torch.full((1, 40 - reserved), 7), features_only=True)
    with pytest.raises(ValueError, match=f"and {reserved} prompt or prefix tokens"):
        model(torch.full((1, 41 - reserved), 7), features_only=True)


@pytest.mark.parametrize(
    "peft, given, number",
    [
        ("prompt", {"prompt_num_tokens": 10}, 5_120),
        ("prefix", {"prefix_num_tokens": 10}, 40_960),
        # Hugging Face PEFT with prefix_projection=True: its embedding and its transform.
        ("prefix", {"prefix_num_tokens": 10, "prefix_mlp": 64}, 5_120 + 32_832 + 266_240),
    ],
)
def test_counts_of_roberta_small(peft, given, number):
    """What Hugging Face PEFT counts."""
    assert methods.setting(peft, given).count(SIZES["roberta_small"]).total == number


@pytest.mark.parametrize(
    "given, message",
    [
        ({"prefix_num_tokens": 0}, "--prefix-num-tokens 0 is no prefix"),
        ({"prefix_mlp": -2}, "--prefix-mlp -2 is no hidden size"),
        ({"prefix_positions": "own"}, "--prefix-positions 'own' is unknown: give one of reserved"),
        ({"prompt_num_tokens": 3}, "--prompt-num-tokens would be ignored: --peft prefix"),
    ],
)
def test_bad_knobs_are_refused(build, given, message):
    with pytest.raises(ValueError) as error:
        build("prefix", **given)
    assert message in str(error.value)

"""Methods beside each other: none shifts what another draws, unions start as their parts, and what
does not go together is refused."""

from __future__ import annotations

from dataclasses import fields
from typing import Optional

import pytest
import torch

from fairseq_peft import methods
from fairseq_peft.errors import InputError
from fairseq_peft.methods.base import field_types, flag_name


def test_methods_do_not_disturb_each_other(build):
    """At one seed: the same head, the same body and the same generator state, whatever the
    method."""
    heads, states, bodies = [], [], []
    for name in methods.available():
        model = build(name, seed=4)
        states.append(torch.get_rng_state())
        heads.append([p.clone() for p in model.classification_heads.parameters()])
        bodies.append(model.encoder.sentence_encoder.layers[0].fc1.weight.clone())
    for head, state, body in zip(heads, states, bodies):
        assert all(torch.equal(a, b) for a, b in zip(head, heads[0]))
        assert torch.equal(state, states[0]) and torch.equal(body, bodies[0])
    other = build("lora", seed=5)
    assert not torch.equal(next(other.classification_heads.parameters()), heads[0][0])


@pytest.mark.parametrize(
    "name, given, message",
    [
        ("lora", {"peft": "loar"}, "--peft 'loar' is unknown"),
        ("lora,lora", {}, "names a method twice"),
        ("full,lora", {}, "full cannot be combined, because it trains every tensor already"),
        ("prompt,head_only", {}, "head_only cannot be combined"),
        ("prompt,adapter", {"lora_rank": 4}, "--lora-rank would be ignored: --peft prompt,adapter"),
        ("full", {"peft_targets": "q_proj"}, "--peft-targets would be ignored: --peft full"),
        ("full", {"precision": "fp8"}, "--precision 'fp8'"),
        ("full", {"encoder_attention_heads": 3}, "--encoder-attention-heads 3"),
    ],
)
def test_bad_settings_are_refused(build, name, given, message):
    with pytest.raises(ValueError) as error:
        build(**{"peft": name, **given})
    assert message in str(error.value)


NUMBERS = [
    (name, flag_name(name, field))
    for name in methods.available()
    for field in fields(methods.get(name).Config)
    if field_types(methods.get(name).Config)[field.name] in (float, Optional[float])
]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")], ids=str)
@pytest.mark.parametrize("name, flag", NUMBERS, ids=[flag for _, flag in NUMBERS])
def test_a_knob_that_is_no_finite_number_is_refused(name, flag, value):
    with pytest.raises(InputError, match=f"--{flag.replace('_', '-')}"):
        methods.setting(name, {flag: value})


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize(
    "name, flag, text",
    [
        ("adapter", "adapter_scaling", "{}"),
        ("compacter", "compacter_scaling", "{}"),
        ("lora", "lora_alpha_pattern", "fc1={}"),
        ("dora", "lora_alpha_pattern", "fc1={}"),
    ],
)
def test_nor_is_one_within_a_text(build, name, flag, text, value):
    with pytest.raises(InputError, match=f"--{flag.replace('_', '-')}"):
        build(name, **{flag: text.format(value)})


def test_a_combination_starts_each_part_as_it_starts_alone(build):
    """Each method draws from its own stream, and the order of the names does not matter."""
    alone, first, second = build("lora"), build("lora,prompt"), build("prompt+lora")
    assert first.setting.name == second.setting.name == "lora+prompt"
    for model in (first, second):
        state = model.state_dict()
        assert all(torch.equal(alone.state_dict()[key], state[key]) for key in alone.added)
    assert list(first.state_dict()) == list(second.state_dict())

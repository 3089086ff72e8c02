"""LoRA: targets and knobs."""

from __future__ import annotations

import pytest

LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
SETTINGS = [("lora", {"peft_targets": target, "lora_rank": 3}) for target in LINEARS]


@pytest.mark.parametrize("targets", ["query", "q_proj,value", "", " , "])
def test_targets_that_match_nothing_are_refused(build, targets):
    with pytest.raises(
        ValueError, match="matches no module. Modules here: q_proj.*Try q_proj,v_proj"
    ):
        build("lora", peft_targets=targets)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"lora_rank": 0}, "--lora-rank 0"),
        ({"lora_dropout": 1.0}, "--lora-dropout 1.0"),
        ({"lora_alpha": 0.0}, "--lora-alpha 0.0"),
    ],
)
def test_bad_knobs_are_refused(build, given, message):
    with pytest.raises(ValueError) as error:
        build("lora", **given)
    assert message in str(error.value)

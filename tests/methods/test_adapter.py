"""Bottleneck adapters: placements and knobs."""

from __future__ import annotations

import pytest

SETTINGS = [
    ("adapter", {"adapter_placement": p, "adapter_bottleneck": 5}) for p in ("attention", "both")
]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"adapter_bottleneck": 0}, "--adapter-bottleneck 0"),
        ({"adapter_placement": "middle"}, "--adapter-placement 'middle'"),
        ({"lora_rank": 4}, "--lora-rank would be ignored: --peft adapter"),
    ],
)
def test_bad_knobs_are_refused(build, given, message):
    with pytest.raises(ValueError) as error:
        build("adapter", **given)
    assert message in str(error.value)

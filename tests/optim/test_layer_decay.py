"""``--layer-lr-decay``: learning rates that fall from the last layer to the first."""

from __future__ import annotations

import pytest

from fairseq_peft.errors import InputError
from fairseq_peft.models.roberta import FAMILY
from fairseq_peft.optim import layer_decay


def scales(model):
    return {name: getattr(p, "lr_scale", 1.0) for name, p in model.named_parameters()}


def test_each_layer_has_a_factor_of_the_one_above(build):
    model = build("full", layer_lr_decay=0.5)
    for name, scale in scales(model).items():
        if ".layers.1." in name or "classification_heads" in name or "lm_head.d" in name:
            assert scale == 1.0, name
        elif ".layers.0." in name:
            assert scale == 0.5, name
        elif "embed" in name:
            assert scale == 0.25, name


def test_it_multiplies_what_a_method_asks_for(build):
    found = scales(build("lora", lora_lr_ratio=16.0, layer_lr_decay=0.5))
    of_b = {name: scale for name, scale in found.items() if name.endswith("lora_B")}
    assert {16.0 if ".layers.1." in name else 8.0 for name in of_b} == set(of_b.values())
    assert {scale for name, scale in of_b.items() if ".layers.0." in name} == {8.0}


def test_without_it_there_is_one_rate(build):
    assert set(scales(build("full")).values()) == {1.0}
    assert set(scales(build("full", layer_lr_decay=1.0)).values()) == {1.0}


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.5])
def test_other_numbers_are_refused(build, decay):
    with pytest.raises(InputError, match=f"--layer-lr-decay {decay} is not in"):
        layer_decay.decay_learning_rates(build("full"), FAMILY, decay)

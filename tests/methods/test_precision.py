"""``--precision``: the layers compute in the type that was asked for, weights stay in fp32."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, parametrize
from products import Products
from settings import collect

from fairseq_peft.injection import surgery

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
every_precision = pytest.mark.parametrize("precision", TYPES)
every_setting = parametrize(collect())


@pytest.fixture(params=FAMILIES)
def family(request, dictionary):
    return FAMILIES[request.param](dictionary)


@every_setting
@every_precision
def test_projections_return_the_type_that_was_asked_for(family, batch, peft, given, precision):
    """Every linear map of every layer, with whatever a method has put around it."""
    model = family.build(peft, **{**given, "precision": precision})
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    found = {}

    def note(name):
        return lambda module, inputs, output: found.update({name: output.dtype})

    maps = surgery.linears(model, family.family)
    for name, linear in maps.items():
        linear.register_forward_hook(note(name))
    for mode in (model.eval, model.train):
        mode()
        found.clear()
        scores = family.scores(model, batch)
        assert found == dict.fromkeys(maps, TYPES[precision]), mode.__name__
        assert scores.dtype == torch.float32  # heads, losses and metrics


@every_precision
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("peft", ["layer_norm", "lora", "adapter"])
def test_products_are_computed_in_that_type(family, batch, peft, precision, train):
    """Not only returned in it: in bf16, no product over all tokens is in fp32."""
    model = family.build(peft, precision=precision).train(train)
    with Products() as products, torch.set_grad_enabled(train):
        family.scores(model, batch)
    num_maps = len(surgery.linears(model, family.family))
    assert products.count[TYPES[precision]] >= num_maps
    if precision == "fp32":
        assert set(products.count) == {torch.float32}
    else:  # the head's, of a row each
        assert products.largest[torch.bfloat16] >= batch.numel()
        assert products.largest[torch.float32] <= len(batch)

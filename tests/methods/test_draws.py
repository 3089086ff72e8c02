"""What methods draw: other numbers at every seed, and other numbers in every layer and map."""

from __future__ import annotations

import itertools

import pytest
import torch
from families import FAMILIES
from settings import collect, identifier, parametrize

from fairseq_peft import methods
from fairseq_peft.models.options import METHOD_FIELDS

#: Methods that draw nothing -> why.
NOTHING_DRAWN = {
    "bitfit": "trains biases of the base",
    "full": "trains the base",
    "head_only": "trains the head alone",
    "ia3": "starts at ones",
    "last_layers": "trains layers of the base",
    "layer_norm": "trains norms of the base",
}
#: Part of the name of a tensor that is not all one number and yet not drawn -> what it is.
COMPUTED = {
    "lora_magnitude": "the norms of the base's rows",
    "adapter.value.weight": "the identity, which AdapterFusion starts as",
}
#: Starts that take A and B from the base's weight.
FROM_WEIGHT = ("pissa", "olora")


def draws(peft, given):
    names = peft.split(",")
    return not NOTHING_DRAWN.keys() >= set(names) and given.get("lora_init") not in FROM_WEIGHT


every_setting_that_draws = parametrize([setting for setting in collect() if draws(*setting)])


@pytest.fixture(scope="module", params=FAMILIES)
def drawn(request, dictionary):
    """``drawn("lora", {}, seed=1)``: name -> tensor, for what comes from random numbers of all
    that the methods have added to one and the same base. Computed once; ``again`` draws anew."""
    family = FAMILIES[request.param](dictionary)
    bases, known = {}, {}

    def compute(peft, given, seed):
        plain = {flag: value for flag, value in given.items() if flag not in METHOD_FIELDS}
        key = str(plain)
        if key not in bases:
            bases[key] = family.build("full", seed=11, head=False, **plain).state_dict()
        model = family.build(peft, seed=seed, **given)
        model.load_state_dict({name: tensor.clone() for name, tensor in bases[key].items()})
        return {
            name: tensor
            for name, tensor in model.state_dict().items()
            if name in model.added
            and tensor.numel() > 1
            and tensor.float().std() > 0
            and not any(part in name for part in COMPUTED)
        }

    def look(peft, given, seed=1):
        key = (identifier(peft, given), seed)
        if key not in known:
            known[key] = compute(peft, given, seed)
        return known[key]

    look.again = compute
    return look


@every_setting_that_draws
def test_another_seed_draws_other_numbers(drawn, peft, given):
    one, other = (drawn(peft, given, seed) for seed in (1, 2))
    same = drawn.again(peft, given, 1)
    assert one and one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, same[name]), f"{name} is another at the same seed"
        assert not torch.equal(tensor, other[name]), f"{name} is the same at every seed"


@every_setting_that_draws
def test_every_layer_and_every_map_has_numbers_of_its_own(drawn, peft, given):
    found = drawn(peft, given)
    assert found
    for (one, a), (other, b) in itertools.combinations(found.items(), 2):
        assert a.shape != b.shape or not torch.equal(a, b), f"{one} and {other} are the same"


@pytest.mark.parametrize("mlp", [0, 6])
def test_the_prefix_of_every_layer_is_its_own(build, mlp):
    """One tensor holds those of all layers."""
    model = build("prefix", prefix_mlp=mlp)
    parts = list(itertools.chain(*model.encoder.sentence_encoder.prefix(4)))
    assert len(parts) == 2 * len(model.encoder.sentence_encoder.layers)
    for one, other in itertools.combinations(parts, 2):
        assert not torch.equal(one, other)


@pytest.mark.parametrize(
    "drawn, name",
    [(f, name) for f in FAMILIES for name in methods.available() if FAMILIES[f].takes(name)],
    indirect=["drawn"],
)
def test_a_method_draws_or_is_listed(drawn, name):
    assert (drawn(name, {}) == {}) == (name in NOTHING_DRAWN)

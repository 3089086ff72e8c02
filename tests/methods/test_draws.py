"""What methods draw: other numbers at every seed, and other numbers in every layer and map."""

from __future__ import annotations

import itertools

import pytest
import torch
from families import FAMILIES, parametrize
from settings import collect, identifier

from fairseq_peft.models.options import METHOD_FIELDS

#: Methods that add no tensor, so that there is nothing to look at.
ADD_NOTHING = {"bitfit", "full", "head_only", "last_layers", "layer_norm"}
#: Methods that draw.
DRAWING = [
    *("adalora", "adapter", "compacter", "dora", "fusion", "lora", "prefix", "prompt", "vera"),
]
#: Part of the name of a tensor that is not all one number and yet not drawn -> what it is.
COMPUTED = {
    "lora_magnitude": "the norms of the base's rows",
    "adapter.value.weight": "the identity, which AdapterFusion starts as",
    "token_ids": "the numbers of named tokens",
}
#: Starts that take A and B from the base's weight.
FROM_WEIGHT = ("pissa", "olora")
#: The end of the name of a number that is drawn, and that VeRA's matrices are drawn from.
SEED = ".seed"

every_setting = parametrize(
    [
        (peft, given)
        for peft, given in collect()
        if not set(peft.split(",")) <= ADD_NOTHING and given.get("lora_init") not in FROM_WEIGHT
    ]
)


def is_drawn(name, tensor):
    """Whether random numbers are in it: it is not all one number, and nothing that is computed."""
    computed = any(part in name for part in COMPUTED)
    return name.endswith(SEED) or (tensor.unique().numel() > 1 and not computed)


@pytest.fixture(params=FAMILIES, scope="module")
def family(request, dictionary):
    return FAMILIES[request.param](dictionary)


@pytest.fixture(scope="module")
def added(family):
    """``added("lora", {}, seed=1)``: name -> tensor, for all that the methods have added to one and
    the same base. Computed once; ``again`` builds anew."""
    bases, known = {}, {}
    plain_buffers = {name for name, _ in family.build("full").named_buffers()}

    def compute(peft, given, seed):
        plain = {flag: value for flag, value in given.items() if flag not in METHOD_FIELDS}
        key = str(plain)
        if key not in bases:
            bases[key] = family.build("full", seed=11, head=False, **plain).state_dict()
        model = family.build(peft, seed=seed, **given)
        model.load_state_dict({name: tensor.clone() for name, tensor in bases[key].items()})
        state = model.state_dict()
        # What VeRA draws is in no state, which holds its seed.
        others = {n: b for n, b in model.named_buffers() if n not in {*state, *plain_buffers}}
        return {**{name: state[name] for name in state if name in model.added}, **others}

    def look(peft, given, seed=1):
        key = (identifier(peft, given), seed)
        if key not in known:
            known[key] = compute(peft, given, seed)
        return known[key]

    look.again = compute
    return look


@every_setting
def test_another_seed_draws_other_numbers_and_changes_nothing_else(family, added, peft, given):
    one, other = (added(peft, given, seed) for seed in (1, 2))
    same = added.again(peft, given, 1)
    assert one and one.keys() == other.keys() == same.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, same[name]), f"{name} is another at the same seed"
        if is_drawn(name, tensor):
            assert not torch.equal(tensor, other[name]), f"{name} is the same at every seed"
        else:
            assert torch.equal(tensor, other[name]), f"{name} depends on the seed"


@every_setting
def test_every_layer_and_every_map_has_numbers_of_its_own(family, added, peft, given):
    """No two tensors hold the same, but for those that start as one number, or as computed."""
    found = added(peft, given)
    assert found
    for (one, a), (other, b) in itertools.combinations(found.items(), 2):
        tied = a.data_ptr() == b.data_ptr()  # one tensor, by its names in encoder and decoder
        if is_drawn(one, a) and is_drawn(other, b) and not tied:
            assert a.shape != b.shape or not torch.equal(a, b), f"{one} and {other} are the same"


@pytest.mark.parametrize("mlp", [0, 6])
def test_the_prefix_of_every_layer_is_its_own(build, mlp):
    """One tensor holds those of all layers."""
    model = build("prefix", prefix_mlp=mlp)
    parts = list(itertools.chain(*model.encoder.sentence_encoder.prefix(4)))
    assert len(parts) == 2 * len(model.encoder.sentence_encoder.layers)
    for one, other in itertools.combinations(parts, 2):
        assert not torch.equal(one, other)


@pytest.mark.parametrize("name", DRAWING)
def test_these_methods_draw(added, name):
    """Else there would be nothing to compare."""
    assert any(is_drawn(*item) for item in added(name, {}).items())

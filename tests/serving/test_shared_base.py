"""Every setting on a base that it shares with others: each row is what its adapter alone says.

Models here are tiny and never trained; ``test_predict_adapters.py`` has real runs.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import adapter_folders
import pytest
import torch
from families import Roberta
from helpers import TOLERANCE
from products import Products
from settings import collect, identifier
from torch import nn

from fairseq_peft.errors import InputError
from fairseq_peft.layers.attention import Attend
from fairseq_peft.models import folder
from fairseq_peft.models.options import METHOD_FIELDS
from fairseq_peft.models.roberta import FAMILY
from fairseq_peft.serving import served
from fairseq_peft.serving.shared_base import SharedBase
from fairseq_peft.sharing.switches import Switch

#: ``full`` is refused: see the test of it.
SETTINGS = {identifier(*setting): setting for setting in collect() if setting[0] != "full"}
#: Two that every setting shares a batch with: both make rows longer, and one moves the text.
OTHERS = {
    "prompt": ("prompt", {"prompt_num_tokens": 3}),
    "prefix": ("prefix", {"prefix_num_tokens": 2, "prefix_positions": "reserved"}),
}


def base_flags(given):
    """The flags that the base is built with: those of no method."""
    return {flag: value for flag, value in given.items() if flag not in METHOD_FIELDS}


@pytest.fixture(scope="module")
def made(dictionary):
    """``made("lora", {...})``: a model that has moved away from a base, and the base's model."""
    kept = {}

    def make(peft, given):
        key = identifier(peft, given)
        if key not in kept:
            plain = Roberta(dictionary).build(seed=11, head=False, **base_flags(given))
            base = {name: value.clone() for name, value in plain.state_dict().items()}
            model = adapter_folders.perturbed(dictionary, base, peft, seed=len(kept), **given)
            kept[key] = model.eval(), plain
        return kept[key]

    return make


def content(model):
    """What an adapter folder holds of a model."""
    tensors, described = folder.content(model, "head", {"path": "base.pt", "sha256": "0"})
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    return SimpleNamespace(tensors=tensors, description=described, folder="folder")


def add(shared, name, model):
    found = content(model)
    shared.add(name, lambda own: served.build(own, found))


def plain_base(made, peft, given):
    return SharedBase(copy.deepcopy(made(peft, given)[1]), FAMILY.root)


def scores(model, tokens):
    with torch.no_grad():
        return model(tokens, features_only=True, classification_head_name="head")[0]


def check_rows(shared, tokens, models, names):
    """Each row is what the model of its name says of it by itself, and no other says the same."""
    expected = {name: scores(models[name], tokens) for name in set(names)}
    for row, (name, found) in enumerate(zip(names, shared.logits(tokens, names))):
        assert torch.allclose(found, expected[name][row], atol=TOLERANCE["fp32"], rtol=0), name
        for other in set(names) - {name}:
            assert (expected[other][row] - found).abs().max() > 1e-3, (name, other)


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_shares_a_base(made, batch, setting):
    """Alone, among others in one batch, and after others went; the base is as it was."""
    peft, given = SETTINGS[setting]
    given_others = {n: (p, {**g, **base_flags(given)}) for n, (p, g) in OTHERS.items()}
    models = {name: made(*other)[0] for name, other in given_others.items()}
    models["own"] = made(peft, given)[0]
    shared = plain_base(made, peft, given)
    before = {name: (t, t.clone()) for name, t in shared.model.state_dict(keep_vars=True).items()}

    add(shared, "own", models["own"])
    check_rows(shared, batch, models, ["own"] * 4)
    for name in OTHERS:
        add(shared, name, models[name])
    check_rows(shared, batch, models, ["own", "prompt", "prefix", "own"])
    check_rows(shared, batch, models, ["prefix", "own", "own", "prompt"])
    shared.remove("prompt")
    check_rows(shared, batch, models, ["own", "prefix", "own", "prefix"])
    shared.remove("own")
    check_rows(shared, batch, models, ["prefix"] * 4)
    add(shared, "own", models["own"])
    check_rows(shared, batch, models, ["prefix", "own", "own", "own"])
    for name in ("own", "prefix"):
        shared.remove(name)

    after = shared.model.state_dict(keep_vars=True)
    assert after.keys() == before.keys()
    assert all(after[name] is t and torch.equal(t, kept) for name, (t, kept) in before.items())
    assert not any(isinstance(module, Switch) for module in shared.model.modules())
    assert not any(module._forward_pre_hooks for module in shared.model.modules())


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("normalize_before", [False, True])
def test_all_settings_in_one_batch(made, batch, normalize_before, at_once):
    """As many adapters at once as there are settings of one base."""
    more = {"encoder_normalize_before": True} if normalize_before else {}
    chosen = {name: s for name, s in SETTINGS.items() if base_flags(s[1]) == more}
    assert len(chosen) > 2
    models = {name: made(*setting)[0] for name, setting in chosen.items()}
    shared = plain_base(made, "full", more)
    shared._switched.batch.at_once = at_once
    for name, model in models.items():
        add(shared, name, model)
    names = list(models)
    found = shared.logits(batch[torch.arange(len(names)) % 4], names)
    for number, name in enumerate(names):
        expected = scores(models[name], batch)[number % 4]
        assert torch.allclose(found[number], expected, atol=TOLERANCE["fp32"], rtol=0), name


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("names", ["abc", "aabbbc", "aaaaaaaaabbbc"], ids=["1", "few", "many"])
def test_adapters_of_several_ranks_and_alphas(made, batch, names, at_once):
    """With as many rows each as make one product of all rows, one of all adapters, or their own."""
    given = ({"lora_rank": 2}, {"lora_rank": 5, "lora_alpha": 40.0}, {"lora_dropout": 0.5})
    models = {name: made("lora", knobs)[0] for name, knobs in zip("abc", given)}
    shared = plain_base(made, "lora", {})
    shared._switched.batch.at_once = at_once
    for name, model in models.items():
        add(shared, name, model)
    check_rows(shared, batch[torch.arange(len(names)) % 4], models, list(names))


def test_a_setting_that_leaves_nothing_of_the_base_is_served_alone(made, batch):
    """Its folder holds a whole model, which a ``Classifier`` refuses beside others."""
    model, _ = made("full", {})
    found = content(model)
    assert found.description["complete"]
    shared = SharedBase(copy.deepcopy(model), FAMILY.root)
    shared.add("whole", lambda own: own.classification_heads["head"])
    check_rows(shared, batch, {"whole": model}, ["whole"] * 4)
    with pytest.raises(InputError, match="holds a whole model, which is no adapter"):
        served.check_shares(found)


class Shifted(nn.Module):
    """What no method does today: something of its own around a module."""

    def __init__(self, inner, size=1.0):
        super().__init__()
        self.inner = inner
        self.register_buffer("shift", size * torch.linspace(-1, 1, 16))

    def forward(self, *inputs, **named):
        return self.inner(*inputs, **named) + self.shift


def around(path, size=1.0):
    def change(model):
        parent, _, child = path.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, child, Shifted(getattr(owner, child), size))

    return change


def moved_positions(model):
    table = model.encoder.sentence_encoder.embed_positions
    table.weight = nn.Parameter(table.weight + torch.linspace(-1, 1, 16))


def hooked(model):
    """A tensor at the root that hooks in all layers read, as a shared frozen projection would."""
    root = model.encoder.sentence_encoder
    root.add_module("common", Shifted(nn.Identity()))
    for layer in root.layers:
        layer.fc2.register_forward_hook(lambda fc2, inputs, y: root.common(y))


def patched(model):
    fc1 = model.encoder.sentence_encoder.layers[1].fc1
    fc1.forward = lambda x: 2 * nn.functional.linear(x, fc1.weight, fc1.bias)


class Louder(Attend):
    def forward(self, *inputs):
        return 100 * super().forward(*inputs)


def louder(model):
    model.encoder.sentence_encoder.layers[1].self_attn.attend.__class__ = Louder


def one_more_layer(model):
    layers = model.encoder.sentence_encoder.layers
    layers.append(copy.deepcopy(layers[0]))


ROOT = "encoder.sentence_encoder"
CHANGES = {
    "embedding": (around(f"{ROOT}.embed_tokens"), True),
    "norm": (around(f"{ROOT}.layers.0.final_layer_norm"), True),
    "hooks": (hooked, True),
    "forward": (patched, True),
    "attend": (louder, True),
    "attention": (around(f"{ROOT}.layers.1.self_attn"), False),
    "layer": (around(f"{ROOT}.layers.0"), False),
    "positions": (moved_positions, False),
    "layers": (one_more_layer, False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_a_method_changes_is_found(build, batch, change):
    """By a switch where rows can be cut, by a pass of its own where they cannot."""
    apply, cut = CHANGES[change]
    model = build(seed=1)
    own = copy.deepcopy(model)
    apply(own)
    shared = SharedBase(model, FAMILY.root)

    def changes(copied):
        apply(copied)
        return copied.classification_heads["head"]

    shared.add("own", changes)
    shared.add("plain", lambda copied: copied.classification_heads["head"])
    assert (shared.adapters["own"].model is None) == cut
    models = {"own": own.eval(), "plain": build(seed=1)}
    check_rows(shared, batch, models, ["own", "plain", "own", "plain"])


@pytest.mark.parametrize("change", ["attention", "layers"])
def test_what_has_a_pass_of_its_own_computes_in_the_precision_of_all(build, batch, change):
    """Whether it came before the precision was set or after."""
    apply, _ = CHANGES[change]
    shared = SharedBase(build(seed=1), FAMILY.root)

    def changes(copied):
        apply(copied)
        return copied.classification_heads["head"]

    shared.add("before", changes)
    for half in shared.halves():
        half.half_dtype = torch.bfloat16
    shared.add("after", changes)
    for name in ("before", "after"):
        assert shared.adapters[name].model is not None
        with Products() as products:
            shared.logits(batch, [name] * len(batch))
        assert products.count[torch.bfloat16] >= 12  # 6 maps in each of 2 layers


def test_a_change_within_anothers_has_a_pass_of_its_own(build, batch):
    """A switch in a switch would meet rows that are cut already."""
    plain = build(seed=1)
    for layer in plain.encoder.sentence_encoder.layers:
        layer.fc2 = nn.Sequential(layer.fc2, nn.Linear(16, 16))
    fc2 = f"{ROOT}.layers.0.fc2"
    places = {"outer": (fc2, 1.0), "inner": (f"{fc2}.0", 2.0), "other": (f"{fc2}.1", 3.0)}
    models = {name: copy.deepcopy(plain).eval() for name in places}
    shared = SharedBase(plain, FAMILY.root)
    for name, place in places.items():
        around(*place)(models[name])

        def changes(model, place=place):
            around(*place)(model)
            return model.classification_heads["head"]

        shared.add(name, changes)
    alone = [name for name, adapter in shared.adapters.items() if adapter.model is not None]
    assert alone == ["inner", "other"]
    check_rows(shared, batch, models, ["outer", "inner", "other", "outer"])

"""A joint pass in which what members have of their own is computed for all of them in one go: each
has what it has by itself, and more members are not more products."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import waits
from helpers import TOLERANCE
from products import Products
from test_members import DROPOUT, check_equal, gradients, joint_of, members, streams
from torch import nn

from fairseq_peft.layers.dropout import dropout
from fairseq_peft.methods.lora import LoRALinear
from fairseq_peft.methods.shared.bottleneck import Bottleneck
from fairseq_peft.sharing.rows import Batch, Piece
from fairseq_peft.sweeps.members import joint as joint_module
from fairseq_peft.sweeps.members.joint import share

LORA = {"peft_targets": "all-linear"}
#: Rows and tokens of three members: of one size; of one number of rows; as a last batch is; and so
#: that a stack would be empty for the most part.
SIZES = {
    "one size": ((3, 9), (3, 9), (3, 9)),
    "lengths": ((3, 9), (3, 5), (3, 12)),
    "rows": ((4, 9), (4, 6), (2, 7)),
    "one of many rows": ((1, 9), (9, 6), (1, 7)),
}


def batches(dictionary, sizes):
    """Tokens of these sizes; the last row of each ends early."""
    draw, made = torch.Generator().manual_seed(4), []
    for size in sizes:
        tokens = torch.randint(4, len(dictionary) - 1, size, generator=draw)
        tokens[:, 0] = dictionary.bos()
        tokens[-1, 4:] = dictionary.pad()
        made.append(tokens)
    return made


def unlike(dictionary, peft="lora", **more):
    """Members of several ranks, alphas and rates of dropout."""
    given = {**DROPOUT, **LORA, **more}
    models = [
        *members(dictionary, peft, {**given, "lora_rank": 2, "lora_dropout": 0.3}, seeds=[1]),
        *members(dictionary, peft, {**given, "lora_rank": 5, "lora_alpha": 3.0}, seeds=[2]),
        *members(dictionary, peft, {**given, "lora_dropout": 0.1, "dropout": 0.4}, seeds=[3]),
    ]
    shared = {}
    for model in models:
        assert share(model, shared) > 0
    return models


@pytest.fixture
def stacked(monkeypatch):
    """The numbers of layers that have been computed in one go."""
    found, beside_each = [], LoRALinear.beside_each

    def seen(layers, *args):
        found.append(len(layers))
        return beside_each(layers, *args)

    monkeypatch.setattr(LoRALinear, "beside_each", staticmethod(seen))
    return found


@pytest.mark.parametrize("size", SIZES)
def test_members_of_several_ranks_alphas_and_rates(dictionary, stacked, size):
    check_equal(unlike(dictionary), batches(dictionary, SIZES[size]), at_once=True)
    assert set(stacked) == (set() if size == "one of many rows" else {3})


@pytest.mark.parametrize("size", SIZES)
def test_members_of_one_rank(dictionary, size):
    models = members(dictionary, "lora", {"lora_dropout": 0.3, **LORA, **DROPOUT})
    check_equal(models, batches(dictionary, SIZES[size]), at_once=True)


@pytest.mark.parametrize("peft", ["lora", "lora,prompt", "lora,prefix"])
def test_in_validation_and_in_bf16(dictionary, peft):
    tokens = batches(dictionary, SIZES["rows"])
    # With these alphas no gradient is larger than 3: the tolerance is for sizes of 1.
    models = unlike(dictionary, peft, precision="bf16", lora_alpha=2.0)
    check_equal(models, tokens, tolerance=TOLERANCE["bf16"], at_once=True)
    check_equal([model.eval() for model in unlike(dictionary, peft)], tokens, at_once=True)


ADAPTERS = {
    "plain": ({}, {"adapter_bottleneck": 5}, {"adapter_dropout": 0.3}),
    "normed": (
        {"adapter_layer_norm": True, "adapter_scaling": "learned"},
        {"adapter_layer_norm": True, "adapter_scaling": "learned", "adapter_bottleneck": 5},
        {"adapter_layer_norm": True, "adapter_scaling": "learned", "adapter_dropout": 0.3},
    ),
    "parallel": (
        {"adapter_style": "parallel"},
        {"adapter_style": "parallel", "adapter_scaling": "0.5"},
        {"adapter_style": "parallel"},
    ),
}


def adapted(dictionary, knobs):
    models, shared = [], {}
    for seed, given in enumerate(knobs, start=1):
        models += members(dictionary, "adapter", {**DROPOUT, **given}, seeds=[seed])
        assert share(models[-1], shared) > 0
    return models


@pytest.fixture
def adapted_at_once(monkeypatch):
    """How many adapters have been computed in one go."""
    found, update_each = [], Bottleneck.update_each

    def seen(layers, z):
        found.append(len(layers))
        return update_each(layers, z)

    monkeypatch.setattr(Bottleneck, "update_each", staticmethod(seen))
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("knobs", ADAPTERS.values(), ids=ADAPTERS)
def test_adapters_of_several_widths_scales_and_rates(dictionary, adapted_at_once, knobs, size):
    models = adapted(dictionary, knobs)
    check_equal(models, batches(dictionary, SIZES[size]), at_once=True)
    assert set(adapted_at_once) == (set() if size == "one of many rows" else {3})


def test_adapters_that_read_or_compute_something_else_are_not_stacked(dictionary, adapted_at_once):
    other = (
        {"adapter_activation": "relu"},
        {"adapter_style": "parallel"},
        {"adapter_scaling": "2"},
    )
    for given in (*other, {"adapter_layer_norm": True}, {"adapter_scaling": "learned"}):
        models = adapted(dictionary, ({}, {}, given))
        check_equal(models, batches(dictionary, SIZES["rows"]), at_once=True)
        assert bool(adapted_at_once) == (given == other[-1])
        adapted_at_once.clear()


def test_attention_that_drops_nothing(dictionary):
    """Behind prefixes of one length it is one call for all."""
    models = members(dictionary, "prefix", {**DROPOUT, "attention_dropout": 0.0})
    check_equal(models, batches(dictionary, SIZES["lengths"]), at_once=True)


def turned(function):
    """``function`` whose lists of members begin with the last one."""
    return lambda first, *args: function([first[-1], *first[:-1]], *args)


@pytest.mark.parametrize("what", ["factors", "adapters", "masks"])
def test_this_test_sees_members_that_change_places(dictionary, monkeypatch, what):
    models, tokens = unlike(dictionary), batches(dictionary, SIZES["one size"])
    if what == "adapters":
        models = adapted(dictionary, ADAPTERS["plain"])
        monkeypatch.setattr(Bottleneck, "update_each", staticmethod(turned(Bottleneck.update_each)))
    elif what == "factors":
        monkeypatch.setattr(LoRALinear, "beside_each", staticmethod(turned(LoRALinear.beside_each)))
    else:
        monkeypatch.setattr(joint_module, "Piece", lambda m, *rest: Piece(m, *rest[:2], _other(m)))
    with pytest.raises(AssertionError):
        check_equal(models, tokens, at_once=True)


def _other(member):
    """The stream of the next one."""
    return streams()[(member + 1) % 3]


def test_not_finite_numbers_stay_with_their_member(dictionary):
    models, tokens = unlike(dictionary), batches(dictionary, SIZES["rows"])
    with torch.no_grad():
        models[1].encoder.sentence_encoder.layers[0].fc1.lora_B[0, 0] = torch.inf
    scores = joint_of(models, at_once=True)(tokens, streams(), "head")
    assert [bool(each.isfinite().all()) for each in scores] == [True, False, True]
    assert all(g.isfinite().all() for g in gradients(models[0], scores[0]).values())


def products(dictionary, monkeypatch, number, peft="lora", **more):
    """Matrix products of a joint pass, forward and backward, without the heads."""
    monkeypatch.setattr(joint_module.heads, "scores", lambda head, x, text: x[:, 0])
    knobs = {"lora": {"lora_dropout": 0.3, **LORA}, "adapter": {"adapter_dropout": 0.3}}
    models = members(dictionary, peft, {**knobs[peft], **DROPOUT, **more}, seeds=range(number))
    tokens = batches(dictionary, [(3, 9 + n % 2) for n in range(number)])
    found = []
    for at_once in (True, False):
        with Products() as seen:
            scores = joint_of(models, at_once)(tokens, streams(range(number)), "head")
            sum(own.square().sum() for own in scores).backward()
        found.append(seen.count.total())
    return found


@pytest.mark.parametrize("peft", ["lora", "adapter"])
def test_more_members_are_not_more_products(dictionary, monkeypatch, peft):
    """All that is left by member is attention that drops, which draws within itself."""
    quiet = {"attention_dropout": 0.0}
    (two, two_by_member), (eight, eight_by_member) = (
        products(dictionary, monkeypatch, number, peft, **quiet) for number in (2, 8)
    )
    assert two == eight < two_by_member < eight_by_member
    two, eight = (products(dictionary, monkeypatch, number, peft)[0] for number in (2, 8))
    # Two products forward and four backward; below the first adapter there is no backward.
    attention = {"lora": 2 * 2 + 2 * 4, "adapter": 2 * 2 + 1 * 4}
    assert eight - two == 6 * attention[peft]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("drop", [dropout, F.dropout])
@pytest.mark.parametrize("rates", [(0.3, 0.3, 0.3), (0.3, 0.0, 0.45), (0.0, 0.0, 0.0)])
def test_dropout_draws_what_each_member_draws(dtype, drop, rates):
    """On its own length. In bf16 nothing is scaled by a rounded factor."""
    batch, start = Batch(), 0
    for number, (rows, length) in enumerate(SIZES["rows"]):
        own = streams([number])[0]
        batch.append(Piece(number, slice(start, start + rows), length, own))
        start += rows
    x = torch.randn(start, 9, 50, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = batch.cut(batch.dropped(x, rates, drop))
    for number, (own, rate, piece) in enumerate(zip(batch.cut(x), rates, batch)):
        torch.manual_seed(number)
        kept = drop(torch.ones_like(own), rate) > 0
        torch.testing.assert_close(found[number], (own * kept / (1 - rate)), rtol=0.008, atol=0)
        assert torch.equal(found[number] != 0, kept)
        ended = streams([number])[0]
        ended.__enter__(), drop(torch.ones_like(own), rate), ended.__exit__()
        assert piece.stream.same(ended)


def put_there(joint):
    """The models of a joint pass on the device that stands for a GPU, sharing what they share."""
    kept, there = [], {}
    for model in (*joint.models, joint.switched.model):
        for module in model.modules():
            for own in (module._parameters, module._buffers):
                for name, tensor in own.items():
                    if tensor is not None and id(tensor) not in there:
                        kept.append(tensor)  # so that no other gets its id
                        new = tensor.detach().to(waits.DEVICE).requires_grad_(tensor.requires_grad)
                        trains = isinstance(tensor, nn.Parameter)
                        there[id(tensor)] = nn.Parameter(new, new.requires_grad) if trains else new
                    own[name] = there.get(id(tensor))
    return joint


@pytest.mark.parametrize("size", ["one size", "rows"])
def test_a_gpu_computes_at_once_and_is_not_waited_for(dictionary, monkeypatch, stacked, size):
    """By default; the first pass also copies scales and places of rows, which are kept."""
    waits.make_like_a_gpu(monkeypatch)
    joint = put_there(joint_of(unlike(dictionary)))
    tokens = [each.to(waits.DEVICE) for each in batches(dictionary, SIZES[size])]
    for _ in range(2):
        with waits.Waits() as found:
            scores = joint(tokens, streams(), "head")
            torch.autograd.backward(scores, list(map(torch.ones_like, scores)))
    assert found.ours == {}
    assert set(stacked) == {3}


def test_a_cpu_computes_by_member(dictionary, stacked):
    """By default: there it is no slower."""
    models, tokens = unlike(dictionary), batches(dictionary, SIZES["rows"])
    joint_of(models)(tokens, streams(), "head")
    assert not stacked

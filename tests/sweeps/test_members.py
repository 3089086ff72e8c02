"""The joint forward pass of several members is that of each alone, with every method."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from families import Roberta
from helpers import TOLERANCE
from settings import collect, parametrize

from fairseq_peft.methods.lora import LoRALinear
from fairseq_peft.sweeps.members import forward
from fairseq_peft.sweeps.members.forward import JointForward
from fairseq_peft.sweeps.members.rows import Rows, Stream, each

DROPOUT = {"dropout": 0.2, "attention_dropout": 0.3, "activation_dropout": 0.1}
DROPOUT["pooler_dropout"] = 0.2
CPU = torch.device("cpu")


def members(dictionary, peft, given, seeds=(1, 2, 3), train=True):
    """Models whose trained tensors differ and whose equal frozen ones share memory."""
    family = Roberta(dictionary)
    base = family.build(seed=9).state_dict()
    models = []
    for seed in seeds:
        model = family.build(peft, seed=seed, **given)
        with torch.no_grad():
            draw = torch.Generator().manual_seed(seed)
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
                elif name in base:
                    parameter.data = base[name]
        models.append(model.train(train))
    return models


def batches(dictionary, count=3):
    """(B, T) of several sizes, with padding at the right."""
    draw = torch.Generator().manual_seed(4)
    made = []
    for index in range(count):
        tokens = torch.randint(4, len(dictionary) - 1, (2 + index, 6 + 3 * index), generator=draw)
        tokens[:, 0] = dictionary.bos()
        tokens[-1, 4:] = dictionary.pad()
        made.append(tokens)
    return made


def streams(seeds=(1, 2, 3)):
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        found.append(Stream(CPU))
    return found


def gradients(model, scores):
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return dict(
        zip(
            trained, torch.autograd.grad(scores.square().sum(), trained.values(), allow_unused=True)
        )
    )


def alone(model, tokens, stream):
    """Scores and gradients of one member by its own pass, with its own random numbers."""
    with stream:
        scores, _ = model(tokens, features_only=True, classification_head_name="head")
    return scores, gradients(model, scores) if model.training else {}


def largest_difference(one, other):
    assert one.keys() == other.keys()
    pairs = [(one[name], other[name]) for name in one if one[name] is not None]
    assert all(other[name] is None for name in one if one[name] is None)
    return max(((a - b).abs().max().item() for a, b in pairs), default=0.0)


def check_equal(models, tokens, seeds=(1, 2, 3), tolerance=TOLERANCE["fp32"]):
    expected = [alone(*parts) for parts in zip(models, tokens, streams(seeds))]
    ended = streams(seeds)
    scores = JointForward(models)(tokens, ended, "head")
    for model, score, (own_score, own_gradients), stream, own_stream in zip(
        models, scores, expected, ended, own_streams(models, tokens, seeds)
    ):
        assert (score - own_score).abs().max() < tolerance
        if model.training:
            found = gradients_kept(model, score)
            assert largest_difference(found, own_gradients) < tolerance
            assert stream.same(own_stream)


def own_streams(models, tokens, seeds):
    """Where the members' random numbers are after passes of their own."""
    ended = streams(seeds)
    for model, batch, stream in zip(models, tokens, ended):
        with torch.no_grad():
            alone_forward(model, batch, stream)
    return ended


def alone_forward(model, tokens, stream):
    with stream:
        model(tokens, features_only=True, classification_head_name="head")


def gradients_kept(model, scores):
    """As ``gradients``, but the graph stays for the other members."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(
        scores.square().sum(), trained.values(), allow_unused=True, retain_graph=True
    )
    return dict(zip(trained, found))


@parametrize(collect())
def test_joint_pass_is_that_of_each_member(dictionary, peft, given):
    """Scores, gradients and random numbers, with every kind of dropout on."""
    check_equal(members(dictionary, peft, {**given, **DROPOUT}), batches(dictionary))


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("pooler", ["mean", "max"])
@pytest.mark.parametrize("peft", ["lora", "head_only", "adapter", "prompt", "prefix"])
def test_joint_pass_with_a_pooler(dictionary, peft, pooler, train):
    models = members(dictionary, peft, {"pooler": pooler, **DROPOUT}, train=train)
    check_equal(models, batches(dictionary))


@pytest.mark.parametrize("order", [1, -1])
def test_members_of_several_poolers(dictionary, order):
    """Of one batch, too: each head reads its own. (Those of <s> alone have passes of their own.)"""
    poolers = ("mean", "max", "max")[::order]
    models = members(dictionary, "lora", {}, train=False)
    for model, pooler in zip(models, poolers):
        model.classification_heads["head"].pooler = pooler
    tokens = batches(dictionary, 1)[0]
    check_equal(models, [tokens] * 3)


@pytest.mark.parametrize("peft", ["lora", "adapter", "prompt", "prefix"])
def test_joint_pass_in_bf16(dictionary, peft):
    models = members(dictionary, peft, {"precision": "bf16", **DROPOUT})
    check_equal(models, batches(dictionary), tolerance=TOLERANCE["bf16"])


@pytest.mark.parametrize(
    "peft", ["lora", "head_only", "adapter", "prompt", "prefix", "last_layers"]
)
def test_same_batch_in_validation(dictionary, peft):
    tokens = batches(dictionary, 1)[0]
    models = members(dictionary, peft, {}, train=False)
    check_equal(models, [tokens, tokens.clone(), batches(dictionary)[1]])


@pytest.mark.parametrize("peft", ["lora", "head_only", "adapter", "last_layers"])
def test_same_batch_and_seed_in_training(dictionary, peft):
    """Members that differ in a learning rate alone draw the same dropout, once, until they part."""
    tokens = batches(dictionary, 1)[0]
    models = members(dictionary, peft, DROPOUT)
    check_equal(models, [tokens, tokens.clone(), tokens.clone()], seeds=(1, 1, 2))


def test_members_of_several_ranks_and_methods(dictionary):
    models = [
        *members(dictionary, "lora", {"lora_rank": 2, "lora_dropout": 0.3, **DROPOUT}, seeds=[1]),
        *members(dictionary, "lora", {"lora_rank": 5, **DROPOUT}, seeds=[2]),
        *members(dictionary, "adapter", DROPOUT, seeds=[3]),
    ]
    base = dict(models[0].named_parameters())
    for model in models[1:]:
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                parameter.data = base[name].data
    check_equal(models, batches(dictionary))


def test_the_base_product_beside_an_update_is_shared(dictionary, monkeypatch):
    """For a map that has ``beside``, F.linear sees the frozen weight once."""

    def beside(self, y, x):
        return y + self.scale * F.linear(F.dropout(x, self.dropout, self.training), self.delta_of())

    monkeypatch.setattr(LoRALinear, "beside", beside, raising=False)
    monkeypatch.setattr(
        LoRALinear, "delta_of", lambda self: self.lora_B @ self.lora_A, raising=False
    )
    models = members(dictionary, "lora", DROPOUT)
    check_equal(models, batches(dictionary))
    layer = JointForward(models).layers[0]
    assert layer.stacks["q"].beside and layer.stacks["k"].shared


def test_what_is_shared_is_computed_once(dictionary, monkeypatch):
    """In validation, head-only members run the encoder once for all."""
    tokens = batches(dictionary, 1)[0]
    models = members(dictionary, "head_only", {}, train=False)
    rows = []
    linear = forward.Stack.__call__

    def counted(self, x, streams):
        rows.append(len(x.x))
        return linear(self, x, streams)

    monkeypatch.setattr(forward.Stack, "__call__", counted)
    JointForward(models)([tokens, tokens, tokens], streams(), "head")
    assert max(rows) == tokens.numel()
    rows.clear()
    JointForward(models)([tokens, tokens, tokens.flip(0)], streams(), "head")
    assert max(rows) == 2 * tokens.numel()


def test_this_test_sees_rows_that_change_places(dictionary, monkeypatch):
    models = members(dictionary, "lora", {})
    monkeypatch.setattr(Rows, "part", lambda self, member, own=Rows.part: own(self, 0))
    with pytest.raises((AssertionError, RuntimeError)):
        check_equal(models, batches(dictionary))


def test_streams_part_where_rows_do():
    one = streams([5])[0]
    shared = [one, one]
    x = Rows.join([torch.ones(1, 3, 1)], [0, 0])
    same = each(lambda m, x: torch.rand(x.shape), x, streams=shared)
    assert same.of == [0, 0] and shared[0] is shared[1]
    apart = each(lambda m, x: torch.rand(x.shape), x, own=True, streams=shared)
    assert apart.of == [0, 1] and shared[0] is not shared[1]
    assert torch.equal(apart.part(0), apart.part(1))  # from the same place, each by itself

"""The joint forward pass of several members is that of each alone, with every method."""

from __future__ import annotations

import pytest
import torch
from families import Roberta
from helpers import TOLERANCE
from settings import collect, parametrize

from fairseq_peft.models.encoder import EncoderLayer
from fairseq_peft.models.kept_features import KeptFeatures
from fairseq_peft.sharing import switches
from fairseq_peft.sharing.rows import Batch, Stream
from fairseq_peft.sweeps.members.joint import Joint, share

DROPOUT = {"dropout": 0.2, "attention_dropout": 0.3, "activation_dropout": 0.1}
DROPOUT["pooler_dropout"] = 0.2
CPU = torch.device("cpu")


def members(dictionary, peft, given, seeds=(1, 2, 3), train=True):
    """Models whose trained tensors differ and whose equal frozen ones are shared."""
    family = Roberta(dictionary)
    base = family.build(seed=9).state_dict()
    models, shared = [], {}
    for seed in seeds:
        model = family.build(peft, seed=seed, **given)
        with torch.no_grad():
            draw = torch.Generator().manual_seed(seed)
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
                elif name in base:
                    parameter.copy_(base[name])
        share(model, shared)
        models.append(model.train(train))
    return models


def joint_of(models, at_once=None):
    joint = Joint(models, models[0].training, at_once)
    assert joint.possible
    return joint


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


def check_equal(models, tokens, seeds=(1, 2, 3), tolerance=TOLERANCE["fp32"], at_once=None):
    expected = [alone(*parts) for parts in zip(models, tokens, streams(seeds))]
    ended = streams(seeds)
    scores = joint_of(models, at_once)(tokens, ended, "head")
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


@pytest.mark.parametrize("at_once", [False, True], ids=["by_member", "at_once"])
@parametrize([setting for setting in collect() if setting[0] != "full"])
def test_joint_pass_is_that_of_each_member(dictionary, peft, given, at_once):
    """Scores, gradients and random numbers, with every kind of dropout on."""
    models = members(dictionary, peft, {**given, **DROPOUT})
    check_equal(models, batches(dictionary), at_once=at_once)


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
    shared = {}
    for model in models:
        assert share(model, shared) > 0
    check_equal(models, batches(dictionary))


def test_members_of_other_places(dictionary):
    """What one has, another lacks: an adapter in one place, none, a prompt, a prefix."""
    models = [
        *members(dictionary, "adapter", {"adapter_placement": "both", **DROPOUT}, seeds=[1]),
        *members(dictionary, "head_only", DROPOUT, seeds=[2]),
        *members(dictionary, "prompt,lora", {"peft_targets": "fc2", **DROPOUT}, seeds=[3]),
        *members(dictionary, "prefix", DROPOUT, seeds=[4]),
        *members(dictionary, "compacter", {"compacter_placement": "attention"}, seeds=[5]),
    ]
    shared = {}
    for model in models:
        assert share(model, shared) > 0
    for order in (models, models[::-1]):
        check_equal(order, batches(dictionary, 5), seeds=range(5))


def rows_seen(joint, path, action):
    """How many rows each call of a module of the joint model has while ``action`` runs."""
    seen = []
    module = joint.switched.encoder.get_submodule(path)
    hook = module.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    action()
    hook.remove()
    return seen


def test_the_base_product_beside_an_update_is_shared(dictionary, monkeypatch):
    """F.linear sees the frozen weight once, with the rows of all."""
    models = members(dictionary, "lora", DROPOUT)
    joint = joint_of(models)
    weight = models[0].encoder.sentence_encoder.layers[0].self_attn.q_proj.weight
    seen, linear = [], switches.F.linear

    def watched(x, w, *bias):
        if w is weight:
            seen.append(len(x))
        return linear(x, w, *bias)

    monkeypatch.setattr(switches.F, "linear", watched)
    tokens = batches(dictionary)
    joint(tokens, streams(), "head")
    assert seen == [sum(map(len, tokens))]


def test_what_is_shared_is_computed_once(dictionary):
    """In validation, members that train their heads alone run the encoder once for all; others do
    so up to the first layer that differs."""
    tokens = batches(dictionary, 1)[0]
    alone, joint = len(tokens), joint_of(members(dictionary, "head_only", {}, train=False))
    assert joint.num_common == 2
    for given, rows in (([tokens] * 3, 1), ([tokens, tokens, tokens.flip(0)], 2)):
        for path in ("layers.0.fc1", "layers.1.fc1"):
            seen = rows_seen(joint, path, lambda given=given: joint(given, streams(), "head"))
            assert seen == [rows * alone]
    joint = joint_of(members(dictionary, "last_layers", {}, train=False))
    assert joint.num_common == 1
    for path, rows in (("layers.0.fc1", 1), ("layers.1.dropout_module", 3)):
        assert rows_seen(joint, path, lambda: joint([tokens] * 3, streams(), "head"))[0] == (
            rows * alone
        )
    assert joint_of(members(dictionary, "prompt", {}, train=False)).num_common == -1


def test_this_test_sees_rows_that_change_places(dictionary, monkeypatch):
    models = members(dictionary, "lora", {})
    monkeypatch.setattr(Batch, "cut", lambda self, x: [x[: p.num_rows, : p.length] for p in self])
    with pytest.raises((AssertionError, RuntimeError)):
        check_equal(models, batches(dictionary))


def test_models_that_no_switch_fits_are_not_joint(dictionary):
    """Prefixes that move the text by other numbers of positions; an attention of another kind; all
    tensors, among them a table of positions that is read and not called."""
    given = {"prefix_positions": "reserved"}
    models = [
        *members(dictionary, "prefix", {"prefix_num_tokens": 2, **given}, seeds=[1]),
        *members(dictionary, "prefix", {"prefix_num_tokens": 3, **given}, seeds=[2]),
    ]
    assert not Joint(models, True).possible
    models = members(dictionary, "lora", {})
    attention = models[1].encoder.sentence_encoder.layers[0].self_attn
    attention.__class__ = type("Other", (type(attention),), {})
    assert not Joint(models, True).possible
    assert not Joint(members(dictionary, "full", {}), True).possible


@pytest.mark.parametrize(("peft", "depth"), [("head_only", 2), ("last_layers", 1)])
def test_what_members_share_is_computed_once_for_all_validations(
    dictionary, batch, monkeypatch, peft, depth
):
    """In training it is not: there dropout draws, though the joint model is in eval mode."""
    models = members(dictionary, peft, DROPOUT, train=False)
    kept = KeptFeatures(10**6)
    for model in models:
        model.keep_features(kept)
    joint, computed, forward = joint_of(models), [], EncoderLayer.forward
    expected = joint([batch] * 3, streams(), "head")

    def counted(layer, *args, **kwargs):
        computed.append(layer)
        return forward(layer, *args, **kwargs)

    monkeypatch.setattr(EncoderLayer, "forward", counted)
    found = joint([batch] * 3, streams(), "head")
    assert len(computed) == 2 - depth
    assert all(torch.equal(score, own) for score, own in zip(found, expected))
    # One member by itself has what another one has computed.
    for model in models[:2]:
        computed.clear()
        alone_forward(model, batch, streams()[0])
    assert len(computed) == 2 - depth

    before = kept.num_bytes
    check_equal([model.train() for model in models], [batch] * 3)
    assert kept.num_bytes == before

"""An error belongs to one member: the others compute what they would without it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers import TOLERANCE
from test_members import DROPOUT, alone, batches, largest_difference, members, streams

from fairseq_peft.sweeps.members import joint, passes
from fairseq_peft.sweeps.members.group import Group
from fairseq_peft.sweeps.members.joint import Joint, share
from fairseq_peft.sweeps.members.task import Asking, Backward, Forward
from fairseq_peft.sweeps.members.turns import Turn
from fairseq_peft.sweeps.members.waves import waves


def raises(*unused):
    raise RuntimeError("shapes do not fit")


def first_map(model):
    return model.encoder.sentence_encoder.layers[0].self_attn.q_proj


def requests_of(models, tokens):
    return [Forward(m, t, "head", s, True) for m, t, s in zip(models, tokens, streams())]


def added_gradients(request):
    """What the backward pass has added to the gradients, which were one before."""
    return {n: p.grad - 1 for n, p in request.model.named_parameters() if p.requires_grad}


def ones_for_gradients(models):
    for model in models:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None


@pytest.fixture
def three(dictionary):
    """Models, batches, and what each member computes by itself."""
    models, tokens = members(dictionary, "lora", DROPOUT), batches(dictionary)
    return models, tokens, [alone(*parts) for parts in zip(models, tokens, streams())]


def check(request, expected):
    """The scores, random numbers and gradients of a member are those of its own pass."""
    scores, own = expected
    assert torch.allclose(request.scores, scores, atol=TOLERANCE["fp32"])
    own = {name: 0 * p if own[name] is None else own[name] for name, p in named(request.model)}
    assert largest_difference(added_gradients(request), own) < TOLERANCE["fp32"]


def named(model):
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad]


def backward(requests):
    for request in requests:
        (request.scores.grad,) = torch.autograd.grad(request.scores.square().sum(), request.scores)
    return passes.backward(requests)


def test_a_joint_pass_has_no_errors(three):
    models, tokens, expected = three
    requests, one = requests_of(models, tokens), Joint(models, True)
    ones_for_gradients(models)
    assert passes.forward(requests, one) == [None] * 3
    assert all(request.joint for request in requests) and one.possible
    assert backward(requests) == [None] * 3
    for request, own in zip(requests, expected):
        check(request, own)


def stepped(models, tokens, one):
    """What trains after a pass and a step of torch's fused AdamW, joint or one by one."""
    requests = requests_of(models, tokens)
    assert passes.forward(requests, one) == backward(requests) == [None] * 3
    assert all(request.joint == (one is not None) for request in requests)
    trained = dict.fromkeys(p for model in models for _, p in named(model))
    torch.optim.AdamW(trained, lr=0.1, eps=1.0, fused=True).step()
    return list(trained)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize(
    ("peft", "more"),
    [("compacter", [{}] * 3), ("lora", [{"peft_targets": "embed_tokens"}] * 3)]
    + [("lora", [{"lora_rank": rank} for rank in ranks]) for ranks in ((4, 4, 4), (4, 2, 3))],
)
def test_a_fused_step_after_a_joint_pass(dictionary, peft, more, at_once):
    """It takes numbers of gradients in the order of memory, whatever their strides say."""
    tokens, found = batches(dictionary), []
    for joint_too in (False, True):
        models, shared = [], {}
        for seed, given in enumerate(more):
            models += members(dictionary, peft, {**given, **DROPOUT}, seeds=[seed])
            share(models[-1], shared)
        found.append(stepped(models, tokens, Joint(models, True, at_once) if joint_too else None))
    for own, together in zip(*found):
        assert (own - together).abs().max() < TOLERANCE["fp32"]


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_an_error_in_the_forward_pass(three, bad, caplog):
    models, tokens, expected = three
    requests, one = requests_of(models, tokens), Joint(models, True)
    ones_for_gradients(models)
    first_map(models[bad]).register_forward_hook(raises)
    errors = passes.forward(requests, one)
    assert [bool(error) for error in errors] == [number == bad for number in range(3)]
    assert "shapes do not fit" in str(errors[bad])
    assert "a joint pass of 3 members failed" in caplog.text
    good = [number for number in range(3) if number != bad]
    assert backward([requests[number] for number in good]) == [None, None]
    for number in good:
        check(requests[number], expected[number])


@pytest.mark.parametrize("bad", [0, 2])
def test_an_error_in_the_backward_pass(three, bad):
    """Gradients that were there before are there once."""
    models, tokens, expected = three
    requests = requests_of(models, tokens)
    ones_for_gradients(models)
    first_map(models[bad]).lora_B.register_hook(raises)
    assert passes.forward(requests, Joint(models, True)) == [None] * 3
    errors = backward(requests)
    assert [bool(error) for error in errors] == [number == bad for number in range(3)]
    for number in {0, 1, 2} - {bad}:
        check(requests[number], expected[number])


def test_one_member_that_is_not_finite(three):
    """It is told by its own loss; no number of another is touched."""
    models, tokens, expected = three
    with torch.no_grad():
        first_map(models[1]).lora_B[0, 0] = torch.nan
    requests = requests_of(models, tokens)
    ones_for_gradients(models)
    assert passes.forward(requests, Joint(models, True)) == [None] * 3
    assert requests[1].scores.isnan().any()
    assert backward(requests) == [None] * 3
    for number in (0, 2):
        check(requests[number], expected[number])


def train(turn, model, tokens, steps, losses):
    """A short run that asks as the task of a member does."""
    torch.manual_seed(5)
    for _ in range(steps):
        model.zero_grad()
        scores, _ = Asking(model, turn)(tokens, classification_head_name="head")
        loss = scores.square().sum()
        loss.backward()
        turn.ask(Backward())
        losses.append(loss.item())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad


def run(models, tokens, together, tmp_path, spoil=None):
    """The members' losses, and their turns."""
    group, losses = Group(together), [[] for _ in models]
    with open(tmp_path / "log", "w", encoding="utf-8") as log:
        for number, model in enumerate(models):

            def member(number=number, model=model):
                train(group.turns[number], model, tokens[number], 3, losses[number])

            group.turns.append(Turn(member, [], log))
        if spoil:
            spoil(losses)
        group.run()
    return losses, group.turns


@pytest.mark.parametrize("together", ["always", "auto"])
def test_a_member_that_fails_midway_ends_alone(dictionary, tmp_path, together):
    """Its second pass raises; the others have the losses that they have without it."""

    def made():
        return members(dictionary, "lora", DROPOUT)

    tokens = batches(dictionary)
    expected, _ = run(made(), tokens, "never", tmp_path)
    models = made()

    def spoil(losses):
        first_map(models[1]).register_forward_hook(lambda *unused: raises() if losses[1] else None)

    losses, turns = run(models, tokens, together, tmp_path, spoil)
    assert [len(own) for own in losses] == [3, 1, 3]
    assert [turn.error for turn in turns] == [None, "RuntimeError: shapes do not fit", None]
    assert "shapes do not fit" in (tmp_path / "log").read_text()
    for number in (0, 2):
        assert losses[number] == pytest.approx(expected[number], rel=1e-4)
    assert len(set(expected[0])) == 3


def alike_but_for(dictionary, change, peft="lora"):
    """Three members, around one base; ``change`` is made to the encoder of the second one."""
    models = members(dictionary, peft, dict.fromkeys(DROPOUT, 0.0))
    change(models[1].encoder.sentence_encoder)
    return models


@pytest.mark.parametrize("together", ["always", "auto", "never"])
@pytest.mark.parametrize("peft", ["lora", "head_only"])
@pytest.mark.parametrize(
    "change",
    [
        lambda encoder: setattr(encoder, "half_dtype", torch.bfloat16),
        lambda encoder: setattr(encoder.layers[1], "activation_fn", torch.relu),
        lambda encoder: setattr(encoder.layers[0].final_layer_norm, "eps", 0.5),
    ],
    ids=["precision", "activation", "eps"],
)
def test_each_member_computes_by_its_own_settings(
    dictionary, logits, tmp_path, change, peft, together
):
    """What is no tensor is part of a model, too: its precision, what it computes with."""
    models = alike_but_for(dictionary, change, peft)
    (tokens,) = batches(dictionary, 1)
    expected = [float(logits(model, tokens).square().sum()) for model in models]
    assert expected[1] != pytest.approx(expected[0], rel=1e-4)
    losses, _ = run(models, [tokens] * 3, together, tmp_path)
    assert [own[0] for own in losses] == pytest.approx(expected, rel=1e-5)


def test_members_of_one_precision_stay_together(dictionary):
    """Beside one of another."""
    models = alike_but_for(dictionary, lambda encoder: setattr(encoder, "half_dtype", torch.half))
    (tokens,) = batches(dictionary, 1)
    requests = [Forward(model, tokens, "head", streams()[0], False) for model in models]
    turns = [SimpleNamespace(request=request) for request in requests]
    found = [wave for wave, _ in waves(turns, "always", lambda requests: True)]
    assert found == [[turns[0], turns[2]], [turns[1]]]


def test_models_that_cannot_be_joined_run_one_by_one(dictionary, tmp_path, monkeypatch, caplog):
    tokens = batches(dictionary)
    expected, _ = run(members(dictionary, "lora", DROPOUT), tokens, "never", tmp_path)
    monkeypatch.setattr(joint, "differences", raises)
    losses, turns = run(members(dictionary, "lora", DROPOUT), tokens, "always", tmp_path)
    assert losses == expected and all(turn.error is None for turn in turns)
    assert "a joint pass of 3 members failed (RuntimeError: shapes do not fit)" in caplog.text

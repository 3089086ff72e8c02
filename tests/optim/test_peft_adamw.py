"""AdamW with learning rates by tensor: groups, the schedule, checkpoints, the command line."""

from __future__ import annotations

import copy
import json
import types

import pytest
import torch
from helpers import PACKAGE, TINY_FLAGS, train_flags
from omegaconf import OmegaConf
from torch import nn

pytest.importorskip("fairseq")

from fairseq.optim.lr_scheduler.polynomial_decay_schedule import (  # noqa: E402
    PolynomialDecayLRSchedule,
    PolynomialDecayLRScheduleConfig,
)
from fairseq.optim.lr_scheduler.reduce_lr_on_plateau import (  # noqa: E402
    ReduceLROnPlateauLRSchedule,
    ReduceLROnPlateauLRScheduleConfig,
)

from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.optim.peft_adamw import LossScale, PeftAdamW, check_learning_rates  # noqa: E402
from fairseq_peft.tasks import stock  # noqa: E402


def adamw(parameters, lr=1e-3, weight_decay=0.1):
    cfg = types.SimpleNamespace(
        lr=[lr], weight_decay=weight_decay, adamw_betas="(0.9, 0.999)", adamw_eps=1e-8, amp=False
    )
    return PeftAdamW(cfg, parameters)


def tensors(ratio=16.0):
    """A, B and a vector; B asks for ``ratio`` times the learning rate."""
    torch.manual_seed(0)
    a, b = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.randn(4, 2))
    b.lr_scale = ratio
    return a, b, nn.Parameter(torch.randn(4))


def step(optimizer, parameters):
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def test_groups_are_told_by_scale_and_dimension():
    a, b, vector = tensors()
    wide = nn.Parameter(torch.zeros(3))
    wide.lr_scale = 16.0
    found = [
        (group["params"], group["lr_scale"], group["weight_decay"], group["lr"])
        for group in adamw([b, wide, a, vector]).param_groups
    ]
    assert found == [
        ([a], 1.0, 0.1, 1e-3),
        ([vector], 1.0, 0.0, 1e-3),
        ([b], 16.0, 0.1, 16e-3),
        ([wide], 16.0, 0.0, 16e-3),
    ]


def test_b_moves_as_many_times_as_far_as_the_ratio_says():
    moved = {}
    for ratio in (1.0, 16.0):
        parameters = tensors(ratio)
        before = [parameter.detach().clone() for parameter in parameters]
        step(adamw(parameters), parameters)
        moved[ratio] = [(p - old).detach() for p, old in zip(parameters, before)]
    (a, b, vector), (a_16, b_16, vector_16) = moved[1.0], moved[16.0]
    assert torch.equal(a, a_16) and torch.equal(vector, vector_16)
    assert torch.allclose(b_16, 16 * b, rtol=1e-3)


def test_the_schedule_drives_every_group_and_reads_its_own_rate():
    optimizer = adamw(tensors())
    cfg = PolynomialDecayLRScheduleConfig(warmup_updates=4, total_num_update=8, lr=[1e-3])
    cfg.end_learning_rate, cfg.power, cfg.force_anneal = 0.0, 1.0, None
    schedule = PolynomialDecayLRSchedule(cfg, optimizer)
    schedule.step_begin_epoch(1)
    for update, expected in ((2, 5e-4), (4, 1e-3), (6, 5e-4)):
        assert schedule.step_update(update) == optimizer.get_lr() == pytest.approx(expected)
        assert rates(optimizer) == pytest.approx([expected, expected, 16 * expected])


def test_a_schedule_that_scales_the_groups_itself():
    """reduce_lr_on_plateau hands torch's optimizer to torch's schedule."""
    optimizer = adamw(tensors())
    cfg = ReduceLROnPlateauLRScheduleConfig(lr=[1e-3], lr_shrink=0.5, lr_patience=0)
    cfg.maximize_best_checkpoint_metric = False
    schedule = ReduceLROnPlateauLRSchedule(cfg, optimizer)
    for epoch, loss in enumerate((1.0, 2.0), start=1):
        schedule.step(epoch, loss)
    assert optimizer.get_lr() == 5e-4 and rates(optimizer) == [5e-4, 5e-4, 8e-3]


@pytest.mark.parametrize("overrides", [None, {"lr": 1e-3}], ids=["saved", "given"])
def test_a_resumed_optimizer_goes_on_with_the_same_bits(overrides):
    straight = tensors()
    optimizer = adamw(straight)
    step(optimizer, straight)
    state = copy.deepcopy(optimizer.state_dict())
    resumed = [nn.Parameter(parameter.detach().clone()) for parameter in straight]
    resumed[1].lr_scale = 16.0
    again = adamw(resumed, lr=1e-3 if overrides else 5.0)
    again.load_state_dict(state, overrides)
    assert rates(again) == rates(optimizer) == [1e-3, 1e-3, 16e-3]
    step(optimizer, straight)
    step(again, resumed)
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed))


def test_the_ratio_of_the_run_that_goes_on_counts():
    """The learning rates are those of the flags, as fairseq has it for --lr."""
    optimizer, again = adamw(tensors(16.0)), adamw(tensors(4.0))
    again.load_state_dict(optimizer.state_dict(), {"lr": 2e-3})
    assert rates(again) == [2e-3, 2e-3, 8e-3] and again.get_lr() == 2e-3


def test_a_state_from_before_there_were_ratios():
    optimizer, again = adamw(tensors(1.0)), adamw(tensors(1.0))
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["lr_scale"]
    again.load_state_dict(state, {"lr": 2e-3})
    assert rates(again) == [2e-3, 2e-3] and again.get_lr() == 2e-3


def test_a_state_of_other_groups_is_refused():
    with pytest.raises(InputError, match="other tensors or groups .*--lora-lr-ratio"):
        adamw(tensors(16.0)).load_state_dict(adamw(tensors(1.0)).state_dict())


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 100.0])
def test_what_gradients_are_multiplied_with_waits_for_the_step(max_norm):
    """Norm, tensors and gradients are those of multiplying at once, as fairseq does."""
    found = []
    for waits in (True, False):
        parameters = tensors()
        optimizer = adamw(parameters)
        optimizer._waits = waits
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            optimizer.zero_grad()
            for parameter in parameters:
                parameter.grad = 7 * torch.randn(parameter.shape, generator=generator)
            optimizer.multiply_grads(1 / 7)
            optimizer.multiply_grads(torch.tensor(0.5))
            norm = optimizer.clip_grad_norm(max_norm)
            optimizer.step()
            found.append(
                [norm, *(p.detach().clone() for p in parameters), *(p.grad for p in parameters)]
            )
    for one, other in zip(found[:3], found[3:]):
        for a, b in zip(one, other):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
    assert found[0][0] > 0.5  # 0.5 clips, 100 does not


def test_with_amp_gradients_are_multiplied_at_once():
    """fairseq looks at them before the step."""
    parameter = nn.Parameter(torch.ones(3))
    cfg = types.SimpleNamespace(
        lr=[1e-3], weight_decay=0.0, adamw_betas="(0.9, 0.999)", adamw_eps=1e-8, amp=True
    )
    optimizer = PeftAdamW(cfg, [parameter])
    parameter.grad = torch.full((3,), 8.0)
    optimizer.multiply_grads(0.25)
    assert parameter.grad.tolist() == [2.0] * 3


def test_a_step_that_never_came_leaves_nothing_behind():
    parameter = nn.Parameter(torch.ones(3))
    optimizer = adamw([parameter])
    parameter.grad = torch.ones(3)
    optimizer.multiply_grads(0.0)
    optimizer.zero_grad()
    parameter.grad = torch.ones(3)
    optimizer.step()
    assert parameter.grad.tolist() == [1.0] * 3 and (parameter != 1).all()


def test_which_optimizers_are_refused():
    model = nn.ParameterList(tensors())
    check_learning_rates(model, "peft_adamw")
    check_learning_rates(nn.ParameterList(tensors(1.0)), "adam")
    for name in ("adam", None):
        with pytest.raises(
            InputError, match=f"--layer-lr-decay would be ignored: --optimizer {name}"
        ):
            check_learning_rates(model, name)


@pytest.mark.parametrize(
    "asked, message",
    [("lr_scale", "--lora-lr-ratio or --layer-lr-decay would be"), ("scales_loss", "fp16 needs")],
)
def test_every_task_is_checked_before_its_first_update(asked, message):
    """fairseq's own, too: where a run loads its checkpoint, and nothing else has begun."""
    model, begun = nn.Linear(2, 2), []
    setattr(model.weight, asked, 16.0)

    def launch(optimizer):
        trainer = types.SimpleNamespace(model=model, checkpoint_suffix="")
        trainer.task = types.SimpleNamespace(begin_run=begun.append)
        trainer.cfg = OmegaConf.create({"optimizer": optimizer})
        cfg = types.SimpleNamespace(restore_file="none.pt", no_save=True)
        stock._load_checkpoint(lambda cfg, trainer: "loaded")(cfg, trainer)

    for optimizer in ({"_name": "adam"}, None):
        with pytest.raises(InputError, match=message):
            launch(optimizer)
    assert not begun
    launch({"_name": "peft_adamw"})
    assert begun == [model]


# Through the command line

RATIO = {"lora_lr_ratio": 16, "lr": 1e-3}


def test_another_optimizer_with_a_ratio_is_refused(fairseq, data_folder, tmp_path):
    flags = {"optimizer": "adam", **RATIO}
    done = fairseq("train", *train_flags(data_folder, tmp_path / "run", **flags))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "--layer-lr-decay would be ignored: --optimizer adam" in line
    assert "begin training epoch" not in done.stdout and not list(tmp_path.rglob("*.*"))


def test_it_is_refused_with_fairseqs_own_tasks_too(fairseq, data_folder, tmp_path):
    done = fairseq(
        *("train", data_folder / "input0", "--user-dir", PACKAGE, "--task", "masked_lm"),
        *("--criterion", "masked_lm", "--arch", "roberta_small", *TINY_FLAGS, "--peft", "lora"),
        *("--lora-lr-ratio", 16, "--optimizer", "adam", "--batch-size", 8, "--max-update", 1),
        *("--lr", 1e-2, "--tokens-per-sample", 40, "--cpu", "--save-dir", tmp_path / "run"),
    )
    assert done.returncode == 1 and not list(tmp_path.rglob("*.*"))
    assert "--layer-lr-decay would be ignored: --optimizer adam" in done.stderr.splitlines()[-1]


def test_another_optimizer_without_a_ratio_trains(fairseq, data_folder, tmp_path):
    flags = {"optimizer": "adam", "lora_lr_ratio": 1, "max_update": 1}
    done = fairseq("train", *train_flags(data_folder, tmp_path / "run", **flags))
    assert done.returncode == 0, done.stderr


def test_a_run_that_is_resumed_equals_one_that_is_not(fairseq, data_folder, tmp_path):
    """Two epochs, or one and one; the logged rate is the schedule's, B's is 16 times that."""

    def train(folder, **more):
        words = train_flags(data_folder, tmp_path / folder, **RATIO, **more)
        done = fairseq("train", *words)
        assert done.returncode == 0, done.stderr
        return torch.load(tmp_path / folder / "checkpoint_last.pt", weights_only=True)

    schedule = {"lr_scheduler": "polynomial_decay", "total_num_update": 100}
    train("parts", max_epoch=1, **schedule)
    parts = train("parts", max_epoch=2, **schedule)
    whole = train("whole", max_epoch=2, **schedule)
    for state in (parts, whole):
        groups = state["last_optimizer_state"]["param_groups"]
        assert [group["lr_scale"] for group in groups] == [1.0, 1.0, 16.0]
        assert groups[2]["lr"] == 16 * groups[0]["lr"] < 16e-3
    assert all(torch.equal(value, whole["model"][key]) for key, value in parts["model"].items())
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["lr"] == groups[0]["lr"]


# ---- A scaled loss (--precision fp16) ------------------------------------------------------------


def scaled(parameters, **more):
    for parameter in parameters:
        parameter.scales_loss = True
    return adamw(parameters, **more)


def one_step(optimizer, parameters, loss_of, clip=1.0):
    optimizer.zero_grad()
    for factor in (1.0, 2.0):  # two batches of an update
        optimizer.backward(loss_of(factor))
    optimizer.multiply_grads(0.25)
    norm = optimizer.clip_grad_norm(clip)
    optimizer.step()
    return norm


def test_a_scaled_loss_makes_the_same_steps():
    """The scale is a power of 2, so nothing is rounded: norms and tensors to the last bit."""
    plain = tensors()
    other = [nn.Parameter(p.detach().clone()) for p in plain]
    for mine, theirs in zip(other, plain):
        if hasattr(theirs, "lr_scale"):
            mine.lr_scale = theirs.lr_scale
    optimizers = adamw(plain), scaled(other)
    for _ in range(3):
        norms = [
            one_step(optimizer, group, lambda f, group=group: f * sum((p**3).sum() for p in group))
            for optimizer, group in zip(optimizers, (plain, other))
        ]
        assert torch.equal(*norms) and norms[0] > 1
        assert all(torch.equal(p, q) for p, q in zip(plain, other))


def test_an_update_that_overflows_is_left_out_and_the_scale_halved():
    group = tensors()
    optimizer = scaled(group)
    one_step(optimizer, group, lambda f: f * sum((p**2).sum() for p in group))
    before = [p.detach().clone() for p in group]
    scale = optimizer.loss_scale.scale
    for times in (1, 2):
        norm = one_step(optimizer, group, lambda f: float("inf") * sum(p.sum() for p in group))
        assert norm == 0 and optimizer.loss_scale.scale == scale / 2**times
        assert all(torch.equal(p, q) for p, q in zip(group, before))
        assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in group)
    one_step(optimizer, group, lambda f: f * sum((p**2).sum() for p in group))
    assert not torch.equal(group[0], before[0])


def test_the_scale_grows_and_says_when_nothing_helps():
    scale = LossScale(scale=8.0)
    for _ in range(LossScale.GROWS_AFTER):
        scale.update(overflow=False)
    assert (scale.scale, scale.num_good) == (16.0, 0)
    with pytest.raises(InputError, match="overflow whatever the loss is multiplied with"):
        for _ in range(40):
            scale.update(overflow=True)


def test_the_scale_is_part_of_the_state():
    group = tensors()
    optimizer = scaled(group)
    one_step(optimizer, group, lambda f: float("inf") * sum(p.sum() for p in group))
    one_step(optimizer, group, lambda f: f * sum((p**2).sum() for p in group))
    state = copy.deepcopy(optimizer.state_dict())
    assert state["loss_scale"] == {"scale": 2.0**15, "num_good": 1}
    fresh = scaled(tensors())
    fresh.load_state_dict(state)
    assert vars(fresh.loss_scale) == state["loss_scale"]
    assert "loss_scale" not in adamw(tensors()).state_dict()


def test_another_optimizer_cannot_scale_it():
    model = nn.Linear(2, 2)
    model.weight.scales_loss = True
    with pytest.raises(InputError, match="--precision fp16 needs a scaled loss, which --optimizer"):
        check_learning_rates(model, "adam")
    check_learning_rates(model, "peft_adamw")

"""AdaLoRA: the schedule, the masks, the penalty, and a run that is resumed."""

from __future__ import annotations

import pytest
import torch
from helpers import PACKAGE, TINY_FLAGS, train_flags
from torch import nn

from fairseq_peft.methods.adalora import AdaLoRALinear
from fairseq_peft.methods.shared.rank_budget import Importance, Schedule, choose


class Reference:
    """Algorithm 1 of the paper as Hugging Face PEFT 0.21 writes it (``RankAllocator`` and
    ``AdaLoraModel.update_and_allocate``), line by line; parameters by name, ``%s`` for the kind."""

    def __init__(self, names, init_r, target_r, tinit, tfinal, deltaT, total_step):
        self.names = names
        self.tinit, self.tfinal = tinit, tfinal
        self.deltaT, self.total_step = deltaT, total_step
        self.beta1 = self.beta2 = 0.85
        self.init_bgt, self.target_bgt = init_r * len(names), target_r * len(names)
        self.ipt, self.exp_avg_ipt, self.exp_avg_unc = {}, {}, {}
        self.rank_pattern = None

    def budget_schedule(self, step):
        if step <= self.tinit:
            return self.init_bgt, False
        if step > self.total_step - self.tfinal:
            return self.target_bgt, True
        mul_coeff = 1 - (step - self.tinit) / (self.total_step - self.tfinal - self.tinit)
        budget = int((self.init_bgt - self.target_bgt) * (mul_coeff**3) + self.target_bgt)
        return budget, step % self.deltaT == 0

    def update_ipt(self, parameters, gradients):
        for n, p in parameters.items():
            if n not in self.ipt:
                self.exp_avg_ipt[n] = torch.zeros_like(p)
                self.exp_avg_unc[n] = torch.zeros_like(p)
            self.ipt[n] = (p * gradients[n]).abs()
            self.exp_avg_ipt[n] = self.beta1 * self.exp_avg_ipt[n] + (1 - self.beta1) * self.ipt[n]
            self.exp_avg_unc[n] = (
                self.beta2 * self.exp_avg_unc[n]
                + (1 - self.beta2) * (self.ipt[n] - self.exp_avg_ipt[n]).abs()
            )

    def mask_to_budget(self, parameters, budget):
        def element_score(n):
            return self.exp_avg_ipt[n] * self.exp_avg_unc[n]

        triplet_ipt = {}
        for name in self.names:
            ipt_a = torch.mean(element_score(name % "lora_A"), dim=1, keepdim=True)
            ipt_b = torch.mean(element_score(name % "lora_B"), dim=0, keepdim=False).view(-1, 1)
            ipt_ab = torch.cat([ipt_a, ipt_b], dim=1).sum(dim=1, keepdim=False)
            triplet_ipt[name] = element_score(name % "lora_E").view(-1) + ipt_ab.view(-1)
        scores = torch.cat(list(triplet_ipt.values()))
        threshold = torch.kthvalue(scores, k=self.init_bgt - budget)[0].item()
        self.rank_pattern = {}
        for name in self.names:
            dropped = triplet_ipt[name] <= threshold
            parameters[name % "lora_E"].masked_fill_(dropped.view(-1, 1), 0.0)
            self.rank_pattern[name] = ~dropped

    def update_and_allocate(self, parameters, gradients, step):
        if step < self.total_step - self.tfinal:
            self.update_ipt(parameters, gradients)
            budget, mask = self.budget_schedule(step)
            if mask:
                self.mask_to_budget(parameters, budget)
        elif step == self.total_step - self.tfinal:
            self.mask_to_budget(parameters, self.budget_schedule(step)[0])
        else:
            for name in self.names:
                kept = self.rank_pattern[name].view(-1, 1)
                parameters[name % "lora_E"].masked_fill_(~kept, 0.0)


def maps(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, AdaLoRALinear)}


def update(model, batch, optimizer, num_updates, planned=30):
    """One update of a whole batch."""
    step(model, batch, optimizer)
    model.after_update(num_updates, planned)


def step(model, batch, optimizer):
    optimizer.zero_grad()
    scores = model(batch, features_only=True, classification_head_name="head")[0]
    loss = nn.functional.cross_entropy(scores, torch.tensor([0, 1, 1, 0])) + model.penalty()
    loss.backward()
    optimizer.step()


def adam(model, lr=1e-2):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("final, end", [(0.3, 21), (0.0, 30)])
def test_masks_follow_the_reference_update_by_update(build, batch, interval, final, end):
    model = build(
        "adalora",
        peft_targets="q_proj,v_proj,fc1",
        adalora_init_rank=6,
        adalora_rank=2,
        adalora_interval=interval,
        adalora_final=final,
    )
    found = maps(model)
    reference = Reference([f"{name}.%s" for name in found], 6, 2, 3, 30 - end, interval, 30)
    optimizer = adam(model)
    sums = []
    for num_updates in range(1, 31):
        step(model, batch, optimizer)
        own = {
            f"{name}.{kind}": parameter
            for name, module in found.items()
            for kind, parameter in module.triplets().items()
        }
        parameters = {name: parameter.detach().clone() for name, parameter in own.items()}
        gradients = {name: parameter.grad.clone() for name, parameter in own.items()}
        reference.update_and_allocate(parameters, gradients, num_updates)
        model.after_update(num_updates, 30)
        assert all(torch.equal(own[name], value) for name, value in parameters.items())
        for name, kept in (reference.rank_pattern or {}).items():
            assert torch.equal(found[name[:-3]].importance.kept[:, 0], kept)
        sums.append(sum(int(module.importance.kept.sum()) for module in found.values()))
    # Six maps of rank 6: all for three updates, ever fewer, then two on average.
    assert sums[:3] == [36] * 3 and sums[end - 1 :] == [12] * (31 - end)
    assert sorted(sums, reverse=True) == sums and 12 < sums[end // 2] < 36
    ranks = {int((module.lora_E != 0).sum()) for module in found.values()}
    assert sum(int((m.lora_E != 0).sum()) for m in found.values()) == 12 and len(ranks) > 1
    # At the end the merged model is the model.
    with torch.no_grad():
        before = model(batch, features_only=True, classification_head_name="head")[0]
        model.merge()
        after = model(batch, features_only=True, classification_head_name="head")[0]
    assert not maps(model) and (before - after).abs().max() < 1e-5


def test_schedule():
    """b_0 = 24, b_T = 16; 20 updates, 2 of warm-up, 8 at the end: 10 steps of a cubic between."""
    schedule = Schedule(first=24, last=16, warmup=2, final=8, total=20, interval=4)
    cubic = [int(8 * ((10 - k) / 10) ** 3 + 16) for k in range(1, 10)]
    assert [schedule.budget(t) for t in range(1, 21)] == [24, 24, *cubic, *[16] * 9]
    assert [t for t in range(1, 21) if schedule.chooses(t)] == [4, 8, 12]


def test_ties_do_not_cost_ranks():
    """A threshold, as PEFT has it, would drop every triplet here."""
    parts = [
        Importance(
            {"lora_A": torch.ones(3, 5), "lora_E": torch.ones(3, 1), "lora_B": torch.ones(4, 3)}
        )
        for _ in range(2)
    ]
    choose(parts, 4)
    assert [part.kept[:, 0].tolist() for part in parts] == [[True] * 3, [True, False, False]]


def test_an_initial_rank_that_is_the_target_keeps_all(build, batch):
    model = build("adalora", adalora_init_rank=4, adalora_rank=4)
    optimizer = adam(model)
    for num_updates in range(1, 11):
        update(model, batch, optimizer, num_updates, planned=10)
    assert all(module.importance.kept.all() for module in maps(model).values())
    assert all((module.lora_E != 0).all() for module in maps(model).values())


def test_penalty_is_the_mean_distance_from_orthogonality(build):
    model = build("adalora", adalora_orthogonality=0.3)
    squares = []
    for module in maps(model).values():
        squares += [module.lora_A @ module.lora_A.T, module.lora_B.T @ module.lora_B]
    expected = sum(((square - torch.eye(12)) ** 2).sum().sqrt() for square in squares)
    assert model.penalty().item() == pytest.approx(0.3 * expected.item() / len(squares))
    assert build("adalora", adalora_orthogonality=0.0).penalty() is None


def test_the_schedule_is_the_one_the_run_began_with(build, batch):
    """A longer --max-epoch later, or another count of batches in an epoch, does not move it; a new
    run from the trained checkpoint begins anew."""
    model = build("adalora")
    optimizer = adam(model)
    for num_updates in range(1, 16):
        update(model, batch, optimizer, num_updates, planned=10 if num_updates < 8 else 100)
    kept = [module.importance.kept.clone() for module in maps(model).values()]
    assert sum(int(part.sum()) for part in kept) == 8 * 4
    other = build("adalora", adalora_total_updates=30)
    other.load_state_dict(model.state_dict())
    with pytest.raises(
        ValueError, match="--adalora-total-updates 30, but this run began with .*10"
    ):
        other.after_update(16, 100)
    update(model, batch, optimizer, 1)
    for module in maps(model).values():
        assert module.importance.kept.all() and module.importance.total == 30
        assert (module.importance.sensitivity_lora_E > 0).any()


def test_unknown_length_is_refused(build, batch):
    model = build("adalora")
    with pytest.raises(ValueError, match="Give one of them, or --adalora-total-updates"):
        update(model, batch, adam(model), 1, planned=0)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"adalora_rank": 0}, "--adalora-rank 0"),
        ({"adalora_rank": 13}, "--adalora-init-rank 12 is out of range: give at least"),
        ({"adalora_alpha": 0.0}, "--adalora-alpha 0.0"),
        ({"adalora_dropout": 1.0}, "--adalora-dropout 1.0"),
        ({"adalora_warmup": 1.0}, "--adalora-warmup 1.0"),
        ({"adalora_final": -0.1}, "--adalora-final -0.1"),
        ({"adalora_warmup": 0.5}, "--adalora-warmup 0.5 and --adalora-final 0.5 leave no update"),
        ({"adalora_interval": 0}, "--adalora-interval 0"),
        ({"adalora_total_updates": -1}, "--adalora-total-updates -1"),
        ({"adalora_beta1": 1.0}, "--adalora-beta1 1.0"),
        ({"adalora_beta2": 0.0}, "--adalora-beta2 0.0"),
        ({"adalora_orthogonality": -1.0}, "--adalora-orthogonality -1.0"),
        ({"peft_targets": "query"}, "matches no module"),
        ({"adalora_layers": "7"}, "there is no layer 7"),
        ({"peft": "adalora,lora"}, "adalora and lora do not go together"),
    ],
)
def test_bad_knobs_are_refused(build, given, message):
    with pytest.raises(ValueError) as error:
        build(**{"peft": "adalora", **given})
    assert message in str(error.value)


def weights(folder):
    state = torch.load(folder / "checkpoint_last.pt", map_location="cpu", weights_only=True)
    return state["model"]


def same(a, b):
    return list(a) == list(b) and all(torch.equal(value, b[key]) for key, value in a.items())


@pytest.mark.end_to_end
def test_a_resumed_run_ends_with_the_same_bits_and_ranks(fairseq, data_folder, tmp_path):
    """36 updates in one go; 18 and 18; 1 and 35. The smoothed importance is among the bits."""

    def train(name, **more):
        given = {"dropout": 0.05, "lr": 5e-3, "max_epoch": 4, **more}
        given.update(adalora_warmup=0.2, adalora_final=0.1)
        flags = train_flags(data_folder, tmp_path / name, "roberta_small_adalora", **given)
        done = fairseq("train", *flags)
        assert done.returncode == 0, done.stderr
        return done.stderr + done.stdout

    out = train("whole")
    whole = weights(tmp_path / "whole")
    assert "AdaLoRA: 32 of 48 ranks stay" in out
    kept = {key: value for key, value in whole.items() if key.endswith("importance.kept")}
    assert len(kept) == 4 and sum(int(value.sum()) for value in kept.values()) == 32
    for key, value in kept.items():
        assert torch.equal(whole[key.replace("importance.kept", "lora_E")] != 0, value)

    # Half the epochs, so the length of the schedule must be told.
    train("halves", max_epoch=2, adalora_total_updates=36)
    assert sum(int(weights(tmp_path / "halves")[key].sum()) for key in kept) == 35
    train("halves", adalora_total_updates=36)
    assert same(whole, weights(tmp_path / "halves"))

    # Stopped by the clock after the first update; the flags alone plan the same schedule.
    train("stopped", stop_time_hours=1e-9)
    assert not same(whole, weights(tmp_path / "stopped"))
    train("stopped")
    assert same(whole, weights(tmp_path / "stopped"))


@pytest.mark.end_to_end
def test_a_run_of_unknown_length_ends_in_one_sentence(fairseq, data_folder, tmp_path):
    flags = train_flags(data_folder, tmp_path, "roberta_small_adalora", max_epoch=None)
    done = fairseq("train", *flags)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "--max-epoch nor --max-update" in done.stderr.strip().splitlines()[-1]


@pytest.mark.end_to_end
def test_a_task_that_tells_of_no_updates_is_refused(fairseq, data_folder, tmp_path):
    """fairseq's own masked_lm would train it without its budget and its penalty."""
    done = fairseq(
        *("train", data_folder / "input0", "--user-dir", PACKAGE, "--task", "masked_lm"),
        *("--criterion", "masked_lm", "--arch", "roberta_small", "--peft", "adalora", *TINY_FLAGS),
        *("--tokens-per-sample", 40, "--batch-size", 8, "--max-update", 1, "--num-workers", 0),
        *("--optimizer", "peft_adamw", "--save-dir", tmp_path, "--cpu"),
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "--peft adalora follows the run update by update" in done.stderr.splitlines()[-1]

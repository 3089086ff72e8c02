"""The schedule: up, constant, a linear end; it depends on the number of updates alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("fairseq")

from fairseq_peft.errors import InputError  # noqa: E402
from fairseq_peft.optim.warmup_stable_decay import (  # noqa: E402
    WarmupStableDecay,
    WarmupStableDecayConfig,
    learning_rate,
)


def test_the_three_parts():
    rates = [learning_rate(made, 8.0, 4, 0.25, 16) for made in range(17)]
    assert rates == [2, 4, 6, 8, *[8] * 8, 8, 6, 4, 2, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decay_share": 0.0}, "expected a share above 0 and at most 1"),
        ({"decay_share": 1.5}, "expected a share above 0 and at most 1"),
        ({"total_num_update": 0}, "of 1 update or more"),
        ({"warmup_updates": 9}, "--warmup-updates 9 reaches into the end of the run"),
    ],
)
def test_parts_that_do_not_fit_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        WarmupStableDecay(config(**values), None)


def config(**values):
    given = {"warmup_updates": 2, "decay_share": 0.2, "total_num_update": 10}
    given |= {"max_update": 0, "lr": [1.0]}
    return WarmupStableDecayConfig(**{**given, **values})


def test_the_optimizer_gets_the_rate_of_the_next_update(monkeypatch):
    rates = []
    optimizer = SimpleNamespace(set_lr=rates.append, get_lr=lambda: rates[-1])
    monkeypatch.setattr("fairseq.optim.lr_scheduler.fairseq_lr_scheduler.FairseqOptimizer", object)
    schedule = WarmupStableDecay(config(), optimizer)
    assert [schedule.step_update(made) for made in (1, 2, 8, 9)] == [1, 1, 1, 0.5]
    assert schedule.step_begin_epoch(2) == 0.5 and len(rates) == 4


def test_fairseq_reads_its_flags():
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.optim.lr_scheduler import build_lr_scheduler

    words = (
        "data --task masked_lm --arch roberta_small --optimizer peft_adamw --lr 0.5 --max-update 9"
    )
    words += " --lr-scheduler warmup_stable_decay --warmup-updates 3 --decay-share 0.3"
    args = options.parse_args_and_arch(options.get_training_parser(), input_args=words.split())
    schedule = build_lr_scheduler(convert_namespace_to_omegaconf(args).lr_scheduler, None)
    assert schedule.total == 9 and schedule.cfg.decay_share == 0.3

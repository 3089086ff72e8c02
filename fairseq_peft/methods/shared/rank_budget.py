"""How AdaLoRA spends a budget of ranks: when, how many, and which triplets stay.

A triplet is one rank of one map: a row of A (r, in), a value of E (r, 1), a column of B (out, r).

    1 <= t <= t_i          every triplet trains
    t_i < t < T - t_f      budget(t) = b_T + (b_0 - b_T) (1 - (t - t_i) / (T - t_i - t_f))^3
    T - t_f <= t <= T      budget b_T, the choice is fixed

Paper: Zhang et al. 2023, arXiv:2303.10512, eq. 7-11 and algorithm 1, as Hugging Face PEFT has it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import nn

from fairseq_peft.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """The budget over ``total`` updates: ``first`` triplets for ``warmup`` updates, ``last`` for
    the final ``final`` ones; in between a choice every ``interval`` updates."""

    first: int
    last: int
    warmup: int
    final: int
    total: int
    interval: int

    @property
    def end(self) -> int:
        """The update of the last choice."""
        return self.total - self.final

    def budget(self, update: int) -> int:
        """How many triplets may stay after ``update`` (counted from 1), rounded down."""
        if update <= self.warmup:
            return self.first
        if update >= self.end:
            return self.last
        left = 1 - (update - self.warmup) / (self.end - self.warmup)
        return int((self.first - self.last) * left**3 + self.last)

    def chooses(self, update: int) -> bool:
        """Whether triplets are chosen after ``update``."""
        between = self.warmup < update < self.end
        return update == self.end or between and update % self.interval == 0


class Importance(nn.Module):
    """Smoothed importance of one map's parameters, and which of its triplets were kept.

    I = |w dL/dw|, sensitivity <- beta1 sensitivity + (1 - beta1) I,
    uncertainty <- beta2 uncertainty + (1 - beta2) |I - sensitivity|; the product scores a
    parameter. All are buffers, so that a checkpoint holds them. ``total`` is the length of the
    schedule, fixed by a run's first update.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]):
        super().__init__()
        for name, parameter in parameters.items():
            self.register_buffer(f"sensitivity_{name}", torch.zeros_like(parameter.data))
            self.register_buffer(f"uncertainty_{name}", torch.zeros_like(parameter.data))
        rank = parameters["lora_E"].shape[0]
        self.register_buffer("kept", torch.ones(rank, 1, dtype=torch.bool))
        self.register_buffer("total", torch.zeros((), dtype=torch.long))
        self._known = (None, 0, 0)  # total, its version, its value

    def reset(self, total: int) -> None:
        """Forget everything: a run of ``total`` updates begins."""
        for buffer in self.buffers():
            buffer.zero_()
        self.kept.fill_(True)
        self.total.fill_(total)

    def num_updates(self) -> int:
        """``total`` as a number; a GPU is asked for it only after the buffer was written to."""
        tensor, version, number = self._known
        if tensor is not self.total or version != self.total._version:
            number = int(self.total)
            self._known = (self.total, self.total._version, number)
        return number

    def observe(self, parameters: dict[str, nn.Parameter], beta1: float, beta2: float) -> None:
        """Take in the gradients of an update."""
        for name, parameter in parameters.items():
            now = (parameter * parameter.grad).abs()
            sensitivity = self.get_buffer(f"sensitivity_{name}")
            sensitivity.mul_(beta1).add_((1 - beta1) * now)
            spread = (now - sensitivity).abs()
            self.get_buffer(f"uncertainty_{name}").mul_(beta2).add_((1 - beta2) * spread)

    def scores(self) -> torch.Tensor:
        """The importance of each triplet, (r,): that of its value, and the means of its vectors."""

        def score(name):
            return self.get_buffer(f"sensitivity_{name}") * self.get_buffer(f"uncertainty_{name}")

        return score("lora_E")[:, 0] + score("lora_A").mean(1) + score("lora_B").mean(0)


def choose(importances: list[Importance], budget: int) -> None:
    """Keep the ``budget`` most important triplets of all maps; on ties the earlier one, so that
    the number is exact (PEFT's threshold would drop all that tie)."""
    scores = torch.cat([importance.scores() for importance in importances])
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept[scores.sort(descending=True, stable=True).indices[:budget]] = True
    sizes = [importance.kept.shape[0] for importance in importances]
    for importance, part in zip(importances, kept.split(sizes)):
        importance.kept.copy_(part[:, None])


@torch.no_grad()
def follow(maps: list, config, num_updates: int, planned: int) -> None:
    """What comes after the optimizer's update number ``num_updates``, gradients still in place.

    Args:
        maps: modules with ``importance``, ``triplets()`` and ``lora_E``.
        config: ``methods.adalora.AdaLoRAConfig``.
        planned: updates of the whole run; 0 if unknown.

    Raises:
        InputError: the length of the schedule is unknown, or not the one the run began with.
    """
    importances = [each.importance for each in maps]
    if num_updates == 1:
        _start(importances, config.total_updates or planned)
    total = importances[0].num_updates()
    if config.total_updates not in (0, total):
        raise InputError(
            f"--adalora-total-updates {config.total_updates}, but this run began with a schedule "
            f"of {total} updates. Give {total}, or start anew in another --save-dir."
        )
    num_triplets = sum(len(each.kept) for each in importances)
    schedule = Schedule(
        first=num_triplets,
        last=config.rank * len(maps),
        warmup=int(config.warmup * total),
        final=int(config.final * total),
        total=total,
        interval=config.interval,
    )
    if num_updates < schedule.end:
        for each in maps:
            each.importance.observe(each.triplets(), config.beta1, config.beta2)
    if schedule.chooses(num_updates):
        choose(importances, schedule.budget(num_updates))
    if num_updates == schedule.end:
        ranks = torch.stack([each.kept.sum() for each in importances]).tolist()
        logger.info(
            f"AdaLoRA: {sum(ranks)} of {num_triplets} ranks stay, {min(ranks)} to {max(ranks)} "
            "a map"
        )
    # Between two choices the values of dropped triplets move, and may win the rank back.
    if schedule.chooses(num_updates) or num_updates > schedule.end:
        for each in maps:
            each.lora_E.masked_fill_(~each.importance.kept, 0)


def _start(importances, total):
    if total == 0:
        raise InputError(
            "AdaLoRA plans its ranks over the whole run, but neither --max-epoch nor --max-update "
            "says how long that is. Give one of them, or --adalora-total-updates."
        )
    for importance in importances:
        importance.reset(total)

"""``--lr-scheduler warmup_stable_decay``: up, constant, and a linear end.

Hu et al. 2024, arXiv:2404.06395, section 4. Training can go on from anywhere in the constant part,
and how long it lasts need not be known before the end begins.
"""

from dataclasses import dataclass, field
from typing import List

from fairseq.dataclass import FairseqDataclass
from fairseq.optim.lr_scheduler import (
    LR_SCHEDULER_REGISTRY,
    FairseqLRScheduler,
    register_lr_scheduler,
)
from omegaconf import II

from fairseq_peft.errors import InputError


@dataclass
class WarmupStableDecayConfig(FairseqDataclass):
    warmup_updates: int = field(
        default=0, metadata={"help": "updates from 0 up to the learning rate, linearly"}
    )
    decay_share: float = field(
        default=0.2, metadata={"help": "share of all updates, at the end, in which it falls to 0"}
    )
    total_num_update: int = field(
        default=0, metadata={"help": "updates of the whole run (0: --max-update)"}
    )
    max_update: int = II("optimization.max_update")
    lr: List[float] = II("optimization.lr")


def learning_rate(made: int, peak: float, warmup: int, decay_share: float, total: int) -> float:
    """The rate of the next update when ``made`` of ``total`` are made; above 0 up to the last."""
    if made < warmup:
        return peak * (made + 1) / warmup
    return peak * min(1.0, max(0.0, (total - made) / (decay_share * total)))


class WarmupStableDecay(FairseqLRScheduler):
    """``learning_rate`` as a schedule of fairseq.

    Raises:
        InputError: the parts do not fit into the run.
    """

    def __init__(self, cfg, optimizer):
        super().__init__(cfg, optimizer)
        self.total = cfg.total_num_update or cfg.max_update
        if not 0 < cfg.decay_share <= 1 or self.total < 1:
            raise InputError(
                f"--decay-share {cfg.decay_share} of --total-num-update {self.total}: expected a "
                "share above 0 and at most 1, of 1 update or more."
            )
        if cfg.warmup_updates > (1 - cfg.decay_share) * self.total:
            raise InputError(
                f"--warmup-updates {cfg.warmup_updates} reaches into the end of the run, the last "
                f"{cfg.decay_share:g} of {self.total} updates. Give fewer, or a smaller "
                "--decay-share."
            )

    def step_update(self, num_updates):
        """Called by the trainer at the start, and after each update."""
        cfg = self.cfg
        shape = (cfg.warmup_updates, cfg.decay_share, self.total)
        self.optimizer.set_lr(learning_rate(num_updates, cfg.lr[0], *shape))
        return self.optimizer.get_lr()

    def step_begin_epoch(self, epoch):
        """The rate depends on updates alone."""
        return self.optimizer.get_lr()


if "warmup_stable_decay" not in LR_SCHEDULER_REGISTRY:
    register_lr_scheduler("warmup_stable_decay", dataclass=WarmupStableDecayConfig)(
        WarmupStableDecay
    )

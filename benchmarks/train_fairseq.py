"""A contestant of train_speed.py: the real ``fairseq-train``, with or without this plugin, timed.

``python train_fairseq.py METER'S FLAGS -- FLAGS OF fairseq-train``. Nothing of the training loop is
written again: fairseq's ``Trainer.train_step`` and what it calls are timed where they stand.
"""

from __future__ import annotations

import argparse
import functools
import sys

import torch
from meter import Meter, parser


def main():
    here = sys.argv.index("--")
    meter = Meter(parser(__doc__).parse_args(sys.argv[1:here]))
    sys.argv = ["fairseq-train", *sys.argv[here + 1 :]]

    # Stock fairseq cannot read its own checkpoints with torch 2.6 and later; the plugin mends that.
    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals([argparse.Namespace])
    import fairseq
    from fairseq.trainer import Trainer
    from fairseq_cli.train import cli_main

    train_step = Trainer.train_step
    trainers = []

    @functools.wraps(train_step)
    def timed_step(trainer, samples, *args, **kwargs):
        if not trainers:
            trainers.append(trainer)
            watch(meter, trainer)
        (sample,) = samples  # --update-freq 1
        meter.tokens(sample["net_input"]["src_tokens"])
        meter.begin_step()
        result = train_step(trainer, samples, *args, **kwargs)
        meter.end_step()
        return result

    # fairseq forgets the peak at each step; what is measured is that of the run.
    torch.cuda.reset_peak_memory_stats = lambda *device: None
    Trainer.train_step = timed_step
    cli_main()
    if not trainers:
        sys.exit("fairseq-train ended without a step.")
    meter.report(trainers[0].model, fairseq=fairseq.__version__)


def watch(meter, trainer):
    """Time what a step is made of: forward with the loss, backward, and all that the optimizer has
    to do (scaling and clipping of gradients among it)."""
    meter.wrap(trainer.criterion, "forward", "forward")
    meter.wrap(trainer.optimizer, "backward", "backward")
    for name in ("zero_grad", "multiply_grads", "clip_grad_norm"):
        meter.wrap(trainer.optimizer, name, "optimizer")
    meter.wrap(trainer.task, "optimizer_step", "optimizer")


if __name__ == "__main__":
    main()

"""Fine-tune with Hugging Face's Trainer on fairseq's data, batches and metrics.

The model comes from a folder of `fairseq-peft to-hf`, or from a checkpoint that it could convert;
what the run leaves is what `fairseq-peft finetune` leaves, so that reports show both. A run that is
done is skipped, one that was interrupted starts again, and one of another plan that is there is
refused, with what differs. Needs the extra hf. scripts/finetune_hf.sh is the same with variables.
"""

from __future__ import annotations

import argparse
import logging
import math
from dataclasses import fields
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.precision import NAMES, resolve

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("data", type=Path, help="folder that scripts/prepare_data.sh made")
    add("base", type=Path, help="folder of fairseq-peft to-hf, or a checkpoint")
    add("--save-dir", type=Path, required=True, help="RUNS/<data>/<init>/<label>/seed<k>")
    add("--method", choices=("full", "lora"), default="full", help="lora is PEFT's (full)")
    add("--label", default="", help="what the run is called in reports (hf-METHOD)")
    add("--base-name", default="", help="what the run's record calls the base (its path)")
    add("--seed", type=int, default=1, help="of head, method, batches and dropout (1)")
    add("--lr", type=float, default=1e-4, help="peak learning rate (1e-4)")
    add("--epochs", type=int, default=5, help="passes over train (5)")
    add("--max-update", type=int, default=0, help="stop after so many updates (no limit)")
    add("--batch-size", type=int, default=16, help="rows an update (16)")
    add("--warmup", type=per_cent, default=6, help="per cent of the updates (6)")
    add(
        "--precision",
        choices=NAMES,
        default="auto",
        help="of the layers (%(default)s: the faster one)",
    )
    add("--subsets", default="valid,test", help="the first chooses the epoch (valid,test)")
    add("--metric", default="accuracy", help="accuracy, macro_f1, mcc, loss, f1_<class> (accuracy)")
    add("--dropout", type=float, default=0.1, help="of residual branches and embeddings (0.1)")
    add("--attention-dropout", type=float, default=0.1, help="of attention weights (0.1)")
    add(
        "--draw",
        choices=("fairseq", "hf"),
        default="fairseq",
        help="who draws the head and LoRA's A: fairseq, the numbers that a run of fairseq with "
        "this seed starts with; hf, the library's own (fairseq)",
    )
    add("--lora-rank", type=int, default=8, help="rank r of the update (8)")
    add("--lora-alpha", type=float, default=16.0, help="the update is scaled by alpha / rank (16)")
    add("--lora-dropout", type=float, default=0.0, help="on the update's input (0)")
    add("--keep", choices=("best", "none"), default="best", help="the best epoch's model (best)")
    add("--redo", action="store_true", help="throw a run of another plan away")
    add("--log-interval", type=int, default=50, help="updates between two lines of the log (50)")


def run(args: argparse.Namespace) -> int:
    check(args)
    import os

    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a folder is opened, nothing is looked up

    from fairseq_peft.hf.options import Options
    from fairseq_peft.sweeps import finetune_hf

    args.precision = resolve(args.precision)
    if args.precision == "fp16":
        raise InputError(
            "--precision fp16 is not for this trainer, which keeps no loss scale of ours. Give "
            "bf16 or fp32."
        )
    names = [field.name for field in fields(Options)]
    given = {name: value for name, value in vars(args).items() if name in names}
    options = Options(**{**given, "subsets": tuple(args.subsets.split(","))})
    logger.info(finetune_hf.run(options, "redo" if args.redo else None, args.keep))
    return 0


def per_cent(text: str) -> float:
    """A whole number as an int: a plan of an earlier version says ``--warmup 6``."""
    value = float(text)
    return int(value) if value.is_integer() else value


def check(args) -> None:
    """Raise InputError where flags cannot be meant."""
    for name in ("epochs", "batch_size", "log_interval"):
        if getattr(args, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag} {getattr(args, name)}: give 1 or more.")
    for name in ("dropout", "attention_dropout", "lora_dropout"):
        if not 0 <= getattr(args, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag} {getattr(args, name)}: give a share, 0 to below 1.")
    for name in ("lr", "lora_alpha"):
        if not 0 < getattr(args, name) < math.inf:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag} {getattr(args, name)}: give a positive number.")
    if not 0 <= args.warmup <= 100:
        raise InputError(f"--warmup {args.warmup:g}: give per cent of the updates, 0 to 100.")
    knobs = (args.lora_rank, args.lora_alpha, args.lora_dropout)
    if args.method != "lora" and knobs != (8, 16.0, 0.0):
        raise InputError(
            f"--lora-... would be ignored with --method {args.method}: give --method lora."
        )
    if args.subsets.startswith("test"):
        raise InputError(
            f"--subsets {args.subsets}: its first split chooses the epoch, and a test set never "
            "does. Begin with valid."
        )

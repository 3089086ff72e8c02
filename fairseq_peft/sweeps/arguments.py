"""The knobs of a run as arguments of ``fairseq-peft finetune`` and ``fairseq-peft sweep``."""

from __future__ import annotations

import argparse
import os

from fairseq_peft.errors import InputError
from fairseq_peft.sweeps.knobs import Knobs


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments that both have."""
    text = parser.add_argument
    text(
        "--data",
        required=True,
        metavar="DIR",
        help="folder that prepare-data made; for a base of Hugging Face's, with train.jsonl ...",
    )
    text("--runs", default="runs", metavar="DIR", help="where runs land (runs)")
    text(
        "--size",
        default="auto",
        help="roberta_small, roberta_base or roberta_large; auto: the base's, and roberta_small "
        "from scratch (auto)",
    )
    text(
        "--labels",
        default="",
        help="the answers that there are, with commas between, where the base is a model of "
        "Hugging Face's: accuracy is theirs, and chooses (none: the loss does)",
    )
    text("--arch-args", default="", metavar="FLAGS", help="more flags of the architecture")
    text("--epochs", type=int, default=5, help="passes over train (5)")
    text("--batch-size", type=int, default=16, help="rows an update (16)")
    text("--warmup", type=float, default=6, help="per cent of the updates (6)")
    text("--precision", default="auto", help="fp32, bf16, or auto: the faster one (auto)")
    text("--subsets", default="valid,test", help="evaluated every epoch (valid,test)")
    text(
        "--metric",
        default="",
        help="what chooses the checkpoint: accuracy, macro_f1, mcc, loss, f1_<class>; of labels "
        "micro_f1, of numbers pearson, spearman, mse, of texts rouge1, rouge2, rougeL (accuracy, "
        "micro_f1, pearson, loss)",
    )
    text(
        "--eval-test",
        choices=("each", "best"),
        default="each",
        help="the splits behind the first: at each epoch, or once, with the best weights (each)",
    )
    text("--patience", type=int, default=0, help="end after so many epochs without a better one")
    text("--class-weights", default="none", help="none, balanced, or numbers with commas (none)")
    text("--keep", choices=("best", "none"), default="best", help="checkpoints to keep (best)")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--redo", action="store_true", help="throw a run of another plan away")
    other.add_argument(
        "--extend",
        action="store_true",
        help="go on with a run for more epochs, where that is exact",
    )
    text("--dry-run", action="store_true", help="print the commands, change nothing")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The last argument: what follows --."""
    parser.add_argument(
        "flags", nargs=argparse.REMAINDER, metavar="-- FLAGS", help="flags of fairseq-train"
    )


def knobs(args: argparse.Namespace, threads: int, **more) -> Knobs:
    """The knobs that were given, and ``more``.

    Raises:
        InputError: a number cannot be meant, or what follows is no flag.
    """
    if args.flags and args.flags[0] != "--":
        raise InputError(f"'{args.flags[0]}' is no option. Flags of fairseq-train go behind --.")
    for name, value, least in [
        ("--epochs", args.epochs, 0),
        ("--batch-size", args.batch_size, 1),
        ("--threads", threads, 1),
        ("--patience", args.patience, 0),
    ]:
        if value < least:
            raise InputError(f"{name} {value}: give {least} or more.")
    if not 0 <= args.warmup <= 100:
        raise InputError(f"--warmup {args.warmup:g}: give per cent of the updates, 0 to 100.")
    return Knobs(
        data=args.data,
        runs=args.runs,
        labels=args.labels,
        size=args.size,
        epochs=args.epochs,
        batch_size=args.batch_size,
        warmup=args.warmup,
        precision=args.precision,
        subsets=args.subsets,
        metric=args.metric,
        eval_test=args.eval_test,
        patience=args.patience,
        class_weights=args.class_weights,
        threads=threads,
        arch_args=args.arch_args.split(),
        flags=args.flags[1:],
        keep=args.keep,
        **more,
    )


def cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def change(args: argparse.Namespace) -> str | None:
    """What to do with a run of another plan that is there."""
    return "redo" if args.redo else "extend" if args.extend else None

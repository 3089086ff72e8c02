"""Fine-tune one model: one method, one start, one seed.

`fairseq-peft finetune --data data-bin/cls-books --base model.pt --method lora` trains into
RUNS/<data>/INIT/LABEL/seed<SEED>/: plan.json, run.json, metrics.jsonl, train.log, TensorBoard
events, checkpoint_best.pt (chosen on valid), and result.json when it is done. A run that is done is
skipped; one that was interrupted goes on from its last epoch. A folder that holds a run of another
plan (other data, base, knobs or flags) is refused, with what differs. What follows -- goes to
fairseq-train. scripts/finetune.sh is the same with variables.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys

from fairseq_peft.errors import InputError

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = parser.add_argument
    text("--data", required=True, metavar="DIR", help="folder that prepare-data made")
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--base", metavar="FILE", help="checkpoint to start from")
    start.add_argument("--from-scratch", action="store_true", help="start from random weights")
    text("--method", default="full", help="a method, or several with + between (full)")
    text("--label", help="what the run is called in reports (the method)")
    text("--runs", default="runs", metavar="DIR", help="where runs land (runs)")
    text(
        "--size",
        default="auto",
        help="roberta_small, roberta_base or roberta_large; auto: the base's, and roberta_small "
        "from scratch (auto)",
    )
    text("--seed", type=int, default=1, help="seed of head, method, batches and dropout (1)")
    text("--lr", default="1e-4", help="peak learning rate (1e-4)")
    text("--epochs", type=int, default=5, help="passes over train (5)")
    text("--batch-size", type=int, default=16, help="rows an update (16)")
    text("--warmup", type=float, default=6, help="per cent of the updates (6)")
    text("--precision", default="auto", help="fp32, bf16, or auto: the faster one (auto)")
    text("--subsets", default="valid,test", help="evaluated every epoch (valid,test)")
    text("--threads", type=int, default=os.cpu_count(), help="CPU threads (all)")
    text("--keep", choices=("best", "none"), default="best", help="checkpoints to keep (best)")
    text("--worker", metavar="ADDRESS", help="where a worker listens that spares the imports")
    text("--arch-args", default="", metavar="FLAGS", help="more flags of the architecture")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--redo", action="store_true", help="throw a run of another plan away")
    other.add_argument(
        "--extend",
        action="store_true",
        help="go on with a run for more epochs, where that is exact",
    )
    text("--wait", action="store_true", help="wait while another process has the run")
    text(
        "--step",
        choices=("all", "plan", "finish"),
        default="all",
        help="plan: write the plan and print the command, for sweep-members; finish: take the "
        "result of what sweep-members has trained (all)",
    )
    text("--dry-run", action="store_true", help="print the commands, change nothing")
    text("flags", nargs=argparse.REMAINDER, metavar="-- FLAGS", help="flags of fairseq-train")


def run(args: argparse.Namespace) -> int:
    from fairseq_peft.sweeps import finetune
    from fairseq_peft.sweeps.knobs import Knobs

    flags = args.flags
    if flags and flags[0] != "--":
        raise InputError(f"'{flags[0]}' is no option. Flags of fairseq-train go behind --.")
    knobs = Knobs(
        data=args.data,
        runs=args.runs,
        method=args.method,
        label=args.label or args.method,
        base=args.base,
        size=args.size,
        seed=args.seed,
        lr=args.lr,
        epochs=args.epochs,
        batch_size=args.batch_size,
        warmup=args.warmup,
        precision=args.precision,
        subsets=args.subsets,
        threads=args.threads,
        arch_args=args.arch_args.split(),
        flags=flags[1:],
        keep=args.keep,
        worker=args.worker,
    )
    if args.dry_run:
        sys.stdout.write("".join(f"{line}\n" for line in finetune.dry_run(knobs)))
        return 0
    change = "redo" if args.redo else "extend" if args.extend else None
    told = finetune.run(knobs, change, args.wait, args.step)
    if args.step == "plan":
        sys.stdout.write(f"{told}\n")
    else:
        logger.info(told)
    return 0

"""Fine-tune one model: one method, one start, one seed.

`fairseq-peft finetune --data data-bin/cls-books --base model.pt --method lora` trains into
RUNS/<data>/INIT/LABEL/seed<SEED>/: plan.json, run.json, metrics.jsonl, train.log, TensorBoard
events, checkpoint_best.pt (chosen on valid), and result.json when it is done. A run that is done is
skipped; one that was interrupted goes on from its last epoch. A folder that holds a run of another
plan (other data, base, knobs or flags) is refused, with what differs. What follows -- goes to
fairseq-train. scripts/finetune.sh is the same with variables.

A base may be a folder of Hugging Face's, `--base t5-small/`: such a model learns to answer. DATA
has train.jsonl, valid.jsonl and test.jsonl then, with input and target (T5, BART) or prompt and
answer (GPT-2, BLOOM, Llama ...); with --labels an answer is right or wrong (docs/hf-models.md).
"""

from __future__ import annotations

import argparse
import logging
import sys

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from fairseq_peft.sweeps import arguments

    text = parser.add_argument
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument(
        "--base",
        metavar="BASE",
        help="checkpoint to start from, or folder of a model of Hugging Face's",
    )
    start.add_argument("--from-scratch", action="store_true", help="start from random weights")
    text("--method", default="full", help="a method, or several with + between (full)")
    text("--label", help="what the run is called in reports (the method)")
    text("--seed", type=int, default=1, help="seed of head, method, batches and dropout (1)")
    text("--lr", default="1e-4", help="peak learning rate (1e-4)")
    text("--threads", type=int, default=arguments.cores(), help="CPU threads (all)")
    text("--worker", metavar="ADDRESS", help="where a worker listens that spares the imports")
    text("--wait", action="store_true", help="wait while another process has the run")
    arguments.add(parser)
    arguments.add_flags(parser)


def run(args: argparse.Namespace) -> int:
    from fairseq_peft.sweeps import arguments, finetune

    knobs = arguments.knobs(
        args,
        threads=args.threads,
        method=args.method,
        label=args.label or args.method,
        base=args.base,
        seed=args.seed,
        lr=args.lr,
        worker=args.worker,
    )
    if args.dry_run:
        sys.stdout.write("".join(f"{line}\n" for line in finetune.dry_run(knobs)))
        return 0
    with finetune.ending_on_sigterm():
        logger.info(finetune.run(knobs, arguments.change(args), args.wait))
    return 0

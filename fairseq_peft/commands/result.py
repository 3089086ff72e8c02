"""Write result.json, the mark of a finished run, from run.json and metrics.jsonl."""

from __future__ import annotations

import argparse
import logging

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR", help="RUNS/<data>/<init>/<method>/seed<k>")
    parser.add_argument(
        "--require-epochs",
        metavar="N",
        type=int,
        default=0,
        help="refuse a run with fewer epochs than N",
    )


def run(args: argparse.Namespace) -> int:
    from fairseq_peft.report.result import conclude, in_words, summarise

    result = summarise(args.run_dir, args.require_epochs)
    path = conclude(args.run_dir, result)
    logger.info("%s: %s", path, in_words(result))
    return 0

"""Write result.json, the mark of a finished run, from run.json and metrics.jsonl."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

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
    from fairseq_peft.errors import InputError
    from fairseq_peft.report.result import in_words, keep_predictions, summarise, write_result
    from fairseq_peft.report.tensorboard import write_hparams

    result = summarise(args.run_dir, args.require_epochs)
    try:
        write_hparams(args.run_dir, result)
    except OSError as error:
        raise InputError(
            f"cannot write '{args.run_dir}': {error.strerror or error}. Give rights there."
        ) from error
    keep_predictions(args.run_dir, result)
    # last, because it says that everything is there
    path = write_result(args.run_dir, result)
    logger.info("%s: %s", Path(path), in_words(result))
    return 0

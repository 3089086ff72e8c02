"""Run the TF-IDF baseline on raw text and write its result among the runs."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "raw_dir", metavar="RAW_DIR", help="folder with {train,valid,test}.{review,label}, UTF-8"
    )
    parser.add_argument("--runs", metavar="RUNS", required=True, help="folder that holds the runs")
    parser.add_argument("--name", help="name of the data set [the folder's own]")
    parser.add_argument(
        "--drop-duplicates",
        choices=["train"],
        help="leave out the rows of train whose text valid or test has as well",
    )


def run(args: argparse.Namespace) -> int:
    from fairseq_peft.report.tfidf import run_tfidf

    name = args.name or Path(args.raw_dir).resolve().name
    result = run_tfidf(args.raw_dir, args.runs, name, args.drop_duplicates == "train")
    logger.info(
        "%s/baseline/tfidf: test accuracy %.2f %%, valid %.2f %%, %.1f s, %s",
        name,
        100 * result["test_accuracy"],
        100 * result["valid_accuracy"],
        result["seconds"],
        result["method_config"],
    )
    return 0

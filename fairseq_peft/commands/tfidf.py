"""Run the TF-IDF baseline on raw text and write its result among the runs."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from fairseq_peft.text import bpe, kinds, tables
from fairseq_peft.text.rows import SEPARATOR

FORMATS = (".tsv", ".csv", ".jsonl", ".json", ".gz", ".xz")
logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "raw",
        metavar="RAW",
        type=Path,
        help="what prepare_data.sh reads: {train,valid,test}.{review,label} in a folder, or a file",
    )
    tables.add_arguments(parser)
    kinds.add_arguments(parser)
    parser.add_argument("--runs", metavar="RUNS", required=True, help="folder that holds the runs")
    parser.add_argument("--name", help="name of the data set (that of RAW)")
    parser.add_argument(
        "--drop-duplicates",
        choices=["train"],
        help="leave out the rows of train whose text valid or test has as well",
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="draws the splits of one table (%(default)s)"
    )
    for name in ("valid", "test"):
        parser.add_argument(
            f"--{name}-share",
            type=float,
            default=0.1,
            help=f"share of the rows for {name}, of one table without split (%(default)s)",
        )
    parser.add_argument(
        "--spm",
        metavar="MODEL",
        type=Path,
        help="read pieces of this sentencepiece model, as a model does, not words",
    )
    bpe.add_arguments(parser)
    parser.add_argument(
        "--max-tokens",
        type=int,
        help="with --spm or --bpe: cut texts as a model of so many positions does",
    )


def run(args: argparse.Namespace) -> int:
    from fairseq_peft.errors import InputError
    from fairseq_peft.report.tfidf import Pieces, in_words, run_tfidf

    subwords, _ = bpe.from_arguments(args)
    if args.max_tokens is not None and subwords is None:
        raise InputError(
            "--max-tokens would be ignored: words are not cut. Give --spm or --bpe, the model's "
            "tokenizer."
        )
    pieces = None if subwords is None else Pieces(subwords, args.max_tokens)
    name = args.name or data_name(args.raw)
    reading = {name: getattr(args, name) for name in ("seed", "valid_share", "test_share")}
    reading["columns"] = tables.columns_of(args)
    kinds.check_arguments(args)
    reading["kind"], reading["separator"] = args.kind, args.label_separator or SEPARATOR
    drop = args.drop_duplicates == "train"
    result = run_tfidf(args.raw, args.runs, name, drop, pieces, reading)
    logger.info(
        "%s/baseline/%s: %s, %.1f s, %s",
        name,
        result["method"],
        in_words(result),
        result["seconds"],
        result["method_config"],
    )
    return 0


def data_name(raw: Path) -> str:
    """The name of a folder, or that of a file without what says its format: books of
    books.tsv.gz."""
    raw = raw.resolve()
    while raw.suffix in FORMATS and not raw.is_dir():
        raw = raw.with_suffix("")
    return raw.name

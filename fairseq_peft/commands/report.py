"""Compare all finished runs: table, statistics, pictures."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from fairseq_peft.errors import InputError

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUNS", help="folder that holds the runs")
    parser.add_argument(
        "--out", metavar="DIR", help="also write report*.{txt,md,csv,json} and the pictures there"
    )


def run(args: argparse.Namespace) -> int:
    from fairseq_peft.report.rows import build_rows
    from fairseq_peft.report.runs import find_runs
    from fairseq_peft.report.tables import terminal, write_tables

    finished, left_out = find_runs(args.runs)
    rows = build_rows(finished)
    sys.stdout.write(terminal(rows, left_out))
    sys.stdout.flush()
    if args.out:
        from fairseq_peft.report.plots import draw_all

        out = Path(args.out)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make '{out}': {error.strerror}") from None
        written = write_tables(rows, left_out, out) + draw_all(finished, rows, out)
        logger.info("%d files in %s: %s", len(written), out, ", ".join(p.name for p in written))
    return 0

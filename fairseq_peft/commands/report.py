"""Compare all finished runs: table, statistics, pictures, and all of it as one page (--html)."""

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
    parser.add_argument(
        "--html",
        nargs="?",
        const="",
        metavar="FILE",
        help="also write one page that needs nothing but itself (default: report.html in --out, "
        "else in RUNS); needs the extra html",
    )
    parser.add_argument(
        "--compare-with",
        metavar="METHOD",
        default="full",
        help="the method that the others are compared with, row by row of the test set (full)",
    )
    parser.add_argument(
        "--no-texts", action="store_true", help="leave the texts of test rows out of the page"
    )


def run(args: argparse.Namespace) -> int:
    from fairseq_peft.report.rows import build_rows
    from fairseq_peft.report.runs import find_runs
    from fairseq_peft.report.tables import terminal, write_tables

    page = page_path(args)
    finished, left_out = find_runs(args.runs)
    rows = build_rows(finished, args.compare_with)
    methods = sorted({row["method"] for row in rows})
    if args.compare_with not in ("full", *methods):
        raise InputError(
            f"--compare-with {args.compare_with}: no run is of this method. Methods here: "
            f"{', '.join(methods)}."
        )
    sys.stdout.write(terminal(rows, left_out))
    sys.stdout.flush()
    if args.out:
        from fairseq_peft.report.plots import draw_all

        out = Path(args.out)
        _make(out)
        written = write_tables(rows, left_out, out) + draw_all(finished, rows, out)
        logger.info("%d files in %s: %s", len(written), out, ", ".join(p.name for p in written))
    if page:
        from fairseq_peft.report.html.page import write_page

        _make(page.parent)
        write_page(finished, rows, left_out, page, args.runs, not args.no_texts)
        logger.info("the page is %s (%.0f kB)", page, page.stat().st_size / 1000)
    return 0


def page_path(args: argparse.Namespace) -> Path | None:
    """Where the page goes; None without ``--html``."""
    if args.html is None:
        if args.no_texts:
            raise InputError("--no-texts has no effect without --html. Give both, or none.")
        return None
    path = Path(args.html) if args.html else Path(args.out or args.runs) / "report.html"
    if path.suffix not in (".html", ".htm"):
        raise InputError(f"--html is {path}. Expected a name that ends in .html.")
    return path


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make '{folder}': {error.strerror}") from None

"""The score on test against a number that whole sets of runs differ in: a table, and a picture.

Takes X=RUNS pairs, such as 500=runs-500 4000=runs-4000 for sweeps that began from checkpoints of
500 and 4,000 updates. What has runs in several folders becomes a line; what has them in one (from
scratch, TF-IDF) becomes a level to compare it with. Prints the table. The score is accuracy, or
that of the kind of task: micro-F1 of several labels, a correlation of numbers, the loss of texts.
"""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path

from fairseq_peft.errors import InputError

logger = logging.getLogger(__name__)


def add_arguments(parser):
    parser.add_argument("runs", nargs="+", metavar="X=RUNS", help="a number, and a folder of runs")
    parser.add_argument(
        "--x-label", default="updates of pre-training", help="what X is (%(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, help=".png or .svg; both are written")


def run(args) -> int:
    from fairseq_peft.report import accuracy_plot, drawing

    drawing.check_out(args.out)
    folders = read_pairs(args.runs)
    series = accuracy_plot.read_series(folders)
    sys.stdout.write("\n".join(accuracy_plot.table(series, args.x_label)) + "\n")
    for path in accuracy_plot.draw(series, args.x_label, args.out):
        logger.info("%s", path)
    return 0


def read_pairs(pairs: list[str]) -> dict[float, Path]:
    """X -> folder of ``X=RUNS`` words.

    Raises:
        InputError: a word is no such pair, or two have the same X.
    """
    found: dict[float, Path] = {}
    for pair in pairs:
        number, _, folder = pair.partition("=")
        try:
            x = float(number)
        except ValueError:
            x = math.nan
        if not folder or not math.isfinite(x):
            raise InputError(f"'{pair}' is no X=RUNS, a number and a folder, such as 500=runs-500.")
        if x in found:
            raise InputError(
                f"'{pair}' and '{found[x]}' have the same X. Give one folder for each number."
            )
        found[x] = Path(folder)
    return found

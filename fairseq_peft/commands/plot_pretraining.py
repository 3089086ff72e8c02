"""A picture (PNG and SVG) of the losses of one or more pre-trainings.

Takes the pretrain.jsonl files of pretrain.sh; `NAME=FILE` gives a curve its name in the legend.
"""

from __future__ import annotations

import logging
from pathlib import Path

logger = logging.getLogger(__name__)


def add_arguments(parser):
    parser.add_argument("curves", nargs="+", metavar="[NAME=]FILE", help="pretrain.jsonl files")
    parser.add_argument("--out", type=Path, required=True, help=".png or .svg; both are written")


def run(args) -> int:
    from fairseq_peft.report.drawing import check_out
    from fairseq_peft.report.pretraining import read_curve
    from fairseq_peft.report.pretraining_plot import plot_curves
    from fairseq_peft.text import sources

    check_out(args.out)
    files = sources.named(args.curves, "curves", lambda path: path.parent.name or str(path))
    curves = {name: read_curve(path) for name, path in files.items()}
    for path in plot_curves(curves, args.out):
        logger.info("%s", path)
    return 0

"""A picture (PNG and SVG) of the losses of one or more pre-trainings.

Takes the pretrain.jsonl files of pretrain.sh; `NAME=FILE` gives a curve its name in the legend.
"""

from __future__ import annotations

import logging
from pathlib import Path

from fairseq_peft.errors import InputError

logger = logging.getLogger(__name__)


def add_arguments(parser):
    parser.add_argument("curves", nargs="+", metavar="[NAME=]FILE", help="pretrain.jsonl files")
    parser.add_argument("--out", type=Path, required=True, help=".png or .svg; both are written")


def run(args) -> int:
    from fairseq_peft.report.drawing import check_out
    from fairseq_peft.report.pretraining import read_curve
    from fairseq_peft.report.pretraining_plot import plot_curves

    check_out(args.out)
    curves = {}
    for text in args.curves:
        name, sign, path = text.partition("=")
        if not sign or Path(text).is_file():
            name, path = "", text
        name = name or str(Path(path).parent.name or path)
        if name in curves:
            raise InputError(f"Two curves are called '{name}'. Name them: OTHER={path}.")
        curves[name] = read_curve(Path(path))
    for path in plot_curves(curves, args.out):
        logger.info("%s", path)
    return 0

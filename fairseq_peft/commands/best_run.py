"""Print which of several finished runs is best on valid (the first of them on ties)."""

from __future__ import annotations

import sys


def add_arguments(parser):
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="directories with a result.json")


def run(args) -> int:
    from pathlib import Path

    from fairseq_peft.report import runs

    sys.stdout.write(args.runs[runs.best([Path(folder) for folder in args.runs])] + "\n")
    return 0

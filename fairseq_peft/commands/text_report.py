"""Compare runs whose models write texts: RUNS/<method>/seed<k>/scores.json -> table.

scores.json is what `fairseq-peft score --out` writes. Prints one table, and leaves it as report.md
and report.json in RUNS: scores, trainable parameters, bytes kept, seconds, and what a run lost of
the last part against the run `base`.
"""

from __future__ import annotations

import sys
from pathlib import Path


def add_arguments(parser) -> None:
    parser.add_argument("runs", metavar="RUNS", type=Path, help="folder of the runs")
    parser.add_argument(
        "--beside", metavar="SCORES", type=Path, help="scores of other systems, a part each"
    )
    parser.add_argument("--command", default="", help="what made them, for the table's notes")


def run(args) -> int:
    from fairseq_peft.report import text_runs

    sys.stdout.write(text_runs.write(args.runs, args.command, args.beside))
    return 0

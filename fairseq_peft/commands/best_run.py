"""Print which of several finished runs is best on valid (the first of them on ties)."""

from __future__ import annotations

import sys


def add_arguments(parser):
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="directories with a result.json")


def run(args) -> int:
    from pathlib import Path

    from fairseq_peft.report import runs
    from fairseq_peft.runs.choice import Choice

    results = [runs.read_result(Path(directory) / "result.json") for directory in args.runs]
    choices = {Choice.of_run(result) for result in results}
    # By what chose within each run, if that is the same in all.
    choice = choices.pop() if len(choices) == 1 else Choice()
    key, sign = "valid_accuracy", 1
    if choice.metric != "accuracy":
        key, sign = "best_value", 1 if choice.maximize else -1
    best = max(range(len(results)), key=lambda i: (sign * results[i][key], -i))
    sys.stdout.write(args.runs[best] + "\n")
    return 0

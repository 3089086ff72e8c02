"""What each trick of the training step is worth: everything on, and each one taken out alone.

    python benchmarks/tricks.py --out runs/tricks

Every line is a process of its own; they take turns, and a ratio is taken within one repeat, to the
line with everything on. Random words with the lengths of reviews, dropout 0.1. That a trick changes
no result beyond rounding is for tests/benchmarks/test_tricks.py to show.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import steps  # noqa: E402

from fairseq_peft.files import whole  # noqa: E402

ON = "everything on"


def setups(methods, precision: str, batch: int) -> dict:
    """(method, what is taken out) -> setup."""
    found = {}
    for method in methods:
        plain = {"method": method, "batch": batch}
        found[method, ON] = steps.Setup(precision=precision, **plain)
        for name in steps.OFF:
            found[method, name] = steps.Setup(precision=precision, off=(name,), **plain)
        if precision != "fp32":
            found[method, f"{precision} (fp32 instead)"] = steps.Setup(precision="fp32", **plain)
    return found


def table(runs: dict) -> str:
    """A row for each line: tokens/s, and how many times as fast its trick makes the step."""
    rows = [
        "| method | taken out | real tokens/s | the trick makes it | lowest - highest | peak MB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for (method, name), found in runs.items():
        speeds = [run["tokens_per_s"] for run in found]
        full = [run["tokens_per_s"] for run in runs[method, ON]]
        ratios = [on / off for on, off in zip(full, speeds)]
        gain = "-", "-"
        if name != ON:
            gain = f"{statistics.median(ratios):.2f} x", f"{min(ratios):.2f} - {max(ratios):.2f}"
        peak = max(run["peak_bytes"] for run in found) / 1e6
        speed = statistics.median(speeds)
        rows.append(f"| {method} | {name} | {speed:,.0f} | {gain[0]} | {gain[1]} | {peak:,.0f} |")
    return "\n".join(rows)


def main(argv=None):
    flags = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    flags.add_argument("--out", type=Path, required=True, help="folder for tricks.json")
    flags.add_argument("--methods", default="lora,full", help="with commas between")
    flags.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    flags.add_argument("--batch-size", type=int, default=8)
    flags.add_argument("--steps", type=int, default=40)
    flags.add_argument("--repeats", type=int, default=3)
    flags.add_argument("--threads", type=int, default=2)
    flags = flags.parse_args(argv)
    lines = setups(flags.methods.split(","), flags.precision, flags.batch_size)
    runs = {line: [] for line in lines}
    for _ in range(flags.repeats):
        for line, setup in lines.items():
            runs[line].append(steps.run(setup, flags.steps, flags.threads))
    print(table(runs))
    flags.out.mkdir(parents=True, exist_ok=True)
    listed = [{"method": m, "taken_out": name, "runs": found} for (m, name), found in runs.items()]
    with whole(flags.out / "tricks.json") as temporary:
        Path(temporary).write_text(json.dumps({"flags": vars(flags), "lines": listed}, default=str))


if __name__ == "__main__":
    main()

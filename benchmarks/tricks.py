"""What each trick of the training step is worth: everything on, and each one taken out alone.

    python benchmarks/tricks.py --out runs/tricks

Every line is a process of its own; they take turns, and a ratio is taken within one repeat, to the
line with everything on. Random words with the lengths of reviews, dropout 0.1. That a trick changes
no result beyond rounding is for tests/benchmarks/test_tricks.py to show.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import steps
from harness import range_of, ratios, run_main, spread, take_turns, tell_failures, write_json

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
    """A row for each (method, what is taken out): tokens/s, and how much faster the trick is."""
    rows = [
        "| method | taken out | real tokens/s | the trick makes it | lowest - highest | peak MB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    speeds = {
        line: {repeat: run["tokens_per_s"] for repeat, run in found.items()}
        for line, found in runs.items()
    }
    for (method, name), found in runs.items():
        mine = speeds[method, name]
        gain = ratios(speeds.get((method, ON), {}), mine) if name != ON else None
        peak = max(run["peak_bytes"] for run in found.values()) / 1e6
        times = f"{gain['median']:.2f} x" if gain else "-"
        low_high = f"{gain['min']:.2f} - {gain['max']:.2f}" if gain else "-"
        speed = range_of(spread(list(mine.values())), bare=True)
        rows.append(f"| {method} | {name} | {speed} | {times} | {low_high} | {peak:,.0f} |")
    return "\n".join(rows)


def main(argv=None) -> int:
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

    def measure(setup, repeat):
        return steps.run(setup, flags.steps, flags.threads)

    runs, failures = take_turns(lines, flags.repeats, measure)
    print(table(runs))
    listed = [
        {"method": method, "taken_out": name, "runs": list(found.values())}
        for (method, name), found in runs.items()
    ]
    write_json(flags.out / "tricks.json", {"flags": vars(flags), "lines": listed})
    return tell_failures(list(failures.values()))


if __name__ == "__main__":
    run_main(main)

"""What LoRA and ``--checkpoint-activations`` save of a training run's memory.

    python benchmarks/memory.py --out runs/memory

Full fine-tuning and LoRA of rank 8, with and without the flag, fp32, 2 classes, rows without
padding. Each is a process of its own; the peak counts from before the model is built: weights,
gradients, optimizer, activations. File in --out: memory.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import steps
from harness import run_main, take_turns, tell_failures, write_json

METHODS = ("full", "lora")


def contestants(archs: list, batch: int, length: int) -> dict:
    """(architecture, method, whether the inside of layers is computed again) -> what is run."""
    given = {"precision": "fp32", "batch": batch, "length": length}
    return {
        (arch, method, again): steps.Setup(arch=arch, method=method, again=again, **given)
        for arch in archs
        for method in METHODS
        for again in (False, True)
    }


def table(found: dict) -> str:
    """The last column is to the first row of the same architecture."""
    lines = [
        "| architecture | method | `--checkpoint-activations` | peak MB | of full |",
        "|---|---|---|---:|---:|",
    ]
    for (arch, method, again), result in found.items():
        full = found.get((arch, "full", False))
        share = f"{100 * result['peak_bytes'] / full['peak_bytes']:.0f} %" if full else ""
        lines.append(
            f"| {arch} | {method} | {'on' if again else 'off'} | "
            f"{result['peak_bytes'] / 1e6:,.0f} | {share} |"
        )
    return "\n".join(lines)


def main(argv=None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    flags.add_argument("--out", type=Path, required=True, help="folder for the result")
    flags.add_argument("--archs", default="roberta_base,roberta_large", help="with commas between")
    flags.add_argument("--batch", type=int, default=4, help="rows of a batch")
    flags.add_argument("--length", type=int, default=128, help="tokens of a row")
    flags.add_argument("--threads", type=int, default=2)
    flags = flags.parse_args(argv)

    def measure(setup, repeat):
        # The second step has all there is: the optimizer's state, and activations.
        return steps.run(setup, 1, flags.threads, warm_up=1)

    chosen = contestants(flags.archs.split(","), flags.batch, flags.length)
    runs, failures = take_turns(
        chosen, 1, measure, told=lambda name, result: f"{name} {result['peak_bytes'] / 1e6:,.0f} MB"
    )
    found = {name: turns[1] for name, turns in runs.items()}
    print(table(found))
    points = [
        {"arch": arch, "method": method, "checkpoint_activations": again, **result}
        for (arch, method, again), result in found.items()
    ]
    write_json(flags.out / "memory.json", {"flags": vars(flags), "points": points})
    return tell_failures(list(failures.values()))


if __name__ == "__main__":
    run_main(main)

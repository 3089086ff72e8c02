"""How training's cost grows: tokens a second and memory against one thing at a time.

    python benchmarks/growth.py --out runs/growth

Rows are full, so padding plays no part. Every point is a process of its own: LoRA and full
fine-tuning of roberta_small, bf16, batch 8, 128 tokens, 2 classes, rank 8, where nothing else is
said. Memory counts from before the model is built. Files in --out: growth.json, growth.png.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import steps
from harness import run_main, take_turns, tell_failures, whole, write_json

#: What grows -> its values. ``rank`` is LoRA's alone.
AXES = {
    "length": (32, 64, 128, 192, 256),
    "batch": (1, 2, 4, 8, 16, 32, 64, 128),
    "classes": (2, 20, 200, 2000),
    "rank": (1, 8, 64, 256),
    "arch": ("roberta_small", "roberta_base"),
}
LABELS = {
    "length": "tokens a row",
    "batch": "rows a batch",
    "classes": "classes",
    "rank": "LoRA's rank",
    "arch": "architecture",
}
METHODS = ("lora", "full")
#: A point lasts about as many tokens, so that large batches need few steps.
TOKENS, FEWEST = 40_000, 4


def points(axes) -> list[tuple[str, object, steps.Setup]]:
    found = []
    for axis in axes:
        for value in AXES[axis]:
            for method in METHODS if axis != "rank" else ("lora",):
                given = {"length": 128, "method": method, axis: value}
                found.append((axis, value, steps.Setup(**given)))
    return found


def num_steps(setup: steps.Setup, tokens: int) -> int:
    return max(FEWEST, tokens // (setup.batch * setup.length))


def table(lines) -> str:
    rows = [
        "| what grows | value | method | tokens/s | ms a step | peak MB |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for line in lines:
        rows.append(
            f"| {LABELS[line['axis']]} | {line['value']} | {line['method']} | "
            f"{line['tokens_per_s']:,.0f} | {line['ms_per_step']:,.1f} | "
            f"{line['peak_bytes'] / 1e6:,.0f} |"
        )
    return "\n".join(rows)


def draw(lines, path: Path) -> None:
    """Two rows of panels, one column for each thing that grows: speed above, memory below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    axes = list(dict.fromkeys(line["axis"] for line in lines))
    figure, panels = plt.subplots(
        2, len(axes), figsize=(3.2 * len(axes), 5.6), squeeze=False, sharey="row"
    )
    looks = {"lora": ("#0072b2", "o", "LoRA"), "full": ("#d55e00", "s", "full")}
    for row, key, scale in ((0, "tokens_per_s", 1e3), (1, "peak_bytes", 1e9)):
        panels[row][0].set_ylim(0, 1.05 * max(line[key] for line in lines) / scale)
    for column, axis in enumerate(axes):
        values = AXES[axis]
        for method, (colour, marker, name) in looks.items():
            of = {
                line["value"]: line
                for line in lines
                if (line["axis"], line["method"]) == (axis, method)
            }
            places = [i for i, value in enumerate(values) if value in of]
            for row, (key, scale) in enumerate((("tokens_per_s", 1e3), ("peak_bytes", 1e9))):
                height = [of[values[i]][key] / scale for i in places]
                panels[row][column].plot(places, height, color=colour, marker=marker, label=name)
        for row in range(2):
            panel = panels[row][column]
            panel.set_xticks(range(len(values)), [str(v).replace("roberta_", "") for v in values])
            panel.grid(axis="y", alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
        panels[1][column].set_xlabel(LABELS[axis])
    panels[0][0].set_ylabel("thousand tokens/s")
    panels[1][0].set_ylabel("peak memory, GB")
    panels[0][0].legend(frameon=False)
    figure.tight_layout()
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def main(argv=None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    flags.add_argument("--out", type=Path, required=True, help="folder for the results")
    flags.add_argument("--axes", default=",".join(AXES), help="what grows, with commas between")
    flags.add_argument("--tokens", type=int, default=TOKENS, help="about so many tokens a point")
    flags.add_argument("--repeats", type=int, default=2)
    flags.add_argument("--threads", type=int, default=2)
    flags = flags.parse_args(argv)
    unknown = [axis for axis in flags.axes.split(",") if axis not in AXES]
    if unknown:
        sys.exit(f"--axes {unknown[0]!r} is unknown: give some of {', '.join(AXES)}.")
    chosen = points(flags.axes.split(","))

    def measure(setup, repeat):
        return steps.run(setup, num_steps(setup, flags.tokens), flags.threads)

    contestants = {(axis, value, setup.method): setup for axis, value, setup in chosen}
    runs, failures = take_turns(contestants, flags.repeats, measure)
    lines = []
    for (axis, value, method), found in runs.items():
        found = list(found.values())
        middle = {key: statistics.median(run[key] for run in found) for key in found[0]}
        lines.append({"axis": axis, "value": value, "method": method, **middle, "runs": found})
    print(table(lines))
    write_json(flags.out / "growth.json", {"flags": vars(flags), "points": lines})
    if lines:
        draw(lines, flags.out / "growth.png")
    return tell_failures(list(failures.values()))


if __name__ == "__main__":
    run_main(main)

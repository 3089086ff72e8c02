"""Show where the runs of a folder stand, while others train them.

`fairseq-peft watch RUNS`: how many are done, run, have failed, stopped or wait; each cell with its
seeds; epoch, scores, learning rate, speed and time left of each run that trains; why runs failed.
It reads their files and writes nothing, so it may look at any sweep, from anywhere. It ends with
the last run, or with Ctrl-C. Where the output is no terminal it tells once, as with --once.

Of a run on another machine only its files tell: it counts as running if they were written within
ten minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from fairseq_peft.errors import InputError

#: What a cell shows of a seed that has no score to show, and the colour of each state.
MARKS = {"waiting": "·", "running": "…", "failed": "failed", "stopped": "stopped", "done": "done"}
COLOURS = {"done": "green", "running": "cyan", "failed": "red", "stopped": "yellow", "waiting": ""}
#: Columns where there is no terminal to ask.
WIDTH = 140


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, metavar="RUNS", help="folder of the runs, as of sweep")
    parser.add_argument("--once", action="store_true", help="tell once, and end")
    parser.add_argument(
        "--every", type=float, default=2, help="seconds between looks (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.live import Live

    from fairseq_peft.sweeps import watch

    if not 0.1 <= args.every <= 3600:
        raise InputError(f"--every {args.every:g}: give 0.1 to 3600 seconds.")
    is_live = sys.stdout.isatty() and not args.once
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    runs = watch.look(args.runs)
    if not is_live:
        console.print(view(runs))
        return 0
    with Live(view(runs), console=console, auto_refresh=False) as live:
        while not runs or any(seen.state in (watch.RUNNING, watch.WAITING) for seen in runs):
            time.sleep(args.every)
            runs = watch.look(args.runs)
            live.update(view(runs), refresh=True)
    return 0


def view(runs):
    """What is shown of runs (``rich``)."""
    from rich.console import Group
    from rich.text import Text

    from fairseq_peft.sweeps import watch

    if not runs:
        return Text("There is no run yet.")
    parts = [Text(summary(runs)), cells(runs)]
    running = [seen for seen in runs if seen.state == watch.RUNNING]
    if running:
        parts.append(training(running))
    for seen in runs:
        if seen.state == watch.FAILED:
            parts.append(Text(printable(f"failed: {name(seen)}: {seen.why}"), style="red"))
    return Group(*parts)


def summary(runs) -> str:
    """How many runs are in which state, and how long it will take."""
    from fairseq_peft.sweeps import watch

    counts = watch.counted(runs)
    told = [f"{counts[watch.DONE]} of {len(runs)} done"]
    told += [f"{n} {state}" for state, n in counts.items() if n and state != watch.DONE]
    left = watch.seconds_left(runs)
    if counts[watch.RUNNING]:
        told.append(how_long(left))
    return ", ".join(told)


def how_long(left: float | None) -> str:
    if left is None:
        return "nobody knows for how long"
    return f"about {duration(left)} left" if left else "done at any moment"


def cells(runs):
    """A row a cell: its rates that were tried, and each seed's best score on valid, or state."""
    from rich.table import Table
    from rich.text import Text

    from fairseq_peft.sweeps import watch

    by_cell, seeds = {}, {}
    for seen in runs:
        by_cell.setdefault((seen.data, seen.cell), []).append(seen)
        if not seen.grid:
            seeds[seen.seed] = None
    numbers = sorted(seeds, key=lambda seed: (not seed.isdigit(), seed.zfill(20)))
    table = Table(caption="of a seed that is done: its best score on valid")
    for title in ("data", "cell", "rates tried"):
        table.add_column(title)
    for seed in numbers:
        table.add_column(f"seed {printable(seed)}", justify="right")
    for (data, cell), own in by_cell.items():
        grid = [seen for seen in own if seen.grid]
        tried = sum(seen.state == watch.DONE for seen in grid)
        texts = [data, cell, f"{tried} of {len(grid)}" if grid else ""]
        row = [Text(printable(text)) for text in texts]
        of_seed = {seen.seed: seen for seen in own if not seen.grid}
        row += [shown(of_seed[seed]) if seed in of_seed else Text("") for seed in numbers]
        table.add_row(*row)
    return table


def shown(seen):
    """A run in a cell of the table: its best score; while it trains, its epoch."""
    from rich.text import Text

    text = (seen.best if seen.state == "done" else "") or MARKS[seen.state]
    if seen.state == "running" and seen.epoch:
        text = epochs(seen)
    return Text(printable(text), style=COLOURS[seen.state])


def training(running):
    """A row a run that trains."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    titles = ("training", "rate", "epoch", "valid", "best so far", "tokens/s", "left")
    for title in titles:
        table.add_column(title, justify="left" if title == "training" else "right")
    for seen in running:
        speed = seen.tokens_per_second
        row = (
            *(name(seen), seen.rate or "", epochs(seen), seen.latest, seen.best),
            *("" if speed is None else f"{speed:,.0f}", time_left(seen)),
        )
        table.add_row(*(Text(printable(text)) for text in row))
    return table


def name(seen) -> str:
    return f"{seen.data} {seen.cell} seed {seen.seed}" + f" lr {seen.rate}" * seen.grid


def time_left(seen) -> str:
    """Until it ends; an epoch that takes longer than those before it makes a run overdue."""
    if seen.seconds_left is None:
        return ""
    if seen.epoch >= seen.max_epoch:
        return "ending"
    return duration(seen.seconds_left) if seen.seconds_left else "overdue"


def epochs(seen) -> str:
    return f"{seen.epoch} of {seen.max_epoch or '?'}"


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def printable(text: str) -> str:
    """Without what a terminal would obey: folders may be anybody's."""
    return "".join(one if one.isprintable() else "?" for one in text)

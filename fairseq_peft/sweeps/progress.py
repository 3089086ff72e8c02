"""What a sweep shows while it runs: lines, or a table that lives on a terminal."""

from __future__ import annotations

import sys
import time

from fairseq_peft.runs import log as run_log
from fairseq_peft.sweeps.epochs import Epochs
from fairseq_peft.sweeps.schedule import Run, Schedule

#: Seconds between two drawings of the table.
TABLE_S = 0.5


class Watched:
    """A run that trains, seen from outside: ``epochs`` has read its metrics.jsonl."""

    def __init__(self, run: Run, epochs: Epochs):
        self.run, self.epochs = run, epochs
        self.started = time.monotonic()
        self._validated = None

    def look(self) -> None:
        if self.epochs.new():
            self._validated = time.monotonic()

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        return self.epochs.last["epoch"] if self.epochs.last else 0

    @property
    def scores(self) -> str:
        """Those of the split that chooses, after the newest epoch; empty before there is one."""
        subsets = self.epochs.last["subsets"] if self.epochs.last else {}
        return next((self.epochs.shown(subset) for subset in subsets.values()), "")

    @property
    def seconds_left(self) -> float | None:
        """Until its last epoch ends, by the mean of those that it has had; None: nobody knows."""
        if not self.epoch or not self.epochs.max_epoch:
            return None
        now = time.monotonic()
        left = (self.epochs.max_epoch - self.epoch) * run_log.seconds_of(self.epochs.last)
        return max(left - (now - self._validated), 0)


class Lines:
    """A line whenever something happens, and every so many seconds.

    Args:
        every: seconds between two lines.
    """

    def __init__(self, schedule: Schedule, every: float = 10, out=None):
        self.schedule, self.every = schedule, every
        self.out = sys.stdout if out is None else out
        self.started = self._last = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def say(self, text: str, watched: list[Watched]) -> None:
        """Something has happened."""
        self.out.write(f"{self.summary(watched)}  {text}".rstrip() + "\n")
        self.out.flush()

    def show(self, watched: list[Watched]) -> None:
        """Called several times a second."""
        if time.monotonic() - self._last >= self.every:
            self._last = time.monotonic()
            runs = [f"{one.run} epoch {one.epoch} {one.scores}".rstrip() for one in watched]
            self.say(", ".join(runs), watched)

    def end(self) -> None:
        """The sweep is over."""
        self.say("", [])

    def summary(self, watched: list[Watched]) -> str:
        """Where the sweep stands, on one line."""
        schedule, spent = self.schedule, time.monotonic() - self.started
        ran = schedule.num_done - schedule.num_skipped
        num_stopped = sum(schedule.not_started.values())
        remaining = max(schedule.num_runs - schedule.num_done - num_stopped, 0)
        left = f"{spent * remaining / ran:.0f}" if ran > 0 else "?" if remaining else "0"
        return (
            f"{spent:5.0f} s  {schedule.num_done} of {schedule.num_runs} done, {len(watched)} "
            f"running, {len(schedule.failed)} failed, about {left} s left"
        )


class Table(Lines):
    """A table of the runs that train, below the lines of what has happened (``rich``)."""

    def __init__(self, schedule: Schedule, every: float = 10, console=None):
        from rich.console import Console
        from rich.live import Live

        super().__init__(schedule, every)
        self.console = console or Console()
        self._live = Live(console=self.console, auto_refresh=False)

    def __enter__(self):
        self._live.__enter__()
        return self

    def __exit__(self, *error):
        self._live.__exit__(*error)

    def say(self, text: str, watched: list[Watched]) -> None:
        if text:
            self.console.print(text, markup=False, highlight=False)  # above the table
        self._draw(watched)

    def show(self, watched: list[Watched]) -> None:
        if time.monotonic() - self._last >= TABLE_S:
            self._draw(watched)

    def end(self) -> None:
        self._draw([])

    def _draw(self, watched):
        self._last = time.monotonic()
        self._live.update(self._table(watched), refresh=True)

    def _table(self, watched):
        from rich.console import Group
        from rich.table import Table as RichTable
        from rich.text import Text

        summary = Text(self.summary(watched).strip())
        if not watched:
            return summary
        table = RichTable()
        for name in ("cell", "seed", "rate", "epoch", "valid so far", "left"):
            table.add_column(name, justify="left" if name == "cell" else "right")
        for one in watched:
            run, left = one.run, one.seconds_left
            table.add_row(
                *(str(run.cell), str(run.seed), run.rate),
                f"{one.epoch} of {one.epochs.max_epoch or '?'}",
                *(one.scores, "" if left is None else f"{left:.0f} s" if left else "overdue"),
            )
        return Group(summary, table)


def view(schedule: Schedule, every: float) -> Lines:
    """A table on a terminal, lines elsewhere."""
    return (Table if sys.stdout.isatty() else Lines)(schedule, every)

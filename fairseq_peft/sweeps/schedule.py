"""Which runs a sweep has, in which order, and what waits for what. Nothing is started here.

The grids come first, one run a learning rate with the first seed, and the first run of every cell
that has one rate; then, as soon as a cell's rate is picked, its other seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fairseq_peft.sweeps.cells import Cell


@dataclass(frozen=True)
class Run:
    """One run of a sweep; ``grid``: it is there to find the cell's learning rate."""

    cell: Cell
    seed: int
    rate: str
    grid: bool = False

    def __str__(self) -> str:
        return f"{self.cell} seed {self.seed} lr {self.rate}"


class Schedule:
    """The runs of a sweep, and where each stands.

    Args:
        cells: in the order in which they run.
        seeds: the first one picks the rate.
        members: how many runs of a cell may train in one process.
        is_done: whether a run was done before this sweep.

    Attributes:
        num_runs: all of them.
        succeeded: those that are done.
        failed: run -> why.
        num_skipped: how many were done before.
        not_started: cell -> how many of its runs are not started, because others failed.
    """

    def __init__(
        self,
        cells: Iterable[Cell],
        seeds: list[int],
        members: int = 1,
        is_done: Callable[[Run], bool] = lambda run: False,
    ):
        self.seeds, self.members, self._is_done = seeds, members, is_done
        self.cells = list(cells)
        self.num_runs = sum(len(cell.rates) + len(seeds) - 1 for cell in self.cells)
        self.succeeded, self.failed, self.not_started = [], {}, {}
        self.num_skipped = 0
        self._first, self._others = [], []  # runs that may start, in this order
        self._grids = {}  # cell -> runs of its grid; it leaves when its rate is picked
        for cell in self.cells:
            if len(cell.rates) > 1:
                self._grids[cell] = grid_of(cell, seeds)
                self._add(self._first, self._grids[cell])
                continue
            runs = [Run(cell, seed, cell.rates[0]) for seed in seeds]
            # Members wait for one another.
            alone = 0 if members > 1 and cell.leaves_base else 1
            self._add(self._first, runs[:alone])
            self._add(self._others, runs[alone:])

    @property
    def num_done(self) -> int:
        """Runs that have ended, one way or the other."""
        return len(self.succeeded) + len(self.failed)

    def waiting(self) -> list[Run]:
        """The runs that may start now, or that others wait for."""
        return [*self._first, *self._others]

    def next(self) -> list[Run]:
        """The runs that are to start now, as one job: one, or members of one process; [] if none
        may."""
        for queue in (self._first, self._others):
            if queue:
                first = queue[0]
                most = self.members if first.cell.leaves_base else 1
                job = [run for run in queue if run.cell == first.cell][:most]
                queue[:] = [run for run in queue if run not in job]
                return job
        return []

    def ended(self, run: Run, error: str | None) -> None:
        """Take note of a run that has ended; with ``error``, it has failed."""
        if error is None:
            self.succeeded.append(run)
            return
        self.failed[run] = error
        if all(other.cell != run.cell for other in self.succeeded):
            self._stop(run.cell, grid=True)
        elif run.grid:
            self._stop(run.cell, grid=False)

    def to_pick(self) -> list[Cell]:
        """The cells whose grids are trained, so that their rates can be picked."""
        return [
            cell for cell, runs in self._grids.items() if all(run in self.succeeded for run in runs)
        ]

    def picked(self, cell: Cell, rate: str) -> None:
        """The cell's rate is found: its other seeds may start."""
        del self._grids[cell]
        self._add(self._others, [Run(cell, seed, rate) for seed in self.seeds[1:]])
        self._others.sort(key=lambda run: self.cells.index(run.cell))

    def could_not_pick(self, cell: Cell, error: str) -> None:
        """The cell's rate is found, and its run cannot take the first seed's place."""
        self.failed[Run(cell, self.seeds[0], "?")] = error
        self._stop(cell, grid=True)

    def _add(self, queue, runs):
        for run in runs:
            if self._is_done(run):
                self.num_skipped += 1
                self.succeeded.append(run)
            else:
                queue.append(run)

    def _stop(self, cell, grid):
        """Start no more runs of ``cell``; those of its grid go on unless ``grid``."""
        waiting = [run for run in (*self._first, *self._others) if run.cell == cell]
        stopped = [run for run in waiting if grid or not run.grid]
        self._first = [run for run in self._first if run not in stopped]
        self._others = [run for run in self._others if run not in stopped]
        num_stopped = len(stopped)
        if self._grids.pop(cell, None):
            num_stopped += len(self.seeds) - 1
        self.not_started[cell] = self.not_started.get(cell, 0) + num_stopped


def grid_of(cell: Cell, seeds: list[int]) -> list[Run]:
    """The runs that find the rate of a cell with several."""
    return [Run(cell, seeds[0], rate, grid=True) for rate in cell.rates]

"""Cells x seeds, several runs at once, each cell's learning rate picked on valid.

``Sweep`` knows what runs are, where they lie, and what becomes of them; in which order they run is
the ``schedule``'s, and how they are started the ``launcher``'s.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.report import runs as report_runs
from fairseq_peft.runs import lock, log, plan
from fairseq_peft.sweeps import check, finetune
from fairseq_peft.sweeps.bases import is_folder
from fairseq_peft.sweeps.cells import Cell
from fairseq_peft.sweeps.epochs import Epochs
from fairseq_peft.sweeps.job import Job
from fairseq_peft.sweeps.knobs import Knobs, command
from fairseq_peft.sweeps.progress import Watched
from fairseq_peft.sweeps.schedule import Run, Schedule, grid_of

#: Seconds between two looks at what runs: on this machine, and behind a queue.
REST_S, QUEUE_REST_S = 0.1, 2
#: What a sweep is going to run, by data.
RECORD = "sweep.json"
PICKED_LATER = "<picked on valid>"


@dataclass
class Sweep:
    """A sweep, apart from how its runs are started.

    Attributes:
        knobs: those of every run; method, label, seed, lr and flags are the cells' and the seeds'.
        cells, seeds: what is run.
        jobs: processes at once.
        members: runs of a cell in one process.
        change: what to do with runs of another plan (``finetune.run``).
        queued: the launcher has a queue, which gets all that may start and runs ``jobs`` of it.
    """

    knobs: Knobs
    cells: list[Cell]
    seeds: list[int]
    jobs: int = 1
    members: int = 1
    change: str | None = None
    queued: bool = False

    def __post_init__(self):
        for name in ("jobs", "members"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"--{name} {getattr(self, name)} ({name.upper()}) is no number of runs: give 1 "
                    "or more."
                )
        based = [cell for cell in self.cells if cell.start == "pretrained"]
        if based and not self.knobs.base:
            raise InputError(f"The cell {based[0]} needs a base: give --base (BASE), a checkpoint.")
        if is_folder(self.knobs.base):
            self._check_folder()

    def _check_folder(self):
        """Raise InputError where only classifiers of fairseq's could run so."""
        scratch = next((cell for cell in self.cells if cell.start == "scratch"), None)
        if scratch:
            raise InputError(
                f"The cell {scratch}: runs on {self.knobs.base}, a model of Hugging Face's, start "
                "from its weights. Leave the cell out; random weights: docs/hf-models.md."
            )
        if self.members > 1:
            raise InputError(
                f"--members {self.members} (MEMBERS) is for classifiers of fairseq's, and "
                f"{self.knobs.base} is a model of Hugging Face's. Leave it out; --jobs (JOBS) runs "
                "several at once."
            )

    # Where runs are, and which knobs they have

    def knobs_of(self, run: Run, worker: str | None = None) -> Knobs:
        """The knobs of one run."""
        knobs, cell = self.knobs, run.cell
        return replace(
            knobs,
            runs=self._place(run),
            method=cell.method,
            label=cell.label,
            base=knobs.base if cell.start == "pretrained" else None,
            seed=run.seed,
            lr=run.rate,
            flags=[*cell.flags, *knobs.flags],
            worker=worker,
        )

    def _place(self, run):
        return f"{self.knobs.runs}-grid/lr{run.rate}" if run.grid else self.knobs.runs

    def log_of(self, run: Run, last: str | None = None) -> str:
        """What is told of a run, or of ``last`` of its cell."""
        name = self.knobs.data_name
        last = last or f"seed{run.seed}"
        file = f"{name}-{run.cell.start}-{run.cell.label}-{last}.log"
        return os.path.join(self._place(run), "logs", file)

    def job(self, runs: list[Run], worker: str | None) -> Job:
        logs = [self.log_of(run) for run in runs]
        log = logs[0] if len(runs) == 1 else self.log_of(replace(runs[0], grid=False), "members")
        return Job([self.knobs_of(run, worker) for run in runs], self.change, log, logs)

    def dry_run(self) -> Iterable[str]:
        """Every command, ready to paste."""
        for cell in self.cells:
            grid = grid_of(cell, self.seeds) if len(cell.rates) > 1 else []
            rate = PICKED_LATER if grid else cell.rates[0]
            for run in [*grid, *(Run(cell, seed, rate) for seed in self.seeds[bool(grid) :])]:
                yield f"# {run}"
                yield from finetune.dry_run(self.knobs_of(run))

    # Before the first run

    def schedule(self) -> Schedule:
        """All runs, with those that are done.

        Raises:
            InputError: a run of another plan is in the way, or there is no such data or base.
        """
        if self.change is None:
            for cell in self.cells:
                if len(cell.rates) > 1:
                    self._check_others(cell)
        return Schedule(self.cells, self.seeds, self.members, self._is_done)

    def _is_done(self, run):
        knobs = self.knobs_of(run)
        return finetune.is_done(knobs.folder, plan.make(command(knobs)), self.change)

    def _check_others(self, cell):
        """Raise InputError where the folder of a seed whose rate is not picked yet holds a run that
        differs in more than that."""
        for seed in self.seeds:
            knobs = self.knobs_of(Run(cell, seed, cell.rates[0]))
            before = plan.of_begun(knobs.folder)
            if before:
                now = replace(plan.make(command(knobs)), lr=before.lr)
                finetune.is_done(knobs.folder, now)

    def check(self, schedule: Schedule) -> None:
        """Raise InputError where a run of what is left to do would not start, or has no room."""
        check.places([Path(self.knobs.runs), Path(f"{self.knobs.runs}-grid")])
        waiting = schedule.waiting()
        num_bytes, largest = 0, 0
        for number, cell in enumerate(dict.fromkeys(run.cell for run in waiting)):
            run = next(run for run in waiting if run.cell == cell)
            words = command(self.knobs_of(run))
            if self.change == "redo":  # what is there will be gone
                words += ["--save-dir", f"{self.knobs_of(run).folder}.redone"]
            size = check.cell(str(cell), words, number == 0)
            num_runs = len(cell.rates) + len(self.seeds) - 1
            num_bytes += size * (num_runs if self.knobs.keep == "best" else 0)
            largest = max(largest, size)
        check.room(Path(self.knobs.runs), num_bytes + 2 * self.jobs * self.members * largest)

    def record(self) -> None:
        """Write what this sweep is going to run, for ``fairseq-peft watch``: sweep.json beside the
        runs of its data, in place of that of the sweep before."""
        name = self.knobs.data_name
        folder = Path(self.knobs.runs, name)
        folder.mkdir(parents=True, exist_ok=True)
        cells = {str(cell): list(cell.rates) for cell in self.cells}
        log.write_json(folder / RECORD, {"schema": 1, "seeds": self.seeds, "cells": cells})

    # The runs

    def run(self, schedule: Schedule, launcher, view, worker: str | None = None) -> None:
        """Run all that is left; what failed is in ``schedule`` afterwards."""
        rest_s = QUEUE_REST_S if self.queued else REST_S
        running = []  # (runs, what the launcher has returned, Watched of each run)
        try:
            while True:
                for entry in list(running):
                    self._reap(entry, running, schedule, view)
                self.pick(schedule)
                while (self.queued or len(running) < self.jobs) and (runs := schedule.next()):
                    watched = [Watched(run, self._epochs(run)) for run in runs]
                    job = launcher.start(self.job(runs, worker))
                    running.append((runs, job, watched))
                    text = ", ".join(map(str, runs))
                    view.say(f"started {text}", _all(running))
                if not running and not schedule.to_pick():
                    return
                for one in _all(running):
                    one.look()
                view.show(_all(running))
                time.sleep(rest_s)
        finally:
            for _, job, _ in running:
                job.stop()
            for _, job, _ in running:
                while job.poll() is None:
                    time.sleep(rest_s)

    def _epochs(self, run):
        knobs = self.knobs_of(run)
        return Epochs(knobs.folder, plan.make(command(knobs), files=False).max_epoch)

    def _reap(self, entry, running, schedule, view):
        runs, job, watched = entry
        errors = job.poll()
        if errors is None:
            return
        running.remove(entry)
        for run, error, one in zip(runs, errors, watched):
            one.look()
            schedule.ended(run, error)
            if error is None:
                view.say(f"done {run} {one.scores}", _all(running))
            else:
                view.say(f"failed: {run}: {error}", _all(running))

    def pick(self, schedule: Schedule) -> None:
        """Pick the rates of the grids that are trained; the picked run is the first seed's."""
        for cell in schedule.to_pick():
            grid = grid_of(cell, self.seeds)
            try:
                best = grid[report_runs.best([self.knobs_of(run).folder for run in grid])]
                self._check_rate(cell, best.rate)
                target = self.knobs_of(Run(cell, self.seeds[0], best.rate)).folder
                self._adopt(self.knobs_of(best).folder, target)
            except lock.Busy:
                continue  # another sweep puts its run there: look again
            except (InputError, OSError) as error:
                schedule.could_not_pick(cell, str(error))
            else:
                schedule.picked(cell, best.rate)

    def _check_rate(self, cell: Cell, rate: str) -> None:
        """Raise InputError where a seed was trained with another rate than the one picked now, as
        after more epochs, or with one more rate in the grid: a cell's runs have one rate."""
        if self.change == "redo":
            return
        for seed in self.seeds:
            knobs = self.knobs_of(Run(cell, seed, rate))
            before, now = plan.of_begun(knobs.folder), plan.make(command(knobs), files=False)
            if before and before.lr != now.lr:
                raise InputError(
                    f"lr {now.lr} is the best on valid now, and {knobs.folder} was trained with "
                    f"lr {before.lr}. Give --redo, which trains the cell's seeds afresh, or "
                    "another --runs (RUNS)."
                )

    def _adopt(self, source: Path, target: Path) -> None:
        """Copy the run of ``source`` to ``target``, unless it is there."""
        with finetune.owned(target):
            lock.take(target)
            there, picked = plan.read(target), plan.read(source)
            differ = plan.differences(there, picked) if there and picked else None
            if (target / "result.json").exists():
                if differ == {}:
                    return
                if self.change is None:
                    how = plan.sentence(differ) if differ else "it has no plan that says how"
                    raise InputError(
                        f"{target} holds a run of another plan than {source}, the one picked now: "
                        f"{how}. Give --redo."
                    )
            finetune.clear(target)
            finetune.copy(source, target)


def _all(running):
    return [one for _, _, watched in running for one in watched]

"""Where the runs below a folder stand, read off their files while other processes write them.

Nothing is written, and no lock is tried. A file that is missing, half written or somebody else's
says nothing; it never ends the look at the others.

What a run is (data, start, method, seed) says where it lies: ``DATA/START/METHOD/seed<k>``. Runs of
grids are those below ``RUNS-grid/lr<rate>``. What is not begun yet is known from sweep.json.
"""

from __future__ import annotations

import math
import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

from fairseq_peft import folders
from fairseq_peft.errors import InputError
from fairseq_peft.files import json_of
from fairseq_peft.runs import lock, plan
from fairseq_peft.runs.choice import Choice
from fairseq_peft.runs.log import is_count, lines_of, number, seconds_of, valid_lines
from fairseq_peft.sweeps.epochs import shown

DONE, RUNNING, FAILED, STOPPED, WAITING = "done", "running", "failed", "stopped", "waiting"
STATES = (DONE, RUNNING, FAILED, STOPPED, WAITING)
#: Bytes at the end of a log that are looked at for an error.
LOG_END = 20_000


@dataclass(frozen=True)
class Seen:
    """A run as its files show it.

    Attributes:
        data, cell, seed: what it is, by its folder; ``cell`` is start/method.
        rate: its learning rate; None where nothing says it.
        grid: whether it is there to find the cell's learning rate.
        state: one of ``STATES``; ``stopped``: begun, and nobody is at it.
        epoch, max_epoch: epochs that are over, and that there will be; 0 of the second: unknown.
        latest, best: scores on valid, after the newest validation and the best one so far; empty
            before there is one.
        tokens_per_second: of the newest epoch.
        seconds: what its epochs took so far.
        seconds_left: until its last epoch ends; 0: it should have; None: nobody knows.
        why: what went wrong, of one that has failed.
    """

    data: str
    cell: str
    seed: str
    rate: str | None = None
    grid: bool = False
    state: str = WAITING
    epoch: int = 0
    max_epoch: int = 0
    latest: str = ""
    best: str = ""
    tokens_per_second: float | None = None
    seconds: float = 0
    seconds_left: float | None = None
    why: str = ""


def look(root: Path | str) -> list[Seen]:
    """Every run below ``root`` and its grid, with those that its sweep has not begun.

    Raises:
        InputError: there is no such folder.
    """
    root = Path(root)
    grid = Path(f"{os.path.normpath(root)}-grid")
    if not root.is_dir() and not grid.is_dir():
        raise InputError(f"'{root}' is not a folder. Give the folder that holds the runs.")
    found, planned = [], []
    for folder, is_run, names in _folders(root):
        if is_run:
            found.append(_seen(folder, root, names))
        elif "sweep.json" in names:
            planned += _planned(folder, grid)
    for folder, is_run, names in _folders(grid):
        if is_run:
            found.append(replace(_seen(folder, grid, names), grid=True))
    return sorted([*found, *_waiting(planned, found)], key=_order)


def _folders(root):
    """(folder, whether it is a run's, names of its files) below ``root``."""
    for folder, subfolders, names in folders.walk(root):
        is_run = {"result.json", "run.json", plan.NAME} & {*names} or (
            folder != root and re.fullmatch(r"seed\d+", folder.name)
        )
        if is_run:
            subfolders.clear()  # its checkpoints and its adapter
        yield folder, bool(is_run), names


def _order(seen):
    number = int(seen.seed) if seen.seed.isdigit() else math.inf
    return seen.data, seen.cell, not seen.grid, seen.rate or "" if seen.grid else "", number


# One run


def _seen(folder: Path, root: Path, names: list[str]) -> Seen:
    run, planned = _object(folder / "run.json"), _object(folder / plan.NAME)
    result = _object(folder / "result.json")
    told = result or run
    *_, data, start, method, seed = ("", "", "", *folder.absolute().parts)
    if not re.fullmatch(r"seed\d+", seed):  # by hand, wherever it lies
        data, start, method = (str(told.get(key, "?")) for key in ("data", "init", "method"))
        seed = str(told.get("seed", "?"))
    given = told.get("hyperparameters")
    given = given if isinstance(given, dict) else {}
    seen = Seen(
        data,
        f"{start}/{method}",
        seed.replace("seed", ""),
        rate=_text(planned.get("lr"), given.get("lr")),
        max_epoch=_whole(planned.get("max_epoch"), given.get("max_epoch")),
    )
    seen = _with_lines(seen, folder, told or {"chosen_by": {"metric": planned.get("metric")}})
    return _with_state(seen, folder, result, names)


def _with_state(seen, folder, result, names):
    if {"best_value", "valid_accuracy"} & {*result}:
        values = [number(result, key) for key in ("best_value", "valid_accuracy")]
        value = next((value for value in values if value is not None), None)
        if not seen.best and value is not None:  # an average, or a baseline: it has no epochs
            seen = replace(seen, best=shown(_choice(result).metric, value))
        return replace(seen, state=DONE, seconds_left=0.0)
    if lock.holder(folder):
        return replace(seen, state=RUNNING)
    if "result.json" in names:
        why = "result.json is no result"
    else:
        why = _logged(folder / "train.log") or ""
    return replace(seen, state=FAILED if why else STOPPED, seconds_left=None, why=why)


def _with_lines(seen, folder, run):
    """With what metrics.jsonl says."""
    lines, written = _lines(folder / "metrics.jsonl")
    if not lines:
        return seen
    choice = _choice(run)
    values = [(value, line) for line in lines if (value := _value(choice, line)) is not None]
    best = choice.best_of(line for _, line in values)
    last = lines[-1]
    # Several validations of one epoch: the last has the epoch's seconds.
    each = [seconds_of(line) for line in {line["epoch"]: line for line in lines}.values()]
    left = None
    if seen.max_epoch:
        left = (seen.max_epoch - last["epoch"]) * sum(each) / len(each)
        left = max(left - (time.time() - written), 0)
    return replace(
        seen,
        epoch=last["epoch"],
        latest=shown(choice.metric, values[-1][0]) if values else "",
        best=shown(choice.metric, choice.value(best["subsets"])) if best else "",
        tokens_per_second=number(last.get("train"), "tokens_per_second"),
        seconds=sum(each),
        seconds_left=left,
    )


def _choice(run):
    try:
        found = Choice.of_run(run)
    except (TypeError, ValueError, AttributeError):
        return Choice()
    names = (found.metric, found.subset)
    return found if all(isinstance(name, str) for name in names) else Choice()


def _value(choice, line):
    """What chooses, of a line; None where the line does not say it, or says no number."""
    try:
        value = choice.value(line["subsets"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _lines(path):
    """(the lines of metrics.jsonl that can be read, one a validation; when it was written)."""
    try:
        written = path.stat().st_mtime
        return valid_lines(lines_of(path.read_bytes())), written
    except OSError:
        return [], 0.0


def _logged(path):
    """The error at the end of a log; None: there is none."""
    from fairseq_peft.sweeps.finetune import logged_error

    try:
        with open(path, "rb") as file:
            file.seek(max(os.path.getsize(path) - LOG_END, 0))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return None
    return logged_error(text.splitlines())


# Files that may hold anything


def _object(path):
    try:
        return _read(path.read_bytes())
    except OSError:
        return {}


def _read(content):
    """The JSON object in bytes; {} where there is none."""
    try:
        found = json_of(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _whole(*values):
    """The first that is a count; 0 where none is."""
    return next(filter(is_count, values), 0)


def _text(*values):
    """The first that is a text or a number, as text; None where none is."""
    for value in values:
        if isinstance(value, str):
            return value
        if type(value) in (int, float):
            return f"{float(value):g}" if abs(value) < 2**53 else None
    return None


# What is not begun


def _planned(folder: Path, grid: Path) -> list[Seen]:
    """The runs of the sweep that has left its sweep.json in ``folder``."""
    told = _object(folder / "sweep.json")
    seeds, cells = told.get("seeds"), told.get("cells")
    if not isinstance(seeds, list) or not isinstance(cells, dict):
        return []
    found = []
    for cell, rates in cells.items():
        rates = rates if isinstance(rates, list) else []
        name = folder.name
        if len(rates) > 1 and seeds:
            first = str(seeds[0])
            found += [Seen(name, cell, first, str(rate), grid=True) for rate in rates]
        rate = str(rates[0]) if len(rates) == 1 else None
        found += [Seen(name, cell, str(seed), rate) for seed in seeds]
    return found


def _waiting(planned, found):
    """Those of ``planned`` that are not among ``found``."""
    there = {_key(seen) for seen in found}
    return [seen for seen in planned if _key(seen) not in there]


def _key(seen):
    rate = None
    if seen.grid:
        try:
            rate = float(seen.rate)
        except (TypeError, ValueError):
            rate = seen.rate
    return seen.data, seen.cell, seen.seed, rate


# The whole


def counted(runs: list[Seen]) -> dict[str, int]:
    """State -> how many runs are in it."""
    return {state: sum(seen.state == state for seen in runs) for state in STATES}


def seconds_left(runs: list[Seen]) -> float | None:
    """Until all runs are done, by the mean of those that are; None: nobody knows."""
    running = [seen for seen in runs if seen.state == RUNNING]
    waiting = sum(seen.state == WAITING for seen in runs)
    if not running:
        return None if waiting else 0.0
    left = [seen.seconds_left for seen in running]
    done = [seen.seconds for seen in runs if seen.state == DONE and seen.seconds]
    if None in left or (waiting and not done):
        return None
    mean = sum(done) / len(done) if done else 0.0
    return max(max(left), (sum(left) + waiting * mean) / len(running))

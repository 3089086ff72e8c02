"""The score on test against a number that whole sets of runs differ in, such as updates."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.report import drawing
from fairseq_peft.report.merit import Score, score_of
from fairseq_peft.report.rows import build_rows
from fairseq_peft.report.runs import find_runs

logger = logging.getLogger(__name__)

#: (init, method) -> x -> row of the report; lowest x first.
Series = dict[tuple[str, str], dict[float, dict]]


def read_series(folders: dict[float, Path]) -> Series:
    """The rows of the runs below each folder, told apart by x.

    Raises:
        InputError: a folder without runs, or runs on another data set, or of another kind of
            task, than the rest.
    """
    found: Series = {}
    first = None
    for x, folder in sorted(folders.items()):
        runs, left_out = find_runs(folder)
        for one in left_out:
            if one.finished:
                logger.warning("left out: %s (%s)", one.path, one.reason)
        for row in build_rows(runs):
            first = first or (row, folder)
            for what, name in (("data", "data set"), ("kind", "kind of task")):
                if row[what] != first[0][what]:
                    raise InputError(
                        f"'{folder}' has runs on {row[what]}, and '{first[1]}' on "
                        f"{first[0][what]}; their scores do not compare. Give folders with runs on "
                        f"one {name}."
                    )
            if score_of([row]).mean(row) is not None:
                found.setdefault((row["init"], row["method"]), {})[x] = row
    if not found:
        raise InputError(
            f"no run below {', '.join(map(str, folders.values()))} has a score on test"
        )
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def score_in(series: Series) -> Score:
    """What the runs are scored by."""
    return score_of([row for rows in series.values() for row in rows.values()])


def label(init: str, method: str) -> str:
    return method if init == "baseline" else f"{method}, {init}"


def table(series: Series, x_label: str) -> list[str]:
    """Lines of Markdown: a row an x, the score on test with the spread over seeds."""
    score = score_in(series)
    numbers = sorted({x for rows in series.values() for x in rows})
    lines = [[x_label, *(label(*key) for key in series)], ["---:"] * (len(series) + 1)]
    lines += [[f"{x:g}", *(_cell(rows.get(x), score) for rows in series.values())] for x in numbers]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _cell(row: dict | None, score: Score) -> str:
    if row is None:
        return "-"
    return score.text(row) + (score.spread(row) is not None) * f" ({row['num_seeds']})"


#: The axis is logarithmic from this ratio of the largest number to the smallest.
LOG_FROM = 50


def draw(series: Series, x_label: str, out: Path) -> list[Path]:
    """A line for what is in several folders, a level for what is in one; PNG and SVG at ``out``."""
    score = score_in(series)
    with drawing.settings():
        figure, (axis,) = drawing.figure(7.2, 4.0)
        for n, (key, rows) in enumerate(series.items()):
            colour, marker, line = drawing.style(n)
            text = {"color": colour, "label": label(*key)}
            means = [score.mean(row) for row in rows.values()]
            spreads = [
                math.nan if (sd := score.spread(row)) is None else sd for row in rows.values()
            ]
            if len(rows) == 1:
                axis.axhline(means[0], ls=line, lw=1.5, **text)
            else:
                axis.errorbar(list(rows), means, spreads, fmt=marker, ls="-", capsize=3, **text)
        many = any(row["num_seeds"] > 1 for rows in series.values() for row in rows.values())
        numbers = sorted({number for rows in series.values() for number in rows})
        if numbers[0] > 0 and numbers[-1] >= LOG_FROM * numbers[0]:
            axis.set_xscale("log")
            axis.set_xticks(numbers, [f"{number:,g}" for number in numbers])
            axis.set_xticks([], minor=True)
            x_label += " (log scale)"
        axis.set_xlabel(x_label)
        axis.set_ylabel(score.name + score.unit + " (mean ± sd over seeds)" * many)
        first = next(iter(series.values()))
        drawing.title(figure, next(iter(first.values()))["data"])
        drawing.legend_beside(figure, axis)
        out.parent.mkdir(parents=True, exist_ok=True)
        return drawing.save(figure, out.parent, out.stem)

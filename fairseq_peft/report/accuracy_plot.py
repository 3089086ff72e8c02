"""Accuracy against a number that whole sets of runs differ in, such as updates of pre-training."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.report import drawing
from fairseq_peft.report.rows import build_rows
from fairseq_peft.report.runs import find_runs

logger = logging.getLogger(__name__)

#: (init, method) -> x -> row of the report; lowest x first.
Series = dict[tuple[str, str], dict[float, dict]]


def read_series(folders: dict[float, Path]) -> Series:
    """The rows of the runs below each folder, told apart by x.

    Raises:
        InputError: a folder without runs, or runs on another data set than the rest.
    """
    found: Series = {}
    first = None
    for x, folder in sorted(folders.items()):
        runs, left_out = find_runs(folder)
        for one in left_out:
            if one.finished:
                logger.warning("left out: %s (%s)", one.path, one.reason)
        for row in build_rows(runs):
            first = first or (row["data"], folder)
            if row["data"] != first[0]:
                raise InputError(
                    f"'{folder}' has runs on {row['data']}, and '{first[1]}' on {first[0]}; their "
                    "accuracies do not compare. Give folders with runs on one data set."
                )
            if row["test_accuracy_mean"] is not None:
                found.setdefault((row["init"], row["method"]), {})[x] = row
    if not found:
        raise InputError(
            f"no run below {', '.join(map(str, folders.values()))} has an accuracy on test"
        )
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def label(init: str, method: str) -> str:
    return method if init == "baseline" else f"{method}, {init}"


def table(series: Series, x_label: str) -> list[str]:
    """Lines of Markdown: a row an x, test accuracy in per cent with the spread over seeds."""
    numbers = sorted({x for rows in series.values() for x in rows})
    lines = [[x_label, *(label(*key) for key in series)], ["---:"] * (len(series) + 1)]
    lines += [[f"{x:g}", *(_cell(rows.get(x)) for rows in series.values())] for x in numbers]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _cell(row: dict | None) -> str:
    if row is None:
        return "-"
    spread = row["test_accuracy_sd"]
    text = f"{100 * row['test_accuracy_mean']:.2f}"
    return text if spread is None else f"{text} ± {100 * spread:.2f} ({row['num_seeds']})"


#: The axis is logarithmic from this ratio of the largest number to the smallest.
LOG_FROM = 50


def draw(series: Series, x_label: str, out: Path) -> list[Path]:
    """A line for what is in several folders, a level for what is in one; PNG and SVG at ``out``."""
    with drawing.settings():
        figure, (axis,) = drawing.figure(7.2, 4.0)
        for n, (key, rows) in enumerate(series.items()):
            colour, marker, line = drawing.style(n)
            text = {"color": colour, "label": label(*key)}
            means = [100 * row["test_accuracy_mean"] for row in rows.values()]
            spreads = [_or_nan(row["test_accuracy_sd"]) for row in rows.values()]
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
        axis.set_ylabel("test accuracy %" + " (mean ± sd over seeds)" * many)
        first = next(iter(series.values()))
        drawing.title(figure, next(iter(first.values()))["data"])
        drawing.legend_beside(figure, axis)
        out.parent.mkdir(parents=True, exist_ok=True)
        return drawing.save(figure, out.parent, out.stem)


def _or_nan(fraction: float | None) -> float:
    """In per cent; NaN, for which no bar is drawn, where one seed has no spread."""
    return math.nan if fraction is None else 100 * fraction

"""Pictures of the report, PNG and SVG: what chose the checkpoint an epoch, accuracy a parameter,
training loss, and what was taken for what."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from fairseq_peft.report import drawing
from fairseq_peft.report.drawing import BLACK, BLUE, GREY, ORANGE
from fairseq_peft.report.footer import by_data, runs_of
from fairseq_peft.report.merit import WRITTEN, score_of
from fairseq_peft.report.references import BASELINE, FULL
from fairseq_peft.report.runs import Run
from fairseq_peft.report.stats import mean
from fairseq_peft.scores import is_share

SUBSETS = {"test": (BLUE, "o", "-"), "valid": (ORANGE, "^", "--")}
X_AXES = {"epoch": "epoch", "num_updates": "update"}
MAX_COLUMNS = 5  # of panels beside each other
PANEL_LETTERS = 26  # of a title
MAX_CLASSES = 20  # more cells than this say nothing in a picture
MAX_NUMBERS = 6  # and more than this leave no room for a number


def draw_all(runs: list[Run], rows: list[dict], out: Path) -> list[Path]:
    """Draw every picture that the runs have figures for.

    Returns:
        The files ``<data>-accuracy`` (or whatever metric chose the checkpoints), ``-parameters``,
        ``-loss`` and ``-confusion``, PNG and SVG.
    """
    written, groups = [], by_data(rows)
    for data, stem in _file_names(groups).items():
        my_rows = groups[data]
        mine = [run.result for run in runs_of(my_rows, runs)]
        with drawing.settings():
            for name, figure in (
                *curve_figures(data, mine, my_rows).items(),
                ("parameters", parameters_figure(data, my_rows)),
                ("loss", loss_figure(data, mine, my_rows)),
                ("confusion", confusion_figure(data, my_rows)),
            ):
                if figure is not None:
                    written += drawing.save(figure, out, f"{stem}-{_file_name(name)}")
    return written


def _file_names(texts) -> dict[str, str]:
    """Text -> ``_file_name`` of it; from the second of those that would have the same one, or the
    same without regard to case, with a part of its digest."""
    found, taken = {}, set()
    for text in texts:
        safe = _file_name(text)
        if safe.casefold() in taken:
            safe = f"{safe}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
        found[text] = safe
        taken.add(safe.casefold())
    return found


def _file_name(text: str) -> str:
    """``text`` as the name of a file, also where names can have ASCII alone (LC_ALL=C)."""
    safe = re.sub(r"[^\w.-]+", "_", text)
    try:
        os.fsencode(safe)
    except UnicodeEncodeError:
        safe = safe.encode("ascii", "backslashreplace").decode().replace("\\", "_")
    return safe


def curve_figures(data: str, results: list[dict], rows: list[dict]) -> dict:
    """Metric -> a figure of the rows whose checkpoints it has chosen."""
    groups = {}
    for row in rows:
        if row["init"] != BASELINE:
            metric = (row["metric"] or "accuracy").split()[0]  # without the name of its split
            groups.setdefault(metric, []).append(row)
    return {metric: curve_figure(data, results, part, metric) for metric, part in groups.items()}


def curve_figure(data: str, results: list[dict], rows: list[dict], metric: str = "accuracy"):
    """A metric against epochs, a panel for each method and start: a thin line a seed, a thick one
    for the mean, a ring at each seed's choice; grey is full fine-tuning of the same start.

    Against updates, where a run is validated within an epoch.
    """
    key = "accuracy" if metric == "accuracy" else "value"  # as earlier versions wrote it
    scale = 100 if is_share(metric) else 1
    groups = [([r for r in results_of(row, results) if r["curve"]], row) for row in rows]
    at = x_axis([result for group, _ in groups for result in group])
    panels = []  # (row, its results, subset -> a curve for each seed)
    for group, row in groups:
        curves = {s: [curve_of(r, f"{s}_{key}", scale, at) for r in group] for s in SUBSETS}
        if any(curve for each in curves.values() for curve in each):
            panels.append((row, group, curves))
    if not panels:
        return None
    full = {row["init"]: curves["test"] for row, _, curves in panels if row["method"] == FULL}
    figure, axes, lowest = _panels(len(panels), width=2.4, height=2.1)
    for axis, (row, group, curves) in zip(axes, panels):
        if row["method"] != FULL and row["init"] in full:
            axis.plot(
                *_points(mean_curve(full[row["init"]])), color=GREY, lw=2.5, label=f"{FULL}, test"
            )
        for subset, (colour, marker, style) in SUBSETS.items():
            alike = {"color": colour, "ls": style}
            if len(curves[subset]) > 1:
                for curve in curves[subset]:
                    axis.plot(*_points(curve), lw=0.7, alpha=0.6, **alike)
            average = mean_curve(curves[subset])
            if average:
                axis.plot(*_points(average), marker=marker, ms=4, lw=1.8, label=subset, **alike)
        best = {"epoch": "best_epoch", "num_updates": "best_update"}[at]
        chosen = [
            (r[best], curve[r[best]])
            for r, curve in zip(group, curves["valid"])
            if r.get(best) in curve
        ]
        ring = {"marker": "o", "ms": 8, "mfc": "none", "mec": BLACK, "ls": "none"}
        if chosen:
            axis.plot(*zip(*chosen), label="chosen", **ring)
        drawing.baselines(axis, results, f"test_{metric}", scale)
        axis.set_title(_name(row), fontsize=9)
        _epoch_axis(axis)
        axis.set_xlabel(X_AXES[at] if axis in lowest else "")
    name = WRITTEN.get(metric, metric)
    figure.supylabel(f"{name} %" if scale == 100 else name, fontsize=10)
    many = any(len(curves["test"]) > 1 for *_, curves in panels)
    drawing.title(figure, f"{data}: {name} after each {X_AXES[at]}" + " (thin: each seed)" * many)
    entries = {}  # of all panels: that of full fine-tuning has no grey line
    for axis in axes:
        entries.update((label, line) for line, label in zip(*axis.get_legend_handles_labels()))
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=5)
    return figure


def x_axis(results: list[dict]) -> str:
    """What tells the points of the curves apart: their epoch, unless one has several."""
    within = any(
        len({point["epoch"] for point in result["curve"]}) < len(result["curve"])
        for result in results
    )
    return "num_updates" if within else "epoch"


def confusion_figure(data: str, rows: list[dict]):
    """A confusion matrix a method and start: of the rows of each class (down), the share that was
    given each class (across), over all seeds."""
    rows = [r for r in rows if r["classes"] and any(one["predicted_as"] for one in r["classes"])]
    if not rows:
        return None
    names = [one["class"] for one in rows[0]["classes"]]
    rows = [row for row in rows if {one["class"] for one in row["classes"]} == set(names)]
    if len(names) > MAX_CLASSES:
        return None
    with_numbers = len(names) <= MAX_NUMBERS
    figure, axes, _ = _panels(len(rows), width=2.2, height=2.2)
    for axis, row in zip(axes, rows):
        given = {one["class"]: one["predicted_as"] for one in row["classes"]}
        shares = [
            [100 * given[true].get(name, 0) / (sum(given[true].values()) or 1) for name in names]
            for true in names
        ]
        image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        for y, line in enumerate(shares if with_numbers else ()):
            for x, share in enumerate(line):
                colour = "white" if share > 70 else BLACK
                axis.text(x, y, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=8)
        axis.set_title(_name(row), fontsize=9)
        short = [drawing.cut(name, 12) for name in names]
        axis.set_xticks(range(len(names)), short, rotation=90, fontsize=7)
        axis.set_yticks(range(len(names)), short, fontsize=7)
        axis.grid(False)
    figure.colorbar(image, ax=axes, label="% of the rows of a class", shrink=0.6)
    figure.supxlabel("class given", fontsize=10)
    figure.supylabel("class of the data", fontsize=10)
    drawing.title(figure, f"{data}: what was taken for what, on test")
    return figure


def _panels(number: int, width: float, height: float):
    """A figure, as many axes as asked for, at most MAX_COLUMNS beside each other, and the lowest of
    each column."""
    columns = min(number, MAX_COLUMNS)
    lines = -(-number // columns)
    columns = -(-number // lines)  # seven are four and three, not five and two
    figure, axes = drawing.figure(
        max(columns * width, 5) + 0.6, lines * height + 1, columns=columns, rows=lines
    )
    for axis in axes[number:]:
        axis.remove()
    lowest = axes[max(number - columns, 0) : number]
    for axis in lowest:  # some are above an empty place
        axis.tick_params(labelbottom=True)
    return figure, axes[:number], lowest


def _name(row: dict) -> str:
    """What a panel is called, no wider than it."""
    init, method = row["init"], row["method"]
    name = method if init in ("pretrained", BASELINE) else f"{method}, {init}"
    return drawing.wrapped(name, PANEL_LETTERS)


def parameters_figure(data: str, rows: list[dict]):
    """The score on test (mean and standard deviation over seeds) against trainable parameters."""
    score = score_of(rows)
    points = [
        row
        for row in rows
        if row["init"] != BASELINE and row["trainable_parameters"] and score.mean(row) is not None
    ]
    if not points:
        return None
    figure, (axis,) = drawing.figure(7.2, 4.0)
    styles = drawing.styles(points)
    order = sorted(points, key=lambda row: -score.rank(row))
    for row in order:
        colour, marker, _ = styles[row["method"]]
        drawn = axis.errorbar(
            row["trainable_parameters"],
            score.mean(row),
            yerr=score.spread(row),
            color=colour,
            marker=marker,
            markersize=8,
            # hollow: not from the pre-trained model
            markerfacecolor=colour if row["init"] == "pretrained" else "white",
            markeredgecolor=colour,
            markeredgewidth=1.5,
            ls="none",
            capsize=3,
        )
        drawn[0].set_label(f"{row['method']}, {row['init']}")  # the marker alone, not its bar
    drawing.baselines(axis, rows, f"{score.key}_mean", score.factor)
    axis.set_xscale("log")
    smallest, largest = (f(row["trainable_parameters"] for row in points) for f in (min, max))
    axis.set_xlim(smallest / 2, largest * 2)  # room for markers, and a decade's tick in sight
    axis.set_xlabel("trainable parameters, head included (log scale)")
    axis.set_ylabel(f"{score.name}{score.unit}")
    spread = "mean ± sd over seeds" if any(r["num_seeds"] > 1 for r in points) else "one seed"
    name = score.name.removeprefix("test ")
    drawing.title(figure, f"{data}: {name} against trainable parameters ({spread})")
    drawing.legend_beside(figure, axis)
    return figure


def loss_figure(data: str, results: list[dict], rows: list[dict]):
    """Training loss against epochs, the mean over seeds, one line a method and initialisation."""
    rows = [row for row in rows if row["init"] != BASELINE]
    figure, (axis,) = drawing.figure(7.2, 4.0)
    styles, drawn, several_seeds = drawing.styles(rows), False, False
    at = x_axis([r for row in rows for r in results_of(row, results)])
    for row in rows:
        average = mean_curve([curve_of(r, "train_loss", 1, at) for r in results_of(row, results)])
        if not average:
            continue
        drawn, several_seeds = True, several_seeds or row["num_seeds"] > 1
        colour, marker, style = styles[row["method"]]
        axis.plot(
            *_points(average),
            color=colour,
            ls=style,
            marker=marker,
            markerfacecolor=colour if row["init"] == "pretrained" else "white",
            lw=1.8,
            label=f"{row['method']}, {row['init']}",
        )
    if not drawn:
        return None
    _epoch_axis(axis)
    axis.set_xlabel(X_AXES[at])
    axis.set_ylabel("training loss (nats)")
    spread = "mean over seeds" if several_seeds else "one seed"
    drawing.title(figure, f"{data}: training loss ({spread})")
    drawing.legend_beside(figure, axis)
    return figure


def results_of(row: dict, results: list[dict]) -> list[dict]:
    return [r for r in results if (r["init"], r["method"]) == (row["init"], row["method"])]


def curve_of(result: dict, key: str, scale: float, at: str) -> dict[int, float]:
    """``at`` (epoch or updates) -> value, without the points that have none."""
    return {
        point[at]: scale * point[key]
        for point in result["curve"]
        if point.get(key) is not None and point.get(at) is not None
    }


def mean_curve(curves: list[dict[int, float]]) -> dict[int, float]:
    """Mean over seeds at the places that all of them have."""
    if not curves:
        return {}
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    return {x: mean([curve[x] for curve in curves]) for x in common}


def _points(curve: dict[int, float]) -> tuple[list[int], list[float]]:
    return list(curve), list(curve.values())


def _epoch_axis(axis) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))

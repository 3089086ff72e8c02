"""Pictures of the report, PNG and SVG: accuracy an epoch, accuracy a parameter, training loss."""

from __future__ import annotations

import re
from pathlib import Path

from fairseq_peft.report import drawing
from fairseq_peft.report.drawing import BLUE, GREEN, RED, SETTINGS
from fairseq_peft.report.rows import FULL, HF_FULL
from fairseq_peft.report.runs import Run
from fairseq_peft.report.stats import mean

# full fine-tuning in the figure of accuracy against epochs
FULL_STYLES = {  # (init, method) -> (label, colour, marker, line style)
    ("pretrained", FULL): ("pretrained", BLUE, "o", "-"),
    ("scratch", FULL): ("scratch", RED, "s", "--"),
    ("pretrained", HF_FULL): ("Hugging Face", GREEN, "^", "-."),
}


def draw_all(runs: list[Run], rows: list[dict], out: Path) -> list[Path]:
    """Draw every picture that the runs have figures for.

    Returns:
        The files: ``<data>-accuracy``, ``<data>-parameters`` and ``<data>-loss``, .png and .svg.
    """
    import matplotlib

    written = []
    for data in dict.fromkeys(row["data"] for row in rows):
        mine = [run.result for run in runs if run.result["data"] == data]
        my_rows = [row for row in rows if row["data"] == data]
        with matplotlib.rc_context(SETTINGS):
            for name, figure in (
                ("accuracy", accuracy_figure(data, mine)),
                ("parameters", parameters_figure(data, my_rows)),
                ("loss", loss_figure(data, mine, my_rows)),
            ):
                if figure is not None:
                    safe = re.sub(r"[^\w.-]+", "_", f"{data}-{name}")
                    written += drawing.save(figure, out, safe)
    return written


def accuracy_figure(data: str, results: list[dict]):
    """Full fine-tuning: accuracy against epochs, a thin line a seed, a thick one for the mean."""
    groups = {
        key: [r for r in results if (r["init"], r["method"]) == key and r["curve"]]
        for key in FULL_STYLES
    }
    groups = {key: group for key, group in groups.items() if group}
    if not groups:
        return None
    figure, axes = drawing.figure(7.2, 3.7, columns=2)
    for axis, subset in zip(axes, ("valid", "test")):
        for key, group in groups.items():
            name, colour, marker, style = FULL_STYLES[key]
            curves = [_curve(result, f"{subset}_accuracy", 100) for result in group]
            for curve in curves:
                axis.plot(*_points(curve), color=colour, ls=style, lw=0.8, alpha=0.6)
            average = _average(curves)
            if average:
                many = len(group) > 1
                label = f"{name}, mean of {len(group)} seeds" if many else f"{name}, 1 seed"
                axis.plot(
                    *_points(average), color=colour, ls=style, marker=marker, lw=2, label=label
                )
        drawing.baselines(axis, results, f"{subset}_accuracy")
        axis.set_title(f"on {subset}")
        _epoch_axis(axis)
    axes[0].set_ylabel("accuracy %")
    many = any(len(group) > 1 for group in groups.values())
    figure.suptitle(f"{data}: full fine-tuning" + " (thin: each seed)" * many)
    # the panel with more entries: without a test split the right one may be empty
    entries = [axis.get_legend_handles_labels() for axis in axes]
    handles, labels = max(entries, key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 2))
    return figure


def parameters_figure(data: str, rows: list[dict]):
    """Accuracy on test (mean and standard deviation over seeds) against trainable parameters."""
    points = [
        row
        for row in rows
        if row["init"] != "baseline"
        and row["trainable_parameters"]
        and row["test_accuracy_mean"] is not None
    ]
    if not points:
        return None
    figure, (axis,) = drawing.figure(7.2, 4.0)
    styles = drawing.styles(points)
    order = sorted(points, key=lambda row: -row["test_accuracy_mean"])
    for row in order:
        colour, marker, _ = styles[row["method"]]
        drawn = axis.errorbar(
            row["trainable_parameters"],
            100 * row["test_accuracy_mean"],
            yerr=None if row["test_accuracy_sd"] is None else 100 * row["test_accuracy_sd"],
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
    drawing.baselines(axis, rows, "test_accuracy_mean")
    axis.set_xscale("log")
    smallest, largest = (f(row["trainable_parameters"] for row in points) for f in (min, max))
    axis.set_xlim(smallest / 2, largest * 2)  # room for markers, and a decade's tick in sight
    axis.set_xlabel("trainable parameters, head included (log scale)")
    axis.set_ylabel("test accuracy %")
    spread = "mean ± sd over seeds" if any(r["num_seeds"] > 1 for r in points) else "one seed"
    figure.suptitle(f"{data}: accuracy against trainable parameters ({spread})")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center")
    return figure


def loss_figure(data: str, results: list[dict], rows: list[dict]):
    """Training loss against epochs, the mean over seeds, one line a method and initialisation."""
    figure, (axis,) = drawing.figure(7.2, 4.0)
    rows = [row for row in rows if row["init"] != "baseline"]
    styles, drawn = drawing.styles(rows), False
    for row in rows:
        group = [r for r in results if (r["init"], r["method"]) == (row["init"], row["method"])]
        average = _average([_curve(result, "train_loss") for result in group])
        if not average:
            continue
        drawn = True
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
    axis.set_ylabel("training loss (nats)")
    figure.suptitle(f"{data}: training loss (mean over seeds)")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center")
    return figure


def _curve(result: dict, key: str, scale: float = 1) -> dict[int, float]:
    """epoch -> value, without the epochs that have none."""
    return {
        point["epoch"]: scale * point[key] for point in result["curve"] if point[key] is not None
    }


def _average(curves: list[dict[int, float]]) -> dict[int, float]:
    """Mean over seeds at the epochs that all of them have."""
    if not curves:
        return {}
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    return {epoch: mean([curve[epoch] for curve in curves]) for epoch in common}


def _points(curve: dict[int, float]) -> tuple[list[int], list[float]]:
    return list(curve), list(curve.values())


def _epoch_axis(axis) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("epoch")

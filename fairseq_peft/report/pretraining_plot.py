"""Loss against updates, several pre-trainings in one picture."""

from __future__ import annotations

from pathlib import Path

from fairseq_peft.report import drawing
from fairseq_peft.report.pretraining import points

# Okabe and Ito's colours, told apart by every kind of colour blindness and by their grey values.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def plot_curves(curves: dict[str, list[dict]], out: Path) -> list[Path]:
    """``out`` as PNG and SVG: thin lines for train, thick ones with markers for valid."""
    matplotlib = drawing.load_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for i, (name, rows) in enumerate(curves.items()):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        axes.plot(*points(rows, "train_loss"), color=colour, linewidth=1, alpha=0.6)
        updates, losses = points(rows, "valid_loss")
        axes.plot(updates, losses, color=colour, marker=marker, linewidth=2, markersize=5)
        if losses:
            axes.annotate(
                f"{losses[-1]:.2f}", (updates[-1], losses[-1]), (6, 0),
                textcoords="offset points", va="center", color=colour,
            )  # fmt: skip
        axes.plot([], [], color=colour, marker=marker, linewidth=2, label=name)
        for row, after in zip(rows, rows[1:]):
            if row["phase"] != after["phase"]:
                axes.axvline(row["num_updates"], color=colour, linewidth=0.8, linestyle=":")
    axes.plot([], [], color="0.35", linewidth=2, label="valid (thick)")
    axes.plot([], [], color="0.35", linewidth=1, alpha=0.6, label="train (thin)")
    axes.set_xlabel("updates")
    axes.set_ylabel("masked-LM loss (nats per masked token)")
    axes.grid(color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.06)
    axes.legend(frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    written = [out.with_suffix(".png"), out.with_suffix(".svg")]
    with matplotlib.rc_context({"svg.hashsalt": "fairseq_peft"}):
        for path in written:
            drawing.picture(figure, path, dpi=150)
    return written

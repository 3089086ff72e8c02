"""What the pictures of reports share: colours, a figure without a display, files, baselines.

Colours are Okabe and Ito's, which colour-blind readers tell apart; markers and line styles differ
as well, so that a grey print reads too.
"""

from __future__ import annotations

import contextlib
import os
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.files import whole
from fairseq_peft.report.references import FULL

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK, GREY = "#CC79A7", "#56B4E9", "#000000", "#bbbbbb"
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK)
# As many as have no common factor with the colours: no pair comes twice among 91 methods.
MARKERS = ("o", "^", "D", "v", "P", "X", "*", "s", "p", "<", ">", "h", "d")
LINES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (7, 2)), (0, (3, 1, 1, 1)), ":")
LEGEND_LINE = 0.22  # inches
LEGEND_COLUMNS = 28  # letters; a longer name takes two lines
TITLE_LETTERS = 11  # an inch of the figure's width
SETTINGS = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "figure.titlesize": 11,
    "legend.frameon": False,
    "legend.handlelength": 3.2,  # long enough to tell the line styles apart
    "lines.markersize": 6,
    "savefig.dpi": 200,
    "svg.hashsalt": "fairseq_peft",  # the same runs give the same file
}


def check_out(path: Path) -> None:
    """Raise InputError unless ``path`` is a name for a picture, of which both kinds are written."""
    if path.suffix not in (".png", ".svg"):
        raise InputError(f"--out is {path}. Expected a name that ends in .png or .svg.")


def load_matplotlib():
    """The module. MPLBACKEND, which notebooks set for all that they start, has no say: pictures go
    to files, and the import ends in an error where the backend that it names is not installed."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return matplotlib


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """Within it, figures look like those of the report."""
    with load_matplotlib().rc_context(SETTINGS):
        yield


def figure(width: float, height: float, columns: int = 1, rows: int = 1):
    """A figure of its own and its axes, row after row: no pyplot, so no display and no global
    state."""
    load_matplotlib()
    from matplotlib.figure import Figure

    new = Figure(figsize=(width, height), layout="constrained")
    axes = new.subplots(rows, columns, sharex=rows > 1, sharey=True, squeeze=False)
    return new, list(axes.flat)


@contextlib.contextmanager
def without_glyph_warnings() -> Iterator[None]:
    """Within it, matplotlib does not warn of signs that its font lacks (emoji, Chinese), which it
    draws as boxes, nor of scripts that it cannot set."""
    with warnings.catch_warnings():
        for message in (r"Glyph \d+ ", "Matplotlib currently does not support"):
            warnings.filterwarnings("ignore", message, UserWarning)
        yield


def save(figure, out: Path, name: str) -> list[Path]:
    """``figure`` as NAME.png and NAME.svg in ``out``, without dates; the two paths."""
    paths = [out / f"{name}.{kind}" for kind in ("png", "svg")]
    for path in paths:
        picture(figure, path)
    return paths


def picture(figure, path: Path, **options) -> None:
    """Write ``figure`` to ``path``, a .png or .svg without a date: there whole, or not at all.

    Args:
        options: of ``savefig``.
    """
    kind = path.suffix[1:]
    with whole(path) as temporary, without_glyph_warnings():
        figure.savefig(
            temporary, format=kind, metadata={"Date": None} if kind == "svg" else None, **options
        )


def wrapped(text: str, columns: int) -> str:
    """``text`` in lines of at most so many letters."""
    return textwrap.fill(text, max(columns, 1))


def title(figure, text: str) -> None:
    """The figure's title, in as many lines as its width asks for."""
    figure.suptitle(wrapped(text, int(TITLE_LETTERS * figure.get_figwidth())))


def legend_beside(figure, axis) -> None:
    """A legend to the right of the figure's only axes; the figure grows until it has room."""
    lines, names = axis.get_legend_handles_labels()
    names = [wrapped(name, LEGEND_COLUMNS) for name in names]
    num_lines = sum(name.count("\n") + 1 for name in names)
    figure.set_figheight(max(figure.get_figheight(), LEGEND_LINE * (num_lines + 3)))
    figure.legend(lines, names, loc="outside right center")


def cut(name: str, limit: int) -> str:
    return name if len(name) <= limit else name[: limit - 2] + ".."


def styles(rows: list[dict]) -> dict[str, tuple]:
    """method -> (colour, marker, line style): full fine-tuning first, then as in the rows."""
    methods = sorted(dict.fromkeys(row["method"] for row in rows), key=lambda m: m != FULL)
    return {method: style(n) for n, method in enumerate(methods)}


def style(n: int) -> tuple:
    """Colour, marker and line style of the n-th method; the first is full fine-tuning.

    Colours begin again after seven, line styles one further each time: a colour that comes again
    has another.
    """
    line = LINES[(n + n // len(COLOURS)) % len(LINES)]
    return COLOURS[n % len(COLOURS)], MARKERS[n % len(MARKERS)], line


def baselines(axis, records: list[dict], key: str, scale: float = 100) -> None:
    """A dotted horizontal line for each baseline that has the figure, as wide as the axes."""
    for record in records:
        if record["init"] == "baseline" and record.get(key) is not None:
            axis.axhline(scale * record[key], color=BLACK, ls=":", lw=1.5, label=record["method"])

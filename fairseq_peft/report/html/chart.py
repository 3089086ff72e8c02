"""What all figures of the page are made of: SVG by Vega-Lite's grammar, drawn by vl-convert without
a network.

Colours are names of CSS (``var(--ink)``), so that one picture serves light, dark and print. Every
point carries its values as ``aria-label``: a screen reader reads them, and page.js shows them under
the mouse, the finger and the arrow keys. ``values`` is the same as a table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fairseq_peft.errors import InputError

MAX_LINES = 7  # as many as there are colours
SIZE = (400, 300)  # of a picture, in pixels
COLOURS = [f"var(--c{n})" for n in range(1, MAX_LINES + 1)]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right"]
INK, FAINT, GRID = "var(--ink)", "var(--faint)", "var(--grid)"


@dataclass(frozen=True)
class Chart:
    """A picture with its values.

    Attributes:
        title: what is against what.
        svg: the drawing.
        note: what one must know to read it.
        head, values: the same as a table.
        legend: (colour, shape, name) of each kind of point.
    """

    title: str
    svg: str
    note: str = ""
    head: list[str] = field(default_factory=list)
    values: list[list[str]] = field(default_factory=list)
    legend: list[tuple[str, str, str]] = field(default_factory=list)


def load() -> Callable[[dict], str]:
    """A function from a specification of Vega-Lite to SVG.

    Raises:
        InputError: vl-convert is not installed.
    """
    try:
        import vl_convert
    except ImportError:
        raise InputError(
            "--html needs vl-convert-python and jinja2, which are not installed here. "
            "Install them with: pip install 'fairseq-peft[html]'"
        ) from None
    return lambda spec: vl_convert.vegalite_to_svg(spec, vl_version="v5.20")


def config(size: int) -> dict:
    """The look of all figures: letters of ``size``, hairlines, no frame."""
    quiet = {"labelColor": FAINT, "titleColor": FAINT, "labelFontSize": size, "titleFontSize": size}
    return {
        "font": "inherit",
        "view": {"stroke": None},
        "axis": {
            **quiet,
            "titleFontWeight": "normal",
            "domain": False,
            "ticks": False,
            "labelPadding": 6,
            "titlePadding": 8,
            "gridColor": GRID,
        },
        "axisX": {"grid": False, "domain": True, "domainColor": GRID, "labelFlush": False},
        "text": {"fontSize": size, "color": INK},
    }


def specification(width: int, height: int, layers: list[dict], size: int = 12) -> dict:
    """Layers as one specification, which fills width x height with axes and all."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": width,
        "height": height,
        "autosize": {"type": "fit", "contains": "padding"},
        "padding": {"left": 2, "right": 8, "top": 8, "bottom": 2},
        "background": None,
        "config": config(size),
        "layer": layers,
    }


def axis(name: str | None, scale: dict | None = None, **knobs) -> dict:
    return {
        "type": "quantitative",
        "scale": {"zero": False, **(scale or {})},
        "axis": {"title": name, **knobs},
    }


def line_of(line: dict, place: dict, colour: str, width: float, opacity=1.0, dash=()) -> dict:
    """A layer: ``line`` (x -> y), whose axes are ``place``."""
    mark = {
        "type": "line",
        "color": colour,
        "strokeWidth": width,
        "opacity": opacity,
        "aria": False,
    }
    if dash:
        mark["strokeDash"] = list(dash)
    return {
        "data": {"values": [{"x": x, "y": y} for x, y in line.items()]},
        "mark": mark,
        "encoding": place,
    }

"""The page's figures, as SVG: Vega-Lite's grammar, drawn by vl-convert without a network.

Colours are names of CSS (``var(--ink)``), so that one picture serves light, dark and print. Every
point carries its values as ``aria-label``: a screen reader reads them, and page.js shows them under
the mouse, the finger and the arrow keys. ``values`` is the same as a table.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from fairseq_peft.errors import InputError
from fairseq_peft.report import cells, plots
from fairseq_peft.report.html.words import Score, name_of
from fairseq_peft.report.references import BASELINE, FULL, without_number
from fairseq_peft.scores import is_share

MAX_PANELS = 24  # of curves; more make the page large
MAX_LINES = 7  # as many as there are colours
MAX_BARS = 40
MAX_LABELS = 6
SIZE = (400, 300)  # of a picture, in pixels
SPAN = (272, 228)  # that points of a picture cover: without its axes and padding
EDGE = 20  # what names may use of the padding
CHAR_WIDTH, NAME_DX = 6.3, 7  # of a name, on the average; between it and its point
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


def against(draw, rows: list[dict], score: Score, cost: str, name: str, title: str, note: str):
    """Score against a cost, a point a row; baselines, which have no such cost, as levels.

    Args:
        cost: key of the row.
        name: of the axis.
    """
    points = [
        row for row in rows if row["init"] != BASELINE and row[cost] and score.mean(row) is not None
    ]
    if not points:
        return None
    inits = list(dict.fromkeys(row["init"] for row in points))
    inits.sort(key=lambda init: init != "pretrained")
    style = {init: (COLOURS[n % MAX_LINES], SHAPES[n % MAX_LINES]) for n, init in enumerate(inits)}
    labelled = frontier(points, score, cost)
    costs = [row[cost] for row in points]
    values = [_point(row, score, cost, name, style[row["init"]]) for row in points]
    levels = [
        {"y": score.mean(row), "text": f"{name_of(row)} {score.text(row)}{score.unit}"}
        for row in rows
        if row["init"] == BASELINE and score.mean(row) is not None
    ]
    wide = max(costs) / min(costs) >= 10
    scale = {"type": "log", "nice": False, "padding": 24} if wide else {"nice": True, "padding": 24}
    x = axis(
        f"{name}{' (log scale)' if wide else ''}",
        scale,
        format="~s",
        tickCount=4,
        labelOverlap=True,
    )
    y = axis(f"{score.name}{score.unit}", {"padding": 14}, tickCount=5)
    place = {"x": {"field": "x", **x}, "y": {"field": "y", **y}}
    layers = [
        {
            "data": {"values": values},
            "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.55, "aria": False},
            "encoding": {
                **place,
                "y": {"field": "low", **y},
                "y2": {"field": "high"},
                "color": {"field": "colour", "type": "nominal", "scale": None},
            },
        },
        {
            "data": {"values": values},
            "mark": {"type": "point", "filled": True, "size": 75, "opacity": 1},
            "encoding": {
                **place,
                "color": {"field": "colour", "type": "nominal", "scale": None},
                "shape": {"field": "shape", "type": "nominal", "scale": None},
                "description": {"field": "text"},
            },
        },
    ]
    named = [value for row, value in zip(points, values) if any(row is one for one in labelled)]
    beside_points, beside_levels = names_beside(named, values, wide, levels)
    for (align, dy), part in beside_points.items():
        mark = {"type": "text", "align": align, "dy": dy, "aria": False}
        mark["dx"] = NAME_DX if align == "left" else -NAME_DX
        text = {**place, "text": {"field": "name"}}
        layers.append({"data": {"values": part}, "mark": mark, "encoding": text})
    if levels:
        layers.insert(0, _levels(levels, beside_levels, y))
    head = ["", name, f"{score.name}{score.unit}", "seeds"]
    table = [
        [name_of(row), _number(row[cost], cost), score.text(row), str(row["num_seeds"])]
        for row in sorted(points, key=lambda row: row[cost])
    ]
    legend = [(*style[init], init) for init in inits] if len(inits) > 1 else []
    return Chart(title, draw(specification(*SIZE, layers)), note, head, table, legend)


def _point(row: dict, score: Score, cost: str, name: str, style: tuple) -> dict:
    mean, spread = score.mean(row), score.spread(row) or 0
    text = f"{name_of(row)}: {score.text(row)}{score.unit} {score.name}, "
    text += f"{_number(row[cost], cost)} {name}, {row['num_seeds']} seeds"
    return {
        "x": row[cost],
        "y": mean,
        "low": mean - spread,
        "high": mean + spread,
        "name": name_of(row),
        "text": text,
        "colour": style[0],
        "shape": style[1],
    }


def _number(value: float, cost: str) -> str:
    return cells.seconds(value) if cost == "seconds_mean" else cells.count(value)


def _levels(levels: list[dict], names: dict, y: dict) -> dict:
    """A dashed line across for each, with its name at an end of it (see names_beside)."""
    place = {"y": {"field": "y", **y}}
    line = {"type": "rule", "strokeDash": [2, 3], "color": FAINT}
    layers = [{"mark": line, "encoding": {**place, "description": {"field": "text"}}}]
    for (align, dy), part in names.items():
        at_left = align == "left"
        mark = {"type": "text", "align": align, "dx": 4 if at_left else -4, "dy": dy}
        x = {"value": 0 if at_left else "width"}
        layers.append(
            {
                "data": {"values": part},
                "mark": {**mark, "color": FAINT, "aria": False},
                "encoding": {**place, "x": x, "text": {"field": "text"}},
            }
        )
    return {"data": {"values": levels}, "layer": layers}


def frontier(points: list[dict], score: Score, cost: str) -> list[dict]:
    """The rows that no other one beats at the same cost or less; at most MAX_LABELS, the best."""
    found, best = [], None
    for row in sorted(points, key=lambda row: (row[cost], -score.mean(row))):
        if best is None or score.mean(row) > best:
            best = score.mean(row)
            found.append(row)
    return found[-MAX_LABELS:]


def names_beside(named: list[dict], values: list[dict], is_log: bool, levels=()) -> tuple:
    """Where names have room: above or below their points and lines, on no other point or name.

    Args:
        named: those of ``values``, the points, that get a name.
        levels: lines across, named at one of their ends.

    Returns:
        Two dicts, of points and of levels: (align, dy) of the text -> what is named so. Levels
        choose first, then the highest points; a point without room has no name.
    """
    xs = [math.log(value["x"]) if is_log else value["x"] for value in values]
    ys = [end for value in values for end in (value["low"], value["high"])]
    ys += [level["y"] for level in levels]
    x_scale = SPAN[0] / (max(xs) - min(xs) or 1)
    y_scale = SPAN[1] / (max(ys) - min(ys) or 1)

    def pixels(value):
        x = math.log(value["x"]) if is_log else value["x"]
        return (x - min(xs)) * x_scale, (max(ys) - value["y"]) * y_scale

    taken = [(x - 5, x + 5, y - 5, y + 5) for x, y in map(pixels, values)]
    of_points, of_levels = {}, {}
    for level in levels:
        width, y = CHAR_WIDTH * len(level["text"]), (max(ys) - level["y"]) * y_scale
        for dy, align in itertools.product((-8, 10), ("left", "right")):
            left = -EDGE if align == "left" else SPAN[0] + EDGE - width
            box = (left, left + width, y + dy - 6, y + dy + 6)
            if not any(_overlap(box, other) for other in taken):
                break
        taken.append(box)
        of_levels.setdefault((align, dy), []).append(level)
    for value in sorted(named, key=lambda value: -value["y"]):
        x, y = pixels(value)
        for dy, align in itertools.product((-9, 12), ("left", "right")):
            width = CHAR_WIDTH * len(value["name"])
            left = x + NAME_DX if align == "left" else x - NAME_DX - width
            box = (left, left + width, y + dy - 6, y + dy + 6)
            inside = left >= -EDGE and left + width <= SPAN[0] + EDGE
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                of_points.setdefault((align, dy), []).append(value)
                break
    return of_points, of_levels


def _overlap(one: tuple, other: tuple) -> bool:
    """Whether two boxes (left, right, top, bottom) have a pixel in common."""
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def differences(draw, rows: list[dict]):
    """Points of accuracy that each row is above or below what it is compared with, with its
    interval."""
    compared = [row for row in rows if row.get("paired_with")]
    if not compared:
        return None
    compared.sort(key=lambda row: -row["paired_difference_mean"])
    left_out = len(compared) - MAX_BARS
    compared = compared[:MAX_BARS]
    values = []
    for row in compared:
        low, mean, high = (100 * row[f"paired_difference_{k}"] for k in ("low", "mean", "high"))
        text = f"{name_of(row)}: {cells.difference(row, 'paired_difference')} points against "
        text += row["paired_with"]
        values.append({"low": low, "mean": mean, "high": high, "name": name_of(row), "text": text})
    order = [value["name"] for value in values]
    x = axis("points of test accuracy", {"zero": True, "padding": 10}, grid=True, tickCount=5)
    y = {
        "field": "name",
        "type": "nominal",
        "sort": order,
        "axis": {"title": None, "grid": False, "labelColor": INK, "labelLimit": 150},
    }
    layers = [
        {
            "data": {"values": [{"none": 0}]},
            "mark": {"type": "rule", "color": FAINT, "aria": False},
            "encoding": {"x": {"field": "none", **x}},
        },
        {
            "data": {"values": values},
            "mark": {"type": "rule", "strokeWidth": 2, "color": COLOURS[0], "aria": False},
            "encoding": {"y": y, "x": {"field": "low", **x}, "x2": {"field": "high"}},
        },
        {
            "data": {"values": values},
            "mark": {
                "type": "point",
                "filled": True,
                "size": 75,
                "opacity": 1,
                "color": COLOURS[0],
            },
            "encoding": {"y": y, "x": {"field": "mean", **x}, "description": {"field": "text"}},
        },
    ]
    references = {row["paired_with"] for row in compared}
    title = "Difference to " + (references.pop() if len(references) == 1 else "full fine-tuning")
    note = "Paired row by row; the bar is the 95 % interval over rows and seeds."
    if left_out > 0:
        note += f" The {left_out} lowest are in the table alone."
    head = ["", "against", "points [95 % interval]", "p after Holm"]
    table = [
        [
            name_of(row),
            row["paired_with"],
            cells.difference(row, "paired_difference"),
            cells.p_value(row["mcnemar_p_holm"]),
        ]
        for row in compared
    ]
    height = max(150, 60 + 24 * len(values))
    return Chart(title, draw(specification(400, height, layers)), note, head, table)


def curves(draw, rows: list[dict], results: list[dict]) -> tuple[list[Chart], str]:
    """A panel a row: what chose its checkpoint against epochs; and a sentence on what is left out.

    Against updates, where a run is validated within an epoch.
    """
    rows = [row for row in rows if row["init"] != BASELINE]
    groups = [([r for r in plots.results_of(row, results) if r["curve"]], row) for row in rows]
    at = plots.x_axis([result for group, _ in groups for result in group])
    panels = []
    for group, row in groups:
        metric = (row["metric"] or "accuracy").split()[0]
        key = "accuracy" if metric == "accuracy" else "value"
        factor = 100 if is_share(metric) else 1
        lines = {
            split: [plots.curve_of(r, f"{split}_{key}", factor, at) for r in group]
            for split in plots.SUBSETS
        }
        if any(line for each in lines.values() for line in each):
            panels.append((row, metric, lines))
    best = sorted(panels, key=lambda one: one[0]["test_accuracy_mean"] or 0, reverse=True)
    kept = [one for one in panels if any(one is other for other in best[:MAX_PANELS])]
    full = {
        (row["init"], metric): lines["test"] for row, metric, lines in kept if row["method"] == FULL
    }
    domains = {metric: _domain(kept, metric) for _, metric, _ in kept}
    charts = [
        _panel(draw, row, metric, lines, full.get((row["init"], metric)), domains[metric], at)
        for row, metric, lines in kept
    ]
    left_out = len(panels) - len(kept)
    return charts, f"The {left_out} lowest on test are left out here." if left_out else ""


def _domain(panels: list, metric: str) -> list[float]:
    """The same axis for all panels of a metric."""
    values = [
        value
        for _, other, lines in panels
        if other == metric
        for each in lines.values()
        for line in each
        for value in line.values()
    ]
    return [min(values), max(values)]


def _panel(draw, row, metric, lines, full, domain, at) -> Chart:
    name = f"{metric} %" if is_share(metric) else metric
    places = sorted({x for each in lines.values() for line in each for x in line})
    x = axis(None, {"zero": False, "nice": False}, format="~s", tickCount=4, tickMinStep=1)
    y = axis(None, {"domain": domain, "nice": True}, tickCount=4)
    place = {"x": {"field": "x", **x}, "y": {"field": "y", **y}}
    layers, table = [], {place: [str(place), "-", "-"] for place in places}
    if full is not None and row["method"] != FULL:
        layers.append(_line(plots.mean_curve(full), place, GRID, width=3))
    for column, (split, colour, dash) in enumerate(
        (("valid", COLOURS[1], [4, 3]), ("test", COLOURS[0], [])), start=1
    ):
        for line in lines[split] if len(lines[split]) > 1 else ():
            layers.append(_line(line, place, colour, width=0.8, opacity=0.45, dash=dash))
        average = plots.mean_curve([line for line in lines[split] if line])
        if not average:
            continue
        layers.append(_line(average, place, colour, width=2, dash=dash))
        unit = " %" if is_share(metric) else ""
        values = [
            {
                "x": at_x,
                "y": value,
                "text": f"{name_of(row)}, {split}: {value:.2f}{unit} {metric} at "
                f"{plots.X_AXES[at]} {at_x}",
            }
            for at_x, value in average.items()
        ]
        layers.append(
            {
                "data": {"values": values},
                "mark": {
                    "type": "point",
                    "filled": True,
                    "size": 22,
                    "opacity": 1,
                    "color": colour,
                },
                "encoding": {**place, "description": {"field": "text"}},
            }
        )
        for value in values:
            table[value["x"]][column] = f"{value['y']:.2f}"
    head = [plots.X_AXES[at], f"valid {name}", f"test {name}"]
    svg = draw(specification(160, 125, layers, size=10))
    return Chart(name_of(row), svg, "", head, list(table.values()))


def _line(line: dict, place: dict, colour: str, width: float, opacity: float = 1, dash=()) -> dict:
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


def few_shot(draw, rows: list[dict], results: list[dict], score: Score):
    """Score against training rows, a line for what was trained on several numbers of them.

    A run on 64 rows has a name of its own, such as ``lora-64``: its line is what is left without
    the number.
    """
    lines = {}
    for row in rows:
        sizes = {r["rows"].get("train") for r in plots.results_of(row, results)}
        if row["init"] == BASELINE or len(sizes) != 1 or score.mean(row) is None:
            continue
        number = sizes.pop()
        if number:
            name = name_of({**row, "method": without_number(row["method"], number)})
            lines.setdefault(name, {})[number] = row
    lines = {name: dict(sorted(line.items())) for name, line in lines.items() if len(line) > 1}
    if not lines:
        return None
    best = sorted(lines, key=lambda name: -score.mean(list(lines[name].values())[-1]))[:MAX_LINES]
    x = axis(
        "training rows (log scale)",
        {"type": "log", "nice": False, "padding": 16},
        format=",",
        tickCount=5,
    )
    numbers = sorted({number for name in best for number in lines[name]})
    x["axis"]["values"] = numbers
    y = axis(f"{score.name}{score.unit}", {"padding": 10}, tickCount=5)
    place = {"x": {"field": "x", **x}, "y": {"field": "y", **y}}
    layers, table, legend = [], [], []
    for n, name in enumerate(best):
        colour, shape = COLOURS[n], SHAPES[n]
        values = [
            {
                "x": number,
                "y": score.mean(row),
                "text": f"{name}: {score.text(row)}{score.unit} {score.name} with {number:,} rows",
            }
            for number, row in lines[name].items()
        ]
        layers.append(_line({one["x"]: one["y"] for one in values}, place, colour, width=2))
        mark = {
            "type": "point",
            "filled": True,
            "size": 60,
            "opacity": 1,
            "color": colour,
            "shape": shape,
        }
        layers.append(
            {
                "data": {"values": values},
                "mark": mark,
                "encoding": {**place, "description": {"field": "text"}},
            }
        )
        legend.append((colour, shape, name))
        table += [[name, f"{k:,}", score.text(row)] for k, row in lines[name].items()]
    note = f"The {len(lines) - len(best)} lowest are left out." if len(lines) > len(best) else ""
    head = ["", "training rows", f"{score.name}{score.unit}"]
    title = f"{score.name} against training rows"
    return Chart(title, draw(specification(*SIZE, layers)), note, head, table, legend)

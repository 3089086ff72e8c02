"""The page's pictures of a score against a cost, and where the names of their points have room."""

from __future__ import annotations

import itertools
import math

from fairseq_peft.report import cells
from fairseq_peft.report.html.chart import (
    COLOURS,
    FAINT,
    MAX_LINES,
    SHAPES,
    SIZE,
    Chart,
    axis,
    specification,
)
from fairseq_peft.report.html.words import name_of
from fairseq_peft.report.merit import Score
from fairseq_peft.report.references import BASELINE

MAX_LABELS = 6
SPAN = (272, 228)  # that points of a picture cover: without its axes and padding
EDGE = 20  # what names may use of the padding
CHAR_WIDTH, NAME_DX = 6.3, 7  # of a name, on the average; between it and its point


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
        format=",d" if cost == "seconds_mean" else ".3~s",
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
    for row in sorted(points, key=lambda row: (row[cost], -score.rank(row))):
        if best is None or score.rank(row) > best:
            best = score.rank(row)
            found.append(row)
    return found[-MAX_LABELS:]


def names_beside(named: list[dict], values: list[dict], is_log: bool, levels=()) -> tuple:
    """Where names have room: above or below their points and lines, on no other point, line or
    name.

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
    heights = [(max(ys) - level["y"]) * y_scale for level in levels]
    taken += [(-EDGE, SPAN[0] + EDGE, y - 1, y + 1) for y in heights]
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

"""The page's other figures: differences to a reference, curves, scores against training rows."""

from __future__ import annotations

from collections import Counter

from fairseq_peft.report import cells, plots
from fairseq_peft.report.html.chart import (
    COLOURS,
    FAINT,
    GRID,
    INK,
    MAX_LINES,
    SHAPES,
    SIZE,
    Chart,
    axis,
    line_of,
    specification,
)
from fairseq_peft.report.html.words import name_of
from fairseq_peft.report.merit import WRITTEN, Score
from fairseq_peft.report.references import BASELINE, FULL, without_number
from fairseq_peft.scores import is_share

MAX_PANELS = 24  # of curves; more make the page large
MAX_BARS = 40


def differences(draw, rows: list[dict]) -> list[Chart]:
    """A figure for each row that others are compared with: scratch/lora against scratch/full says
    nothing beside pretrained/lora against pretrained/full."""
    references = Counter(row["paired_with"] for row in rows if row.get("paired_with"))
    return [
        _difference(draw, [row for row in rows if row.get("paired_with") == reference], reference)
        for reference, _ in references.most_common()
    ]


def _difference(draw, compared: list[dict], reference: str) -> Chart:
    """Points of accuracy that each row is above or below the reference, with its interval."""
    compared.sort(key=lambda row: -row["paired_difference_mean"])
    left_out = len(compared) - MAX_BARS
    compared = compared[:MAX_BARS]
    values = []
    for row in compared:
        low, mean, high = (100 * row[f"paired_difference_{k}"] for k in ("low", "mean", "high"))
        text = f"{name_of(row)}: {cells.difference(row, 'paired_difference')} points against "
        text += reference
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
    title = f"Difference to {reference}"
    return Chart(title, draw(specification(400, height, layers)), note, head, table)


def curves(draw, rows: list[dict], results: list[dict]) -> tuple[list[Chart], str, str]:
    """A panel a row: what chose its checkpoint against epochs; what all of them show, as a heading;
    and a sentence on what is left out.

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
    written = " or ".join(_written(metric) for metric in domains)
    title = f"{written[:1].upper()}{written[1:]} after each {plots.X_AXES[at]}"
    return charts, title, f"The {left_out} lowest on test are left out here." if left_out else ""


def _written(metric: str) -> str:
    """A metric with its unit, as a heading and the head of a table have it."""
    return WRITTEN.get(metric, metric) + " %" * is_share(metric)


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
    name = _written(metric)
    places = sorted({x for each in lines.values() for line in each for x in line})
    x = axis(None, {"zero": False, "nice": False}, format="~s", tickCount=4, tickMinStep=1)
    y = axis(None, {"domain": domain, "nice": True}, tickCount=4)
    place = {"x": {"field": "x", **x}, "y": {"field": "y", **y}}
    layers, table = [], {place: [str(place), "-", "-"] for place in places}
    if full is not None and row["method"] != FULL:
        layers.append(line_of(plots.mean_curve(full), place, GRID, width=3))
    for column, (split, colour, dash) in enumerate(
        (("valid", COLOURS[1], [4, 3]), ("test", COLOURS[0], [])), start=1
    ):
        for line in lines[split] if len(lines[split]) > 1 else ():
            layers.append(line_of(line, place, colour, width=0.8, opacity=0.45, dash=dash))
        average = plots.mean_curve([line for line in lines[split] if line])
        if not average:
            continue
        layers.append(line_of(average, place, colour, width=2, dash=dash))
        unit = " %" * is_share(metric) + f" {WRITTEN.get(metric, metric)}"
        values = [
            {
                "x": at_x,
                "y": value,
                "text": f"{name_of(row)}, {split}: {value:.2f}{unit} at {plots.X_AXES[at]} {at_x}",
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
    best = sorted(lines, key=lambda name: -score.rank(list(lines[name].values())[-1]))[:MAX_LINES]
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
        layers.append(line_of({one["x"]: one["y"] for one in values}, place, colour, width=2))
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

"""Runs and rows -> one page of HTML."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fairseq_peft import __version__
from fairseq_peft.errors import InputError
from fairseq_peft.report import cells
from fairseq_peft.report.comparisons import verdict
from fairseq_peft.report.footer import by_data, footer_lines, runs_of
from fairseq_peft.report.html import against, chart, charts, examples, origins
from fairseq_peft.report.html.words import headline, name_of
from fairseq_peft.report.merit import score_of
from fairseq_peft.report.references import BASELINE, without_drawn
from fairseq_peft.report.result import write_atomic
from fairseq_peft.report.runs import LeftOut, Run
from fairseq_peft.scores import LABELS, NUMBER, TEXT, has_accuracy

TEMPLATES = Path(__file__).parent / "templates"
MAX_MATRICES = 12
MAX_CLASSES = 20  # of a matrix that a person reads
ON_SCREEN = (
    *("worst", "best", "MCC", "chosen by", "on valid", "of the model", "kept for a task"),
    *("learning rate", "epochs", "peak memory"),
)
MARKS = dict(zip(chart.SHAPES, "●■▲◆✚▼▶"))


@dataclass(frozen=True)
class Column:
    """A column of the table: its header, the text of a cell, and what sorts it (None: last)."""

    header: str
    text: Callable[[dict], str]
    value: Callable[[dict], object]
    unit: str = ""

    @property
    def classes(self) -> str:
        """Of its cells: aligned as words; not printed, as paper is no wider than ten columns."""
        return " ".join(["words"] * self.is_text + ["screen"] * (self.header in ON_SCREEN))

    @property
    def is_text(self) -> bool:
        return self.header in ("method", "start", "conclusion", "chosen by")


def _field(header: str, key: str, text: Callable, unit: str = "") -> Column:
    return Column(header, lambda row: text(row.get(key)), lambda row: row.get(key), unit)


def _mean(header: str, key: str, text: Callable, unit: str = "") -> Column:
    """Mean and standard deviation; a kind of task that lacks the score has no such key."""

    def cell(row):
        return text(row, key) if row.get(f"{key}_mean") is not None else "-"

    return Column(header, cell, lambda row: row.get(f"{key}_mean"), unit)


NAMES = (
    Column("method", lambda row: row["method"], lambda row: row["method"]),
    Column("start", lambda row: row["init"], lambda row: row["init"]),
)
ACCURACY = (
    _mean("test accuracy", "test_accuracy", cells.mean_sd, "%"),
    _field("worst", "test_accuracy_worst", cells.percent, "%"),
    _field("best", "test_accuracy_best", cells.percent, "%"),
    _mean("macro-F1", "test_macro_f1", cells.mean_sd, "%"),
    _mean("MCC", "test_mcc", cells.plain_score),
)
SCORES = {
    LABELS: (
        _mean("micro-F1", "test_micro_f1", cells.mean_sd, "%"),
        _mean("macro-F1", "test_macro_f1", cells.mean_sd, "%"),
        _mean("all labels right", "test_accuracy", cells.mean_sd, "%"),
    ),
    NUMBER: (
        _mean("Pearson", "test_pearson", cells.plain_score),
        _mean("Spearman", "test_spearman", cells.plain_score),
        _mean("MSE", "test_mse", cells.plain_score),
    ),
    TEXT: (
        _mean("loss a token", "test_loss", cells.plain_score),
        _mean("ROUGE-1", "test_rouge1", cells.mean_sd, "%"),
        _mean("ROUGE-2", "test_rouge2", cells.mean_sd, "%"),
        _mean("ROUGE-L", "test_rougeL", cells.mean_sd, "%"),
    ),
}
COSTS = (
    Column("chosen by", lambda row: row["metric"] or "differs", lambda row: row["metric"]),
    Column(
        "on valid",
        lambda row: cells.score(row["metric"], row["best_value_mean"]),
        lambda row: row["best_value_mean"],
    ),
    _field("trainable parameters", "trainable_parameters", cells.count),
    Column(
        "of the model",
        cells.share,
        lambda row: (row["trainable_parameters"] or 0) / (row["total_parameters"] or 1) or None,
        "%",
    ),
    _field("kept for a task", "task_bytes", cells.size),
    _field("learning rate", "learning_rate", cells.learning_rate),
    _field("epochs", "num_epochs", cells.count),
    _field("time", "seconds_mean", cells.seconds, "s"),
    _field("peak memory", "peak_memory_bytes", cells.size),
    _field("seeds", "num_seeds", cells.count),
)
PAIRED = (
    Column("conclusion", lambda row: _verdict(row) or "-", lambda row: _verdict(row)),
    Column(
        "difference [95 %]",
        lambda row: cells.difference(row, "paired_difference"),
        lambda row: row["paired_difference_mean"],
        "points",
    ),
    Column(
        "p after Holm",
        lambda row: "-" if row["mcnemar_p_holm"] is None else cells.p_value(row["mcnemar_p_holm"]),
        lambda row: row["mcnemar_p_holm"],
    ),
)


def _verdict(row: dict) -> str | None:
    """In a word; None for what is compared with nothing."""
    return (verdict(row) or "undecided") if row.get("paired_with") else None


def write_page(
    runs: list[Run],
    rows: list[dict],
    left_out: list[LeftOut],
    path: Path,
    root: Path,
    with_texts: bool = True,
) -> Path:
    """Write the page to ``path``: there whole, or not at all.

    Args:
        rows: of ``build_rows(runs)``.
        root: the folder that holds the runs; the page is named after it.
        with_texts: show the texts of test rows.

    Raises:
        InputError: a library is missing, or ``path`` cannot be written.
    """
    text = render(runs, rows, left_out, root, with_texts)
    # a path may hold bytes that are no UTF-8
    write_atomic(path, text.encode("utf-8", "backslashreplace").decode())
    return path


def render(runs, rows, left_out, root: Path, with_texts: bool = True) -> str:
    """The page's text; see ``write_page``."""
    draw = chart.load()
    environment = _environment()
    script, style = (
        (TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.js", "page.css")
    )
    digest = hashlib.sha256(script.encode()).digest()
    sections = [
        section(draw, data, part, runs_of(part, runs), with_texts)
        for data, part in by_data(rows).items()
    ]
    return environment.get_template("page.html.j2").render(
        root=Path(root).absolute().name,
        sections=sections,
        num_runs=len(runs),
        num_methods=len(rows),
        unfinished=sum(not one.finished for one in left_out),
        notes=footer_lines(rows, left_out),
        machines=origins.machines(runs),
        version=__version__,
        marks=MARKS,
        script=script,
        style=style,
        script_digest=base64.b64encode(digest).decode(),
    )


def _environment():
    try:
        import jinja2
    except ImportError:
        raise InputError(
            "--html needs jinja2, which is not installed here. Install it with: "
            "pip install 'fairseq-peft[html]'"
        ) from None
    # Names, labels and texts are anybody's: all is escaped but what vl-convert drew.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment


def section(draw, data: str, rows: list[dict], runs: list[Run], with_texts: bool) -> dict:
    """What the template shows of one data set."""
    score = score_of(rows)
    results = [run.result for run in runs]
    judged = has_accuracy(rows[0]["kind"])  # that of all, as by_data parts them
    whole = without_drawn(rows)
    panels, panels_title, panels_note = charts.curves(draw, whole, results)
    differ, shared = origins.differing(rows, runs)
    commands = origins.commands(rows, runs)
    return {
        "data": data,
        "headline": headline(whole),
        "num_rows": next((row["num_test_rows"] for row in rows if row["num_test_rows"]), None),
        "conclusions": [row["conclusion"] for row in rows if row.get("conclusion")],
        "table": table(rows),
        "charts": [one for one in figures(draw, whole, rows, results, score) if one is not None],
        "panels": panels,
        "panels_title": panels_title,
        "panels_note": panels_note,
        "several_seeds": any(row["num_seeds"] > 1 for row in whole),
        "matrices": matrices(whole),
        "examples": examples.choose(whole, runs, with_texts) if judged else None,
        "differ": differ,
        "shared": shared,
        "commands": commands[: origins.MAX_COMMANDS],
        "num_commands": len(commands),
    }


def figures(draw, whole: list[dict], rows: list[dict], results: list[dict], score):
    """The large ones; None for what the runs have no figures for."""
    spread = (
        "Bars: standard deviation over seeds. " if any(row["num_seeds"] > 1 for row in rows) else ""
    )
    note = f"{spread}Named: those that none beats with less."
    machines = {
        (result.get("device"), result.get("threads"))
        for result in results
        if result["init"] != BASELINE  # they say neither
    }
    yield from charts.differences(draw, whole)
    yield against.against(
        *(draw, whole, score, "trainable_parameters", "trainable parameters"),
        f"{score.name} against trainable parameters",
        note,
    )
    yield against.against(
        *(draw, whole, score, "seconds_mean", "seconds of training and validation"),
        f"{score.name} against time",
        note
        + " The runs differ in machine or threads: their times do not compare."
        * (len(machines) > 1),
    )
    yield charts.few_shot(draw, rows, results, score)


def table(rows: list[dict]) -> dict:
    """``head`` and ``lines`` of the sortable table; columns that no row has a value for are left
    out."""
    kinds = {row["kind"] for row in rows}
    scores = SCORES.get(next(iter(kinds)), ACCURACY) if len(kinds) == 1 else ACCURACY
    paired = PAIRED if any(row.get("paired_with") for row in rows) else ()
    columns = [*NAMES, *scores[:1], *paired, *scores[1:], *COSTS]
    columns = [column for column in columns if any(column.value(row) is not None for row in rows)]
    lines = []
    for row in rows:
        values = [column.value(row) for column in columns]
        texts = [typographic(column.text(row)) for column in columns]
        found = list(zip(texts, ("" if value is None else value for value in values)))
        lines.append({"cells": found, "baseline": row["init"] == BASELINE})
    return {"head": columns, "lines": lines}


def typographic(text: str) -> str:
    """With a minus for a hyphen before a number, and a dash for nothing."""
    return "–" if text == "-" else re.sub(r"(?<![\w.])-(?=\d)", "−", text)


def matrices(rows: list[dict]) -> dict:
    """Confusion matrices of the rows that are best on test, and how many are left out.

    ``names``, and ``items``: (name of the row, a line a class of (name, rows, cells)), each cell
    (rows, share of the class).
    """
    rows = [
        row for row in rows if row["classes"] and any(c["predicted_as"] for c in row["classes"])
    ]
    if not rows or len(rows[0]["classes"]) > MAX_CLASSES:
        return {"names": [], "items": [], "left_out": len(rows)}
    names = [one["class"] for one in rows[0]["classes"]]
    rows = [row for row in rows if {one["class"] for one in row["classes"]} == set(names)]
    best = sorted(rows, key=lambda row: -row["test_accuracy_mean"])[:MAX_MATRICES]
    items = []
    for row in rows:
        if not any(row is one for one in best):
            continue
        given = {one["class"]: one["predicted_as"] for one in row["classes"]}
        lines = []
        for true in names:
            total = sum(given[true].values())
            counts = [given[true].get(name, 0) for name in names]
            lines.append((true, total, [(n, n / total if total else 0) for n in counts]))
        items.append((name_of(row), lines))
    return {"names": names, "items": items, "left_out": len(rows) - len(items)}

"""Rows -> text: aligned for a terminal, Markdown, CSV, JSON. Percent is for the first two only."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from fairseq_peft.report import cells, drawing
from fairseq_peft.report.footer import by_data, footer_lines
from fairseq_peft.report.runs import LeftOut
from fairseq_peft.scores import LABELS, NUMBER, TEXT, has_accuracy

MAX_WIDTH = 120
GAP = "  "
MAX_NAME = 16  # names of methods and initialisations longer than this are cut in the terminal

# header, cell of a row. "\n" in a header breaks it in the terminal; "<" aligns left.
ACCURACY_COLUMNS = (
    ("<init", lambda row: row["init"]),
    ("<method", lambda row: row["method"]),
    ("trainable\nparameters", lambda row: cells.count(row["trainable_parameters"])),
    ("seeds", lambda row: str(row["num_seeds"])),
    ("test\naccuracy %", cells.mean_sd),
    ("worst", lambda row: cells.percent(row["test_accuracy_worst"])),
    ("best", lambda row: cells.percent(row["test_accuracy_best"])),
    ("difference to full\n[95 % interval]", cells.difference),
    ("valid\n%", lambda row: cells.percent(row["valid_accuracy_mean"])),
    ("best epoch\non test %", lambda row: cells.percent(row["best_test_accuracy_mean"])),
)
SCORE_COLUMNS = (
    ("<init", lambda row: row["init"]),
    ("<method", lambda row: row["method"]),
    ("<checkpoint\nchosen by", lambda row: row["metric"] or "differs"),
    ("that on\nvalid", lambda row: cells.score(row["metric"], row["best_value_mean"])),
    ("test\naccuracy %", cells.mean_sd),
    ("test\nmacro-F1 %", lambda row: cells.mean_sd(row, "test_macro_f1")),
    ("test\nMCC", cells.mcc),
)
#: The same where a row has any number of labels, where it has a number, and where it has a text.
LABEL_COLUMNS = (
    *SCORE_COLUMNS[:4],
    ("test: all\nlabels right %", cells.mean_sd),
    ("test\nmicro-F1 %", lambda row: cells.mean_sd(row, "test_micro_f1")),
    ("test\nmacro-F1 %", lambda row: cells.mean_sd(row, "test_macro_f1")),
)
NUMBER_COLUMNS = (
    *ACCURACY_COLUMNS[:4],
    *SCORE_COLUMNS[2:4],
    ("test\nPearson", lambda row: cells.plain_score(row, "test_pearson")),
    ("test\nSpearman", lambda row: cells.plain_score(row, "test_spearman")),
    ("test\nMSE", lambda row: cells.plain_score(row, "test_mse")),
)
TEXT_COLUMNS = (
    *NUMBER_COLUMNS[:6],
    ("test loss\na token", lambda row: cells.plain_score(row, "test_loss")),
    ("test\nROUGE-1 %", lambda row: cells.mean_sd(row, "test_rouge1")),
    ("test\nROUGE-2 %", lambda row: cells.mean_sd(row, "test_rouge2")),
    ("test\nROUGE-L %", lambda row: cells.mean_sd(row, "test_rougeL")),
)
CLASS_COLUMNS = (
    ("<init", lambda row: row["init"]),
    ("<method", lambda row: row["method"]),
    ("<class", lambda row: row["class"]),
    ("rows", lambda row: cells.count(row["rows"])),
    ("precision\n%", lambda row: cells.percent(row["precision"])),
    ("recall\n%", lambda row: cells.percent(row["recall"])),
    ("F1\n%", lambda row: cells.percent(row["f1"])),
    ("<most often\ntaken for", lambda row: cells.taken_for(row)[0]),
    ("of its\nrows %", lambda row: cells.taken_for(row)[1]),
)
MAX_CLASSES = 3  # of a method in the tables for a person
PAIRED_COLUMNS = (
    ("<init", lambda row: row["init"]),
    ("<method", lambda row: row["method"]),
    ("<compared with", lambda row: row["paired_with"]),
    ("seeds", lambda row: str(row["paired_seeds"])),
    ("rows", lambda row: cells.count(row["paired_rows"])),
    ("difference\n[95 % interval]", lambda row: cells.difference(row, "paired_difference")),
    ("only it\nright", lambda row: cells.count(row["paired_wins"])),
    ("only the\nother", lambda row: cells.count(row["paired_losses"])),
    ("McNemar\np", lambda row: cells.p_value(row["mcnemar_p"])),
    ("p after\nHolm", lambda row: cells.p_value(row["mcnemar_p_holm"])),
)
COST_COLUMNS = (
    ("<init", lambda row: row["init"]),
    ("<method", lambda row: row["method"]),
    ("trainable\nparameters", lambda row: cells.count(row["trainable_parameters"])),
    ("of the\nmodel %", cells.share),
    ("total\nparameters", lambda row: cells.count(row["total_parameters"])),
    ("kept for\na task", lambda row: cells.size(row["task_bytes"])),
    ("learning\nrate", lambda row: cells.learning_rate(row["learning_rate"])),
    ("epochs", lambda row: cells.count(row["num_epochs"])),
    ("seconds", lambda row: cells.seconds(row["seconds_mean"])),
    ("tokens/s", lambda row: cells.count(row["tokens_per_second_mean"])),
    ("peak\nmemory", lambda row: cells.size(row["peak_memory_bytes"])),
)


def terminal(rows: list[dict], left_out: list[LeftOut] = ()) -> str:
    """Aligned tables of each data set (accuracy, scores, cost; classes and rows compared where runs
    have their predictions) and the footer, at most 120 columns wide."""
    blocks = []
    for data, title, columns, part in _tables(rows):
        blocks.append(_wrap(f"{drawing.cut(data, 100)}: {title}") + "\n" + aligned(columns, part))
        if columns is PAIRED_COLUMNS:
            blocks.append("\n".join(map(_wrap, _conclusions(part))))
    footer = "\n".join(_wrap(line) for line in footer_lines(rows, left_out))
    return "\n\n".join([*blocks, footer]) + "\n"


def markdown(rows: list[dict], left_out: list[LeftOut] = ()) -> str:
    """The same tables in Markdown."""
    blocks = []
    for data, title, columns, part in _tables(rows):
        blocks.append(f"### {data}: {title}\n\n{markdown_table(columns, part)}")
        if columns is PAIRED_COLUMNS:
            blocks.append("\n".join(f"- {line}" for line in _conclusions(part)))
    footer = "\n".join(f"- {line}" for line in footer_lines(rows, left_out))
    return "\n\n".join([*blocks, footer]) + "\n"


def markdown_table(columns: tuple, rows: list[dict]) -> str:
    """One table in Markdown, without a line end after it."""
    lines = [[_plain(header) for header, _ in columns]]
    lines.append(["---" if header[0] == "<" else "---:" for header, _ in columns])
    lines += [[cell(row).replace("|", "\\|") for _, cell in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _tables(rows: list[dict]):
    """(data, title, columns, rows) of every table, data set after data set."""
    for data, part in by_data(rows).items():
        kind = part[0]["kind"]  # that of all, as by_data parts them
        if kind == NUMBER:
            yield data, "correlation and error", NUMBER_COLUMNS, part
        elif kind == TEXT:
            yield data, "loss and ROUGE", TEXT_COLUMNS, part
        else:
            yield data, "accuracy", ACCURACY_COLUMNS, part
        if kind == LABELS:
            yield data, "F1 of labels", LABEL_COLUMNS, part
        elif has_accuracy(kind):
            yield data, "macro-F1 and MCC", SCORE_COLUMNS, part
        yield data, "cost", COST_COLUMNS, part
        if any(row["classes"] for row in part):
            yield data, _classes_title(part), CLASS_COLUMNS, list(_weakest(part))
        compared = [row for row in part if row.get("paired_with")]
        if compared:
            yield data, "compared row by row", PAIRED_COLUMNS, compared


def _classes_title(rows: list[dict]) -> str:
    num_classes = max(len(row["classes"] or ()) for row in rows)
    if num_classes <= MAX_CLASSES:
        return "classes on test, seeds together"
    return (
        f"the {MAX_CLASSES} of {num_classes} classes with the lowest F1 on test, seeds together; "
        "report-classes.csv has all"
    )


def _weakest(rows: list[dict]):
    """A row of the table of classes for each of a method's weakest classes, in the data's order."""
    for row in rows:
        classes = row["classes"] or []
        weakest = sorted(classes, key=lambda one: (one["f1"] is None, one["f1"]))[:MAX_CLASSES]
        for one in classes:
            if any(one is other for other in weakest):
                yield {"init": row["init"], "method": row["method"], **one}


def _conclusions(rows: list[dict]) -> list[str]:
    """What may be concluded, a sentence a row; and the two lines that explain the table."""
    return [
        *(f"{_init_of(row)}{row['conclusion']}." for row in rows),
        "Interval: 95 % of 10,000 paired bootstrap draws, of n rows out of n and k - 1 seeds out "
        "of k, with replacement (of rows alone with one seed). Only it right: rows that more of "
        "its seeds get right than of the other's.",
        "p: McNemar's exact test, two-sided; with several seeds the signs of the rows' sums are "
        "tossed. Holm: corrected for all methods that are compared with the same one. A "
        "difference is told only where p after Holm is below 0.05 and the interval leaves 0 out.",
    ]


def _init_of(row: dict) -> str:
    """What a conclusion is about, where it does not say so itself."""
    init = row["init"]
    return f"{init}: " if row["paired_with"].startswith(f"{init}/") else ""


def csv_text(rows: list[dict]) -> str:
    """One line a row, the keys of report.json but ``classes``; lists joined, None empty."""
    flat = [
        {**row, "seeds": " ".join(map(str, row["seeds"])), "notes": "; ".join(row["notes"])}
        for row in rows
    ]
    return _csv([key for key in rows[0] if key != "classes"], flat)


def classes_csv(rows: list[dict]) -> str:
    """One line a class of a row; ``predicted_as`` is the class's row of the confusion matrix, as
    JSON."""
    names = ("data", "init", "method")
    lines = [
        {
            **{name: row[name] for name in names},
            **one,
            "predicted_as": json.dumps(one["predicted_as"], ensure_ascii=False),
        }
        for row in rows
        for one in row["classes"] or ()
    ]
    columns = ("class", "rows", "precision", "recall", "f1", "predicted_as")
    return _csv([*names, *columns], lines)


def _csv(columns: list[str], lines: list[dict]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def json_text(rows: list[dict]) -> str:
    """report.json: the list of rows."""
    return json.dumps(rows, indent=1, allow_nan=False) + "\n"


def aligned(columns: tuple, rows: list[dict]) -> str:
    """Columns as wide as their widest cell; names are cut until the table fits."""
    headers = [header.lstrip("<").split("\n") for header, _ in columns]
    height = max(map(len, headers))
    lines = [[[""] * (height - len(h)) + h for h in headers][c] for c in range(len(columns))]
    head = [[cell[level] for cell in lines] for level in range(height)]
    body = [[cell(row) for _, cell in columns] for row in rows]
    left = [header.startswith("<") for header, _ in columns]
    limit = MAX_NAME
    while True:
        cut = [
            [drawing.cut(cell, limit) if is_left else cell for cell, is_left in zip(line, left)]
            for line in body
        ]
        widths = [max(len(line[c]) for line in head + cut) for c in range(len(columns))]
        width = sum(widths) + len(GAP) * (len(widths) - 1)
        if width <= MAX_WIDTH or limit <= 6:
            break
        limit -= 1
    rule = "-" * width

    def show(line: list[str]) -> str:
        padded = [
            cell.ljust(size) if is_left else cell.rjust(size)
            for cell, size, is_left in zip(line, widths, left)
        ]
        return GAP.join(padded).rstrip()

    return "\n".join([*map(show, head), rule, *map(show, cut)])


def _wrap(line: str) -> str:
    import textwrap

    return textwrap.fill(
        line, MAX_WIDTH, subsequent_indent="  ", break_long_words=True, break_on_hyphens=False
    )


def _plain(header: str) -> str:
    return header.lstrip("<").replace("\n", " ")


def write_tables(rows: list[dict], left_out: list[LeftOut], out: Path) -> list[Path]:
    """report.txt, .md, .csv and .json in ``out``; report-classes.csv, if runs have predictions."""
    from fairseq_peft.report.result import write_atomic

    texts = {
        "report.txt": terminal(rows, left_out),
        "report.md": markdown(rows, left_out),
        "report.csv": csv_text(rows),
        "report.json": json_text(rows),
    }
    if any(row["classes"] for row in rows):
        texts["report-classes.csv"] = classes_csv(rows)
    for name, text in texts.items():
        # a path may hold bytes that are no UTF-8
        write_atomic(out / name, text.encode("utf-8", "backslashreplace").decode())
    return [out / name for name in texts]

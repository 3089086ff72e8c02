"""Rows -> text: aligned for a terminal, Markdown, CSV, JSON. Percent is for the first two only."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from fairseq_peft.report.runs import Unfinished
from fairseq_peft.report.stats import sampling_error

MAX_WIDTH = 120
GAP = "  "
MAX_NAME = 16  # names of methods and initialisations longer than this are cut in the terminal

# header, cell of a row. "\n" in a header breaks it in the terminal; "<" aligns left.
ACCURACY_COLUMNS = (
    ("<init", lambda row: row["init"]),
    ("<method", lambda row: row["method"]),
    ("trainable\nparameters", lambda row: _count(row["trainable_parameters"])),
    ("seeds", lambda row: str(row["num_seeds"])),
    ("test\naccuracy %", lambda row: _mean_sd(row)),
    ("worst", lambda row: _percent(row["test_accuracy_worst"])),
    ("best", lambda row: _percent(row["test_accuracy_best"])),
    ("difference to full\n[95 % interval]", lambda row: _difference(row)),
    ("valid\n%", lambda row: _percent(row["valid_accuracy_mean"])),
    ("best epoch\non test %", lambda row: _percent(row["best_test_accuracy_mean"])),
)
PAIRED_COLUMNS = (
    ("<init", lambda row: row["init"]),
    ("<method", lambda row: row["method"]),
    ("<compared with", lambda row: row["paired_with"]),
    ("seeds", lambda row: str(row["paired_seeds"])),
    ("rows", lambda row: _count(row["paired_rows"])),
    ("difference\n[95 % interval]", lambda row: _difference(row, "paired_difference")),
    ("only it\nright", lambda row: _count(row["paired_wins"])),
    ("only the\nother", lambda row: _count(row["paired_losses"])),
    ("McNemar\np", lambda row: _p_value(row["mcnemar_p"])),
    ("p after\nHolm", lambda row: _p_value(row["mcnemar_p_holm"])),
)
COST_COLUMNS = (
    ("<init", lambda row: row["init"]),
    ("<method", lambda row: row["method"]),
    ("trainable\nparameters", lambda row: _count(row["trainable_parameters"])),
    ("of the\nmodel %", lambda row: _share(row)),
    ("total\nparameters", lambda row: _count(row["total_parameters"])),
    ("kept for\na task", lambda row: _bytes(row["task_bytes"])),
    ("learning\nrate", lambda row: _learning_rate(row["learning_rate"])),
    ("epochs", lambda row: _count(row["num_epochs"])),
    ("seconds", lambda row: _seconds(row["seconds_mean"])),
    ("tokens/s", lambda row: _count(row["tokens_per_second_mean"])),
    ("peak\nmemory", lambda row: _bytes(row["peak_memory_bytes"])),
)


def terminal(rows: list[dict], unfinished: list[Unfinished] = ()) -> str:
    """Aligned tables of each data set (accuracy, cost, and rows compared where runs have their
    predictions) and the footer, at most 120 columns wide."""
    blocks = []
    for data, title, columns, part in _tables(rows):
        blocks.append(f"{_cut(data, 100)}: {title}\n" + _aligned(columns, part))
        if columns is PAIRED_COLUMNS:
            blocks.append("\n".join(map(_wrap, _conclusions(part))))
    footer = "\n".join(_wrap(line) for line in footer_lines(rows, unfinished))
    return "\n\n".join([*blocks, footer]) + "\n"


def markdown(rows: list[dict], unfinished: list[Unfinished] = ()) -> str:
    """The same tables in Markdown."""
    blocks = []
    for data, title, columns, part in _tables(rows):
        lines = [[_plain(header) for header, _ in columns]]
        lines.append(["---" if header[0] == "<" else "---:" for header, _ in columns])
        lines += [[cell(row).replace("|", "\\|") for _, cell in columns] for row in part]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        blocks.append(f"### {data}: {title}\n\n{table}")
        if columns is PAIRED_COLUMNS:
            blocks.append("\n".join(f"- {line}" for line in _conclusions(part)))
    footer = "\n".join(f"- {line}" for line in footer_lines(rows, unfinished))
    return "\n\n".join([*blocks, footer]) + "\n"


def _tables(rows: list[dict]):
    """(data, title, columns, rows) of every table, data set after data set."""
    for data, part in _by_data(rows).items():
        yield data, "accuracy", ACCURACY_COLUMNS, part
        yield data, "cost", COST_COLUMNS, part
        compared = [row for row in part if row.get("paired_with")]
        if compared:
            yield data, "compared row by row", PAIRED_COLUMNS, compared


def _conclusions(rows: list[dict]) -> list[str]:
    """What may be concluded, a sentence a row; and the two lines that explain the table."""
    return [
        *(f"{_init_of(row)}{row['conclusion']}." for row in rows),
        "Interval: 95 % of 10,000 paired bootstrap draws, of n rows out of n and k - 1 seeds out "
        "of k, with replacement (of rows alone with one seed). Only it right: rows that more of "
        "its seeds get right than of the other's.",
        "p: McNemar's exact test of these rows, two-sided; Holm: corrected for all methods that "
        "are compared with the same one. A difference is told only where p after Holm is below "
        "0.05 and the interval leaves 0 out.",
    ]


def _init_of(row: dict) -> str:
    """What a conclusion is about, where it does not say so itself."""
    init = row["init"]
    return f"{init}: " if row["paired_with"].startswith(f"{init}/") else ""


def csv_text(rows: list[dict]) -> str:
    """One line a row, the keys of report.json; lists joined, None empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        flat = {**row, "seeds": " ".join(map(str, row["seeds"])), "notes": "; ".join(row["notes"])}
        writer.writerow(flat)
    return stream.getvalue()


def json_text(rows: list[dict]) -> str:
    """report.json: the list of rows."""
    return json.dumps(rows, indent=1, allow_nan=False) + "\n"


def footer_lines(rows: list[dict], unfinished: list[Unfinished] = ()) -> list[str]:
    """What one must know to read the table: choice of checkpoint, seeds, test rows, warnings."""
    lines = [
        "Checkpoint: the epoch with the highest accuracy on valid, the latest on ties; test took "
        "no part in the choice. Accuracy is that epoch's, on test.",
        f"Seeds: {_seeds(rows)}. ± is the sample standard deviation over seeds; worst and best are "
        "single seeds.",
        "Difference to full: points of test accuracy, paired by seed with full fine-tuning of the "
        "same init; Student's t interval over seeds.",
        "Best epoch on test: mean over seeds of each run's highest test accuracy, so chosen ON "
        "TEST and too high; only for comparison with figures made that way.",
    ]
    lines += _test_rows(rows)
    if "paired_with" not in rows[0]:
        lines.append(
            "Not compared row by row, so without p values: no run has predictions.npz, which "
            "earlier versions did not write."
        )
    lines += [f"Warning: {_name(row)}: {note}." for row in rows for note in row["notes"]]
    lines += [f"Unfinished, not in the table: {one.path} ({one.reason})." for one in unfinished]
    return lines


def _by_data(rows: list[dict]) -> dict[str, list[dict]]:
    groups = {}
    for row in rows:
        groups.setdefault(row["data"], []).append(row)
    return groups


def _name(row: dict) -> str:
    return f"{row['data']}/{row['init']}/{row['method']}"


def _seeds(rows: list[dict]) -> str:
    """How many seeds and which; then the rows that have others."""
    # a baseline without randomness has one seed, which says nothing of the others
    trained = [row for row in rows if row["init"] != "baseline"] or rows
    lists = [tuple(row["seeds"]) for row in trained]
    usual = max(lists, key=lists.count)
    text = f"{len(usual)} a row ({', '.join(map(str, usual))})"
    if len(usual) == 1:
        text += ", so no spread and no interval"
    others = [
        f"{_name(row)} has {', '.join(map(str, row['seeds']))}"
        for row in trained
        if tuple(row["seeds"]) != usual
    ]
    return "; ".join([text, *others])


def _test_rows(rows: list[dict]) -> list[str]:
    """One line a data set: how many test rows, and what that alone leaves open."""
    lines = []
    for data, part in _by_data(rows).items():
        sizes = {row["num_test_rows"] for row in part} - {None}
        accuracies = [row["test_accuracy_mean"] for row in part]
        accuracies = [value for value in accuracies if value is not None]
        if len(sizes) == 1 and accuracies:
            size = sizes.pop()
            widest = max(sampling_error(value, size) for value in accuracies)
            lines.append(
                f"Test set of {data}: {size:,} rows, the same for all runs; so few rows leave up "
                f"to ±{100 * widest:.1f} points (95 %) open on one accuracy, which ± does not show."
            )
    return lines


def _aligned(columns: tuple, rows: list[dict]) -> str:
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
            [_cut(cell, limit) if is_left else cell for cell, is_left in zip(line, left)]
            for line in body
        ]
        widths = [max(len(line[c]) for line in head + cut) for c in range(len(columns))]
        width = sum(widths) + len(GAP) * (len(widths) - 1)
        if width <= MAX_WIDTH or limit <= 6:
            break
        limit -= 1
    rule = "-" * width

    def show(line: list[str]) -> str:
        cells = [
            cell.ljust(size) if is_left else cell.rjust(size)
            for cell, size, is_left in zip(line, widths, left)
        ]
        return GAP.join(cells).rstrip()

    return "\n".join([*map(show, head), rule, *map(show, cut)])


def _wrap(line: str) -> str:
    import textwrap

    return textwrap.fill(
        line, MAX_WIDTH, subsequent_indent="  ", break_long_words=True, break_on_hyphens=False
    )


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 2] + ".."


def _plain(header: str) -> str:
    return header.lstrip("<").replace("\n", " ")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _mean_sd(row: dict) -> str:
    mean, sd = row["test_accuracy_mean"], row["test_accuracy_sd"]
    if mean is None:
        return "-"
    return _percent(mean) if sd is None else f"{_percent(mean)} ± {100 * sd:.2f}"


def _difference(row: dict, of: str = "difference_to_full") -> str:
    mean, low, high = (row[f"{of}_{part}"] for part in ("mean", "low", "high"))
    if mean is None:
        return "-"
    if low is None:
        return f"{100 * mean:+.2f}"
    return f"{100 * mean:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def _p_value(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else "<0.0001"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _share(row: dict) -> str:
    trainable, total = row["trainable_parameters"], row["total_parameters"]
    if not trainable or not total:
        return "-"
    return f"{100 * trainable / total:.2f}"


def _learning_rate(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _bytes(value: float | None) -> str:
    """SI: 1 MB is 1,000,000 bytes."""
    if value is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            decimals = 0 if unit == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{value:.{decimals}f} {unit}"
        value /= 1000
    return f"{value:,.2f} TB"


def write_tables(rows: list[dict], unfinished: list[Unfinished], out: Path) -> list[Path]:
    """report.txt, .md, .csv and .json in ``out``."""
    from fairseq_peft.report.result import write_atomic

    texts = {
        "report.txt": terminal(rows, unfinished),
        "report.md": markdown(rows, unfinished),
        "report.csv": csv_text(rows),
        "report.json": json_text(rows),
    }
    for name, text in texts.items():
        write_atomic(out / name, text)
    return [out / name for name in texts]

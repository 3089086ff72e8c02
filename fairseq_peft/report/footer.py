"""What one must know to read the tables: lines below them."""

from __future__ import annotations

from fairseq_peft.report.cells import points
from fairseq_peft.report.runs import LeftOut, Run, kind_of
from fairseq_peft.report.stats import sampling_error
from fairseq_peft.scores import has_accuracy


def footer_lines(rows: list[dict], left_out: list[LeftOut] = ()) -> list[str]:
    """What one must know to read the table: choice of checkpoint, seeds, test rows, warnings."""
    lines = [
        f"Checkpoint: the epoch with the best {_metrics(rows)} on valid, the latest on ties; test "
        "took no part in the choice. All scores on test are that epoch's.",
        f"Seeds: {_seeds(rows)}. ± is the sample standard deviation over seeds; worst and best are "
        "single seeds.",
    ]
    are_right = any(has_accuracy(row["kind"]) for row in rows)
    if are_right:
        lines += [
            "Difference to full: points of test accuracy, paired by seed with full fine-tuning of "
            "the same init on as many training rows; Student's t interval over seeds.",
            "Best epoch on test: mean over seeds of each run's highest test accuracy, so chosen ON "
            "TEST and too high; only for comparison with figures made that way.",
        ]
    lines += _test_rows(rows)
    if not are_right:
        lines.append(
            "Not compared row by row: where a row has a number or a text, no answer is quite right."
        )
    elif "paired_with" not in rows[0]:
        lines.append(
            "Not compared row by row, so without p values: no run has predictions.npz, which "
            "earlier versions did not write."
        )
    elif len(rows) > 1 and not any(row["paired_with"] for row in rows):
        lines.append(
            "Not compared row by row, so without p values: there is no run of full fine-tuning. "
            "--compare-with names another method for the others to be compared with."
        )
    lines += [f"Warning: {_name(row)}: {note}." for row in rows for note in row["notes"]]
    for one in left_out:
        word = "Left out of the tables" if one.finished else "Unfinished, not in the table"
        lines.append(f"{word}: {one.path} ({one.reason}).")
    return lines


def _metrics(rows: list[dict]) -> str:
    """By what checkpoints were chosen: one name, or each with how many rows."""
    names = [row["metric"] or "metric of each run" for row in rows]
    if len(set(names)) == 1:
        return names[0]
    return " / ".join(f"{name} ({names.count(name)} rows)" for name in dict.fromkeys(names))


def by_data(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of each data set; where some are of another kind of task, which nothing can be
    compared with, those of each kind."""
    kinds, groups = {}, {}
    for row in rows:
        kinds.setdefault(row["data"], set()).add(row["kind"])
    for row in rows:
        data, kind = row["data"], row["kind"]
        groups.setdefault(data if len(kinds[data]) == 1 else f"{data} ({kind})", []).append(row)
    return groups


def runs_of(rows: list[dict], runs: list[Run]) -> list[Run]:
    """The runs of a group of ``by_data``."""
    data, kind = rows[0]["data"], rows[0]["kind"]
    return [run for run in runs if run.result["data"] == data and kind_of(run.result) == kind]


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
    for data, part in by_data(rows).items():
        sizes = {row["num_test_rows"] for row in part} - {None}
        accuracies = [row["test_accuracy_mean"] for row in part]
        accuracies = [value for value in accuracies if value is not None]
        if len(sizes) == 1 and accuracies:
            size = sizes.pop()
            widest = max(sampling_error(value, size) for value in accuracies)
            lines.append(
                f"Test set of {data}: {size:,} rows, the same for all runs; so few rows leave up "
                f"to ±{points(widest)} points (95 %) open on one accuracy, which ± does not show."
            )
    return lines

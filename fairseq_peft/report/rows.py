"""Runs -> rows: one row for each (data, init, method), what report.json and report.csv hold."""

from __future__ import annotations

import re

from fairseq_peft.report import answers
from fairseq_peft.report.comparisons import add_comparisons
from fairseq_peft.report.references import FULL, reference_of, without_number
from fairseq_peft.report.runs import Run, kind_of
from fairseq_peft.report.stats import mean, mean_interval, paired_difference, sample_sd
from fairseq_peft.scores import CLASSES, ROUGE

INIT_ORDER = ("baseline", "scratch", "pretrained")
# Metrics that tasks of one class a row do not have.
OF_OTHER_KINDS = ("micro_f1", "pearson", "spearman", "mse", "loss", *ROUGE)
# What must not change between the seeds of one row.
SAME = ("chosen_by", "arch", "base", "method_config", "rows", "num_epochs", "task_bytes")


def build_rows(runs: list[Run], compare_with: str = FULL) -> list[dict]:
    """One dict a (data, init, method): fractions, SI units, None where a figure is not defined.

    ``compare_with`` is the method that the others are compared with, row by row of the test set.

    Sorted by data, then baseline, scratch, pretrained, then by trainable parameters, most first.
    ``notes`` says in words where the runs of a row were not run alike.
    """
    groups = {}
    for run in runs:
        key = tuple(run.result[name] for name in ("data", "init", "method"))
        groups.setdefault(key, []).append(run.result)
    sizes = {key: _num_rows(results, "train") for key, results in groups.items()}
    rows = []
    for key, results in groups.items():
        full = reference_of(key, sizes)
        full = groups[full] if full and full[1] == key[1] else []  # of the same init
        full = [result for result in full if kind_of(result) == kind_of(results[0])]
        row = _row(sorted(results, key=lambda result: result["seed"]), full)
        row["notes"] += _other_rows_note(results, runs)
        rows.append(row)
    rows.sort(key=_sort_key)
    for key in dict.fromkeys(key for row in rows for key in row):  # rows are lines of one table
        for row in rows:
            row.setdefault(key, None)
    found, any_file = answers.read_all(rows, runs)
    answers.add_classes(rows, found)
    if any_file:
        add_comparisons(rows, found, compare_with)
    return rows


def _row(results: list[dict], full: list[dict]) -> dict:
    """The row of ``results``, compared with the runs of full fine-tuning in ``full``."""
    test = _by_seed(results)
    difference = paired_difference(test, _by_seed(full))
    values = list(test.values())
    interval = mean_interval(values)
    row = {key: results[0][key] for key in ("data", "init", "method")}
    row.update(
        seeds=[result["seed"] for result in results],
        num_seeds=len(results),
        test_accuracy_mean=mean(values),
        test_accuracy_sd=sample_sd(values),
        test_accuracy_low=interval and interval[0],
        test_accuracy_high=interval and interval[1],
        test_accuracy_best=max(values, default=None),
        test_accuracy_worst=min(values, default=None),
        metric=_metric(_common(results, "chosen_by")),
        best_value_mean=mean([result["best_value"] for result in results]),
        **_spread(results, "test_macro_f1"),
        **_spread(results, "test_mcc"),
        kind=_common(results, "kind") or CLASSES,
        **_of_other_kinds(results),
        valid_accuracy_mean=mean([result["valid_accuracy"] for result in results]),
        best_test_accuracy_mean=mean([result["best_test_accuracy"] for result in results]),
        difference_to_full_mean=difference and difference.mean,
        difference_to_full_low=difference and difference.low,
        difference_to_full_high=difference and difference.high,
        difference_to_full_pairs=difference.num_pairs if difference else 0,
        trainable_parameters=_common(results, "trainable_parameters"),
        total_parameters=_common(results, "total_parameters"),
        task_bytes=_common(results, "task_bytes"),
        seconds_mean=mean([result["seconds"] for result in results]),
        tokens_per_second_mean=mean([result["tokens_per_second"] for result in results]),
        peak_memory_bytes=max(
            (m for m in (result["peak_memory_bytes"] for result in results) if m is not None),
            default=None,
        ),
        learning_rate=_common([result["hyperparameters"] for result in results], "lr"),
        num_epochs=_common(results, "num_epochs"),
        num_train_rows=_num_rows(results, "train"),
        num_test_rows=_num_rows(results, "test"),
        notes=_notes(results, difference.num_pairs if difference else None),
    )
    return row


def _metric(chosen_by: dict | None) -> str | None:
    """What chose the checkpoints, with its split where that is not called valid."""
    if chosen_by is None:
        return None
    metric, subset = chosen_by["metric"], chosen_by["subset"]
    return metric if subset == "valid" else f"{metric} on {subset}"


def _spread(results: list[dict], key: str) -> dict[str, float | None]:
    """Mean and standard deviation over the runs that have a value."""
    values = [result[key] for result in results if result.get(key) is not None]
    return {f"{key}_mean": mean(values), f"{key}_sd": sample_sd(values)}


def _of_other_kinds(results: list[dict]) -> dict[str, float | None]:
    """The scores that tasks of one class a row do not have, where the runs have them."""
    names = [name for name in OF_OTHER_KINDS if any(f"test_{name}" in one for one in results)]
    return {key: v for name in names for key, v in _spread(results, f"test_{name}").items()}


def _by_seed(results: list[dict]) -> dict[int, float]:
    return {
        result["seed"]: result["test_accuracy"]
        for result in results
        if result["test_accuracy"] is not None
    }


def _common(dicts: list[dict], key: str):
    """The value that all have, None if they differ (``_notes`` then says so)."""
    values = [one.get(key) for one in dicts]
    return values[0] if all(value == values[0] for value in values) else None


def _num_rows(results: list[dict], split: str) -> int | None:
    return _common([result["rows"] for result in results], split)


def _notes(results: list[dict], num_pairs: int | None) -> list[str]:
    """Where the runs of one row differ in more than the seed."""
    notes = []
    hyper = [result["hyperparameters"] for result in results]
    for key in sorted({key for one in hyper for key in one} - {"seed"}):
        notes += _difference_note("learning rate" if key == "lr" else key, results, hyper, key)
    for key in (*SAME, "trainable_parameters", "total_parameters"):
        notes += _difference_note(key, results, results, key)
    if num_pairs is not None and num_pairs < len(results):
        notes.append(f"only {num_pairs} of its {len(results)} seeds have a run of full fine-tuning")
    return notes


def _difference_note(name: str, results: list[dict], dicts: list[dict], key: str) -> list[str]:
    seeds = {}
    for result, one in zip(results, dicts):
        value = one.get(key)
        text = f"{value:,}" if isinstance(value, int) else str(value)
        seeds.setdefault(text, []).append(str(result["seed"]))
    if len(seeds) == 1:
        return []
    parts = [f"{value} (seed {', '.join(which)})" for value, which in seeds.items()]
    return [f"its runs differ in {name}: {'; '.join(parts)}"]


def _other_rows_note(results: list[dict], runs: list[Run]) -> list[str]:
    """Accuracies are comparable only if all runs of a data set had the same rows. What is trained
    on fewer and has their number in its name, ``lora-64``, says so itself."""
    first = results[0]
    others = [run.result for run in runs if run.result["data"] == first["data"]]
    sizes = [result["rows"] for result in others if kind_of(result) == kind_of(first)]
    usual, mine = max(sizes, key=sizes.count), results[0]["rows"]
    method, number = results[0]["method"], mine.get("train")
    says_so = without_number(method, number) != method
    if mine == usual or (says_so and {**mine, "train": usual.get("train")} == usual):
        return []
    text = [", ".join(f"{key} {value}" for key, value in one.items()) for one in (mine, usual)]
    return [f"its rows ({text[0]}) are not those of the other runs ({text[1]})"]


def _sort_key(row: dict) -> tuple:
    init = row["init"]
    order = INIT_ORDER.index(init) if init in INIT_ORDER else len(INIT_ORDER)
    # lora-64 before lora-256
    method = [
        int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", row["method"])
    ]
    return row["data"], order, init, -(row["trainable_parameters"] or 0), method

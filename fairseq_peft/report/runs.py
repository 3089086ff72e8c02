"""Find the runs below a folder, and read their files with every mistake a sentence."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from fairseq_peft import folders, scores
from fairseq_peft.errors import InputError
from fairseq_peft.files import json_of
from fairseq_peft.runs.choice import Choice
from fairseq_peft.runs.log import is_count, valid_lines

SCHEMA = 1
NUMBER = (int, float)
# key of result.json -> (type, may be null); a baseline has no epochs, so null where a run has them
RESULT_FIELDS = {
    "data": (str, False),
    "init": (str, False),
    "method": (str, False),
    "seed": (int, False),
    "rows": (dict, False),
    "hyperparameters": (dict, False),
    "method_config": (dict, False),
    "trainable_parameters": (int, False),
    "total_parameters": (int, False),
    "task_bytes": (int, True),
    "num_epochs": (int, True),
    "best_epoch": (int, True),
    "valid_accuracy": (NUMBER, False),
    "test_accuracy": (NUMBER, True),
    "test_macro_f1": (NUMBER, True),
    "test_mcc": (NUMBER, True),
    "best_test_epoch": (int, True),
    "best_test_accuracy": (NUMBER, True),
    "seconds": (NUMBER, True),
    "train_seconds": (NUMBER, True),
    "tokens_per_second": (NUMBER, True),
    "peak_memory_bytes": (int, True),
    "curve": (list, False),
}
KEY = ("data", "init", "method", "seed")  # what tells two runs apart
# What else makes a run, and its accuracies: where these are equal, two runs are copies.
DECIDED = ("arch", "base", "method_config", "hyperparameters", "chosen_by", "rows", "curve")
BY_ACCURACY = {"metric": "accuracy", "subset": "valid"}
ACCURACIES = ("valid_accuracy", "test_accuracy", "best_test_accuracy")
CURVE_FIELDS = ("train_loss", "valid_accuracy", "test_accuracy", "valid_value", "test_value")
#: What an average has: the validations are those of the run, and none is its own.
OF_NO_VALIDATION = {"curve": [], "best_test_epoch": None, "best_test_accuracy": None}
#: Numbers are below it; the square of the largest float32 is.
LARGEST = 1e100


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its result.json."""

    path: Path
    result: dict


@dataclass(frozen=True)
class LeftOut:
    """A run's folder that does not count, and why.

    Attributes:
        finished: it has a result.json, which is broken or a second one of the same run; else the
            reason says how far the run came.
    """

    path: Path
    reason: str
    finished: bool = False


def find_runs(root: Path | str) -> tuple[list[Run], list[LeftOut]]:
    """Every run below ``root`` that counts, and every one that does not; each sorted by path.

    A run's folder is one with a result.json or a run.json, or one called ``seed<k>``. What a run
    is (data, init, method, seed) its files say, wherever it lies.

    Raises:
        InputError: no such folder, or no run in it that counts.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"'{root}' is not a folder; give the folder that holds the runs")
    finished, left_out = [], []
    for path, _, files in folders.walk(root):
        if "result.json" in files:
            try:
                finished.append(Run(path, read_result(path / "result.json")))
            except InputError as error:
                left_out.append(LeftOut(path, str(error), finished=True))
        elif "run.json" in files or (path != root and re.fullmatch(r"seed\d+", path.name)):
            left_out.append(LeftOut(path, _how_far(path)))
    if not finished:
        broken = next((f"; {one.reason}" for one in left_out if one.finished), "")
        unfinished = sum(not one.finished for one in left_out)
        raise InputError(
            f"no result.json below '{root}' counts ({unfinished} unfinished runs){broken}; "
            "expected <data>/<init>/<method>/seed<k>/result.json, which "
            "`fairseq-peft result RUN_DIR` writes"
        )
    finished, copies = _without_copies(finished)
    return finished, sorted([*left_out, *copies], key=lambda one: one.path)


def best(folders: list[Path]) -> int:
    """Number of the run that is best on valid, the first of equals: by what chose within each run,
    if that is the same in all, else by accuracy.

    Raises:
        InputError: as ``read_result``, and where the runs have no score in common.
    """
    results = [read_result(folder / "result.json") for folder in folders]
    choices = {Choice.of_run(result) for result in results}
    choice = choices.pop() if len(choices) == 1 else Choice()
    key, sign = "valid_accuracy", 1
    if choice.metric != "accuracy":
        key, sign = "best_value", 1 if choice.maximize else -1
    if any(result.get(key) is None for result in results):
        raise InputError(
            "The runs have no score on valid in common: they are of different kinds of task, or "
            "other metrics chose their checkpoints. Give runs that can be compared."
        )
    return max(range(len(results)), key=lambda i: (sign * results[i][key], -i))


def read_json(path: Path) -> dict:
    """The JSON object in ``path``.

    Raises:
        InputError: missing, unreadable, not UTF-8, not JSON, or not an object.
    """
    try:
        content = json_of(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is not UTF-8 (byte {error.start})") from None
    except ValueError as error:
        where = f"line {error.lineno}: {error.msg}" if hasattr(error, "lineno") else str(error)
        raise InputError(
            f"'{path}' is not JSON ({where}); delete it and finish the run again"
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"'{path}' holds a {type(content).__name__}, expected a JSON object")
    return content


def kind_of(result: dict) -> str:
    """The kind of a run's task, which decides what its accuracy means. Earlier versions did not say
    it: they knew no other than one class a row."""
    return result.get("kind", scores.CLASSES)


def read_result(path: Path) -> dict:
    """result.json at ``path``, checked against the schema (``docs/design.md``)."""
    result = read_json(path)
    check_result(result, path)
    if "averaged" in result:
        result.update(OF_NO_VALIDATION)  # earlier versions wrote those of the run
    # what earlier versions did not say: they knew no other metric
    return {"best_value": result["valid_accuracy"], "chosen_by": BY_ACCURACY, **result}


def check_result(result: dict, path: Path) -> None:
    """Raise InputError at the first field of ``result`` that the schema does not allow."""
    if result.get("schema") != SCHEMA:
        raise InputError(
            f"'{path}' has schema {result.get('schema')!r}, this version reads {SCHEMA}; "
            "delete it and write it again with `fairseq-peft result`"
        )
    kind = kind_of(result)
    if not isinstance(kind, str) or kind not in scores.METRICS:
        raise InputError(
            f"'{path}': 'kind' is {kind!r:.40}, expected one of {', '.join(scores.METRICS)}"
        )
    judged = scores.has_accuracy(kind)
    for key, (types, nullable) in RESULT_FIELDS.items():
        if key not in result:
            raise InputError(f"'{path}' has no '{key}'; write it again with `fairseq-peft result`")
        value = result[key]
        if value is None and (nullable or (key == "valid_accuracy" and not judged)):
            continue
        # bool is an int to Python, but no count
        if not isinstance(value, types) or isinstance(value, bool):
            expected = "a number" if types is NUMBER else types.__name__
            raise InputError(f"'{path}': '{key}' is {value!r:.40}, expected {expected}")
        if types in (int, NUMBER):
            _check_number(value, key, path)
        if key in ACCURACIES and not 0 <= value <= 1:
            raise InputError(f"'{path}': '{key}' is {value}, expected a fraction in [0, 1]")
        if types is str and not value.isprintable():
            raise InputError(f"'{path}': '{key}' is {value!r}, expected a name on one line")
    for key, value in result.items():
        if key.startswith("test_") and value is not None:
            _check_number(value, key, path)
    _check_inner(result, path)
    for point in result["curve"]:
        if (
            not isinstance(point, dict)
            or not is_count(point.get("epoch"))
            or not all(is_number(point[key]) for key in CURVE_FIELDS if point.get(key) is not None)
        ):
            raise InputError(
                f"'{path}': {point!r:.80} in 'curve'; expected 'epoch' and numbers (or null) for "
                + ", ".join(CURVE_FIELDS)
            )


def is_number(value) -> bool:
    """Whether a value read off JSON is one to compute with: finite, and with room for squares."""
    return type(value) in NUMBER and abs(value) < LARGEST  # NaN is not


def _check_number(value, key: str, path: Path) -> None:
    """Raise InputError where ``value`` of ``key`` is none to compute with."""
    if is_number(value):
        return
    expected = "a number"
    if type(value) in NUMBER:
        is_finite = abs(value) < math.inf
        expected = f"a number below {LARGEST:g}" if is_finite else "a finite number"
    raise InputError(f"'{path}': '{key}' is {value!r:.40}, expected {expected}")


def _check_inner(result: dict, path: Path) -> None:
    """The same for what the report reads inside of fields, and for those that may be missing."""
    for split, number in result["rows"].items():
        if type(number) is not int or not 0 <= number < LARGEST:
            raise InputError(f"'{path}': 'rows' has {number!r:.40} for {split}, expected a count")
    rate = result["hyperparameters"].get("lr")
    if rate is not None:
        _check_number(rate, "lr", path)
    labels = result.get("labels", [])
    if not isinstance(labels, list) or not all(isinstance(one, str) for one in labels):
        raise InputError(f"'{path}': 'labels' is {labels!r}, expected the names of the classes")
    chosen_by = result.get("chosen_by", BY_ACCURACY)
    names = [chosen_by.get(key) for key in BY_ACCURACY] if isinstance(chosen_by, dict) else [None]
    if not all(isinstance(name, str) and name.isprintable() for name in names):
        raise InputError(
            f"'{path}': 'chosen_by' is {chosen_by!r}, expected the names of a metric and a subset"
        )
    value = result.get("best_value")
    if value is not None:
        _check_number(value, "best_value", path)


def read_metrics(path: Path) -> dict[int, dict]:
    """``read_validations`` as {epoch: line} of the last one of each epoch, epochs ascending."""
    return dict(sorted((line["epoch"], line) for line in read_validations(path)))


def read_validations(path: Path) -> list[dict]:
    """The lines of metrics.jsonl, one a validation; of a repeated one the last line counts.

    Raises:
        InputError: missing, a line that is not a JSON object, or one without a positive ``epoch``
            or without ``num_updates``.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is not UTF-8 (byte {error.start})") from None
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json_of(line)
        except ValueError as error:
            raise InputError(
                f"{path}:{number} is not JSON ({error}); delete the line if a crash cut it off"
            ) from None
        epoch = record.get("epoch") if isinstance(record, dict) else None
        if not is_count(epoch):
            raise InputError(f"{path}:{number} has epoch {epoch!r:.40}, expected 1, 2, ...")
        if not is_count(record.get("num_updates")):
            raise InputError(f"'{path}' does not have the fields of docs/design.md: num_updates")
        lines.append(record)
    return valid_lines(lines)


def _how_far(path: Path) -> str:
    """Why ``path`` counts as unfinished, in words."""
    if not (path / "run.json").exists():
        return "no run.json: it did not reach its first update"
    try:
        planned = read_json(path / "run.json").get("hyperparameters", {}).get("max_epoch")
        done = len(read_metrics(path / "metrics.jsonl")) if (path / "metrics.jsonl").exists() else 0
        is_done = bool(planned) and done >= planned
    except (InputError, AttributeError, TypeError) as error:
        return f"broken: {error}"
    if is_done:
        return f"all {planned} epochs done, result missing: `fairseq-peft result` writes it"
    return f"{done} of {planned} epochs" if planned else f"{done} epochs"


def _without_copies(runs: list[Run]) -> tuple[list[Run], list[LeftOut]]:
    """One run for each (data, init, method, seed): two would be averaged as if of two seeds.

    The one at its place in the tree counts, else the first by path.
    """
    counting, copies = {}, []
    for run in sorted(runs, key=lambda run: not _in_place(run)):
        key = tuple(run.result[name] for name in KEY)
        first = counting.setdefault(key, run)
        if first is not run:
            copies.append(LeftOut(run.path, _second(run, first), finished=True))
    return [run for run in runs if any(run is one for one in counting.values())], copies


def _in_place(run: Run) -> bool:
    """Whether ``run`` lies in .../<data>/<init>/<method>/seed<k>."""
    *names, seed = (run.result[name] for name in KEY)
    return run.path.absolute().parts[-4:] == (*names, f"seed{seed}")


def _second(run: Run, first: Run) -> str:
    *names, seed = (run.result[name] for name in KEY)
    text = f"it is {'/'.join(names)}/seed{seed}, as '{first.path}' is, which counts"
    differ = [key for key in DECIDED if run.result.get(key) != first.result.get(key)]
    if not differ:
        return f"{text}: a copy of it"
    return (
        f"{text}. They differ ({', '.join(differ)}): for a row of its own, give it another "
        f"\"method\" in '{run.path / 'run.json'}', and run `fairseq-peft result` on it again"
    )

"""run.json and metrics.jsonl of one run -> result.json, the mark of a finished run."""

from __future__ import annotations

import json
import math
from pathlib import Path

from fairseq_peft.errors import InputError, unwritten
from fairseq_peft.files import whole
from fairseq_peft.report import tensorboard
from fairseq_peft.report.runs import SCHEMA, check_result, kind_of, read_json, read_validations
from fairseq_peft.runs import predictions
from fairseq_peft.runs.choice import Choice
from fairseq_peft.runs.log import is_count
from fairseq_peft.scores import CLASSES, METRICS, has_accuracy, is_share


def summarise(run_dir: Path | str, require_epochs: int = 0) -> dict:
    """What result.json says of the run in ``run_dir``.

    The best validation is the one that the run itself chose (``runs.choice``): that of
    checkpoint_best.pt and of the adapter folder; ``test`` has no say in it. ``best_test_epoch`` is
    the one that ``test`` would have chosen. What was run again counts once, with its last line, in
    accuracy and in seconds.

    Raises:
        InputError: files missing or broken, epochs missing, or an epoch that evaluated fewer rows
            than the data has.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise InputError(f"'{run_dir}' is not a folder; expected the folder of one run")
    path = run_dir / "run.json"
    run = read_json(path)
    if run.get("schema") != SCHEMA:
        raise InputError(f"'{path}' has schema {run.get('schema')!r}, this version reads {SCHEMA}")
    path = run_dir / "metrics.jsonl"
    lines = read_validations(path)
    epochs = {line["epoch"] for line in lines}
    last = max(require_epochs, max(epochs, default=1))
    try:
        missing = _first_missing(run, epochs, last)
    except (TypeError, AttributeError):
        raise InputError(
            f"'{run_dir / 'run.json'}' has no count of epochs in validated.every_epochs; expected "
            "what a run writes there, from 1. Run it again."
        ) from None
    if missing or not lines:
        raise InputError(
            f"'{run_dir}' is not finished: {len(epochs)} epochs done, {last} expected "
            f"(the first missing one is {missing or last}); start the run again, it resumes"
        )
    try:
        result = {**run, **_numbers(run, lines)}
    except InputError as error:  # which is a ValueError, too
        raise InputError(f"'{path}': {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise InputError(
            f"'{path}' does not have the fields of docs/design.md: {type(error).__name__} {error}"
        ) from None
    check_result(result, run_dir / "result.json")
    return result


def in_words(result: dict) -> str:
    """``test accuracy 88.10 % at epoch 3 of 5, chosen on valid (87.25 %)``: the metric that chose,
    or the usual one of such a task, where that is the loss or F1 of a class."""
    metric = Choice.of_run(result).metric
    usual = METRICS[kind_of(result)][0]
    name = metric if f"test_{metric}" in result else usual
    test = result[f"test_{name}"]
    found = "not measured" if test is None else _shown(name, test)
    valid = f"{'' if name == metric else metric + ' '}{_shown(metric, result['best_value'])}"
    return (
        f"test {name} {found} at epoch {result['best_epoch']} of {result['num_epochs']}, chosen on "
        f"valid ({valid})"
    )


def _shown(metric, value):
    return f"{100 * value:.2f} %" if is_share(metric) else f"{value:.3f}"


def conclude(run_dir: Path | str, result: dict) -> Path:
    """Leave what a finished run has: its hyper-parameters for TensorBoard, what it predicted at its
    best, and, last, because it says that everything is there, result.json."""
    try:
        tensorboard.write_hparams(run_dir, result)
    except OSError as error:
        raise InputError(
            f"cannot write '{run_dir}': {error.strerror or error}. Give rights there."
        ) from error
    keep_predictions(run_dir, result)
    return write_result(run_dir, result)


def keep_predictions(run_dir: Path | str, result: dict) -> None:
    """Keep what the run predicted at the best of ``result`` as predictions.npz, and no other."""
    try:
        predictions.keep(run_dir, result["best_epoch"], result["best_update"])
    except OSError as error:
        raise InputError(f"cannot write '{run_dir}': {error.strerror}") from None


def write_result(run_dir: Path | str, result: dict) -> Path:
    """Write result.json into ``run_dir``: there whole, or not at all."""
    path = Path(run_dir) / "result.json"
    write_atomic(path, json.dumps(result, indent=1, allow_nan=False) + "\n")
    return path


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    try:
        with whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise unwritten(path, error) from None


def _first_missing(run: dict, epochs: set[int], last: int) -> int | None:
    """The first epoch up to ``last`` that should have been validated and was not.

    Raises:
        TypeError, AttributeError: ``validated`` of the run is not what a run writes.
    """
    validated = run.get("validated") or {}
    every = validated.get("every_epochs", 1)
    if not is_count(every):
        raise TypeError
    first = min(epochs, default=1) if validated.get("after_updates") else 1
    expected = range(first + -first % every, last + 1, every)
    return next((epoch for epoch in expected if epoch not in epochs), None)


def _numbers(run: dict, lines: list[dict]) -> dict:
    """The fields that result.json has beyond run.json, from the lines of metrics.jsonl."""
    choice = Choice.of_run(run)
    valid = [_accuracy(run, line, choice.subset) for line in lines]
    test = [_accuracy(run, line, "test") if "test" in line["subsets"] else None for line in lines]
    chosen = choice.best_of(lines)
    if chosen is None:
        raise InputError(f"no validation has a finite {choice.metric}: training has diverged")
    best = next(i for i, line in enumerate(lines) if line is chosen)
    at_best = chosen["subsets"].get("test", {})
    kind = kind_of(run)
    tested = [i for i, accuracy in enumerate(test) if accuracy is not None]
    if len(tested) < len(lines):  # --eval-test best: what test would have chosen is not known
        tested = []
        at_end = (run.get("validated") or {}).get("test") == "best"
        if at_end and "test" in run["rows"] and not at_best:
            raise InputError(
                f"the best validation, of epoch {chosen['epoch']}, has no 'test' yet, which "
                "--eval-test best evaluates at the end; start the run again, it resumes"
            )
    best_test = max(tested, key=lambda i: test[i], default=None)
    train = list({line["epoch"]: line["train"] for line in lines}.values())  # the last of each
    train_seconds = sum(part["seconds"] for part in train)
    unvalidated_seconds = sum(line.get("unvalidated_seconds", 0) for line in lines)
    valid_seconds = sum(subset["seconds"] for line in lines for subset in line["subsets"].values())
    num_tokens = sum(part["num_tokens"] for part in train)
    memory = [line.get("peak_memory_bytes") for line in lines]
    return {
        "num_epochs": lines[-1]["epoch"],
        "best_epoch": chosen["epoch"],
        "best_update": chosen["num_updates"],
        "best_value": choice.value(chosen["subsets"]),
        "valid_accuracy": valid[best],
        "test_accuracy": test[best],
        "test_macro_f1": _finite(at_best.get("macro_f1")),
        "test_mcc": _finite(at_best.get("mcc")),
        **{
            f"test_{name}": _finite(at_best.get(name))
            for name in METRICS[kind]
            if kind != CLASSES and name not in ("accuracy", "macro_f1")
        },
        "best_test_epoch": None if best_test is None else lines[best_test]["epoch"],
        "best_test_accuracy": None if best_test is None else test[best_test],
        "seconds": train_seconds + unvalidated_seconds + valid_seconds,
        "train_seconds": train_seconds + unvalidated_seconds,
        "tokens_per_second": num_tokens / train_seconds if train_seconds > 0 else None,
        "peak_memory_bytes": max((m for m in memory if m is not None), default=None),
        "curve": [
            {
                "epoch": line["epoch"],
                "num_updates": line["num_updates"],
                "train_loss": _finite(line["train"]["loss"]),
                "valid_accuracy": valid[i],
                "test_accuracy": test[i],
                "valid_value": _finite(choice.value(line["subsets"])),
                "test_value": _finite(line["subsets"].get("test", {}).get(choice.metric)),
            }
            for i, line in enumerate(lines)
        ],
    }


def _accuracy(run: dict, line: dict, subset: str) -> float | None:
    """Accuracy from the counts, once it is sure that every row was evaluated; None for answers that
    are never quite right."""
    epoch = line["epoch"]
    if subset not in line["subsets"]:
        raise InputError(
            f"epoch {epoch} has no '{subset}' (it has {', '.join(line['subsets']) or 'none'}); "
            "train with --valid-subset valid,test"
        )
    counts = line["subsets"][subset]
    judged = has_accuracy(kind_of(run))
    correct, examples = counts["num_correct"] if judged else 0, counts["num_examples"]
    expected = run["rows"].get(subset, examples)
    if examples != expected or not 0 <= correct <= examples or examples < 1:
        raise InputError(
            f"epoch {epoch}: {correct} right of {examples} rows of '{subset}'; "
            f"the data has {expected} rows"
        )
    return correct / examples if judged else None


def _finite(value: float | None) -> float | None:
    """JSON has no NaN: a diverged loss is null."""
    return value if value is not None and math.isfinite(value) else None

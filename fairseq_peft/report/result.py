"""run.json and metrics.jsonl of one run -> result.json, the mark of a finished run."""

from __future__ import annotations

import json
import math
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.files import whole
from fairseq_peft.report.runs import SCHEMA, check_result, read_json, read_metrics
from fairseq_peft.runs import predictions


def summarise(run_dir: Path | str, require_epochs: int = 0) -> dict:
    """What result.json says of the run in ``run_dir``.

    The best epoch has the highest accuracy on ``valid``, the latest on ties, as fairseq's
    checkpoint_best.pt has; ``test`` has no say in it. ``best_test_epoch`` is the one that ``test``
    would have chosen. An epoch that was run again counts once, with its last line, in accuracy and
    in seconds.

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
    epochs = read_metrics(path)
    last = max(require_epochs, max(epochs, default=1))
    missing = [epoch for epoch in range(1, last + 1) if epoch not in epochs]
    if missing:
        raise InputError(
            f"'{run_dir}' is not finished: {len(epochs)} epochs done, {last} expected "
            f"(the first missing one is {missing[0]}); start the run again, it resumes"
        )
    try:
        result = {**run, **_numbers(run, epochs)}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"'{path}' does not have the fields of docs/design.md: {type(error).__name__} {error}"
        ) from None
    except InputError as error:
        raise InputError(f"'{path}': {error}") from None
    check_result(result, run_dir / "result.json")
    return result


def keep_predictions(run_dir: Path | str, result: dict) -> None:
    """Keep what the run predicted at the epoch of ``result`` as predictions.npz, and no other."""
    try:
        predictions.keep(run_dir, result["best_epoch"])
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
        raise InputError(f"cannot write '{path}': {error.strerror}") from None


def _numbers(run: dict, epochs: dict[int, dict]) -> dict:
    """The fields that result.json has beyond run.json."""
    valid, test = {}, {}
    for epoch, line in epochs.items():
        valid[epoch] = _accuracy(run, epoch, line, "valid")
        if "test" in line["subsets"]:
            test[epoch] = _accuracy(run, epoch, line, "test")
    # fairseq overwrites checkpoint_best.pt with a later equal: the latest on ties is the one kept
    best = max(valid, key=lambda epoch: (valid[epoch], epoch))
    best_test = max(test, key=test.get, default=None)
    at_best = epochs[best]["subsets"].get("test", {})
    train = [line["train"] for line in epochs.values()]
    train_seconds = sum(part["seconds"] for part in train)
    valid_seconds = sum(
        subset["seconds"] for line in epochs.values() for subset in line["subsets"].values()
    )
    num_tokens = sum(part["num_tokens"] for part in train)
    memory = [line.get("peak_memory_bytes") for line in epochs.values()]
    return {
        "num_epochs": len(epochs),
        "best_epoch": best,
        "valid_accuracy": valid[best],
        "test_accuracy": test.get(best),
        "test_macro_f1": _finite(at_best.get("macro_f1")),
        "test_mcc": _finite(at_best.get("mcc")),
        "best_test_epoch": best_test,
        "best_test_accuracy": test.get(best_test),
        "seconds": train_seconds + valid_seconds,
        "train_seconds": train_seconds,
        "tokens_per_second": num_tokens / train_seconds if train_seconds > 0 else None,
        "peak_memory_bytes": max((m for m in memory if m is not None), default=None),
        "curve": [
            {
                "epoch": epoch,
                "train_loss": _finite(line["train"]["loss"]),
                "valid_accuracy": valid[epoch],
                "test_accuracy": test.get(epoch),
            }
            for epoch, line in epochs.items()
        ],
    }


def _accuracy(run: dict, epoch: int, line: dict, subset: str) -> float:
    """Accuracy from the counts, once it is sure that every row was evaluated."""
    if subset not in line["subsets"]:
        raise InputError(
            f"epoch {epoch} has no '{subset}' (it has {', '.join(line['subsets']) or 'none'}); "
            "train with --valid-subset valid,test"
        )
    counts = line["subsets"][subset]
    correct, examples = counts["num_correct"], counts["num_examples"]
    expected = run["rows"].get(subset, examples)
    if examples != expected or not 0 <= correct <= examples or examples < 1:
        raise InputError(
            f"epoch {epoch}: {correct} right of {examples} rows of '{subset}'; "
            f"the data has {expected} rows"
        )
    return correct / examples


def _finite(value: float | None) -> float | None:
    """JSON has no NaN: a diverged loss is null."""
    return value if value is not None and math.isfinite(value) else None

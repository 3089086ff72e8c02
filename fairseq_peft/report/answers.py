"""What runs predicted of each row of the test set: who was right, and what was taken for what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fairseq_peft.errors import InputError
from fairseq_peft.report.runs import KEY, Run
from fairseq_peft.runs import predictions

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Answers:
    """Of one run, of N rows of test.

    Attributes:
        labels: names of the classes.
        target: (N,) class ids of the data, in the order of ``labels``; (N, labels) zeros and ones
            where a row has any number of them.
        predicted: the same, as the run gave it.
    """

    labels: list[str]
    target: np.ndarray
    predicted: np.ndarray

    @property
    def classes(self) -> np.ndarray:
        """(N,) classes of the data by name: two runs may number them differently. Where a row has
        any number of labels, what ``target`` says."""
        import numpy as np

        if self.target.ndim == 2:
            return self.target
        return np.asarray(self.labels, dtype=str)[self.target]

    @property
    def right(self) -> np.ndarray:
        """(N,) whether a row's class, or all of its labels, are right."""
        return predictions.right(self.target, self.predicted)


def read_all(rows: list[dict], runs: list[Run]) -> tuple[dict, bool]:
    """(data, init, method) -> seed -> answers; and whether any run has a file of them.

    A broken file costs its row all of them, with a note in the row.
    """
    answers, broken = {}, set()
    notes = {tuple(row[name] for name in KEY[:3]): row["notes"] for row in rows}
    for run in runs:
        *key, seed = (run.result[name] for name in KEY)
        key = tuple(key)
        try:
            found = read_answers(run)
        except InputError as error:
            broken.add(key)
            notes[key].append(f"it is not compared row by row: {error}")
            continue
        if found is not None:
            answers.setdefault(key, {})[seed] = found
    any_file = bool(answers or broken)
    for key in broken:
        answers.pop(key, None)
    return answers, any_file


def read_answers(run: Run) -> Answers | None:
    """None: the run has no test set, or no file.

    Raises:
        InputError: the file is broken, or speaks of another run than result.json.
    """
    path, result = run.path / predictions.NAME, run.result
    if result["test_accuracy"] is None:
        return None
    try:
        found = predictions.read(path)
    except FileNotFoundError:
        return None
    labels = result.get("labels") or []
    target, predicted = (part.get("test") for part in (found.target, found.predicted))
    if target is None or not len(target) or not _fits(target, predicted, len(labels)):
        raise InputError(f"'{path}' has no classes of the test set that result.json names")
    answers = Answers(labels, target, predicted)
    num_right = answers.right.sum()
    expected = round(result["test_accuracy"] * len(target))
    if found.epoch != (result["best_epoch"] or 0) or num_right != expected:
        raise InputError(
            f"'{path}' has {num_right} of {len(target)} rows right after epoch {found.epoch}, "
            f"result.json {expected} after epoch {result['best_epoch']}; delete the file, only "
            "training again brings the right one back"
        )
    return answers


def _fits(target, predicted, num_labels: int) -> bool:
    """Whether the numbers of a file can be those of so many labels."""
    if target.ndim == 2:
        return target.shape[1] == num_labels and max(target.max(), predicted.max()) <= 1
    return max(target.max(), predicted.max()) < num_labels


def add_classes(rows: list[dict], answers: dict) -> None:
    """Give each row ``classes``, the confusion matrix and what follows from it; None without
    answers. The counts are of all its seeds together."""
    for row in rows:
        by_seed = answers.get(tuple(row[name] for name in KEY[:3]))
        row["classes"] = by_seed and per_class(list(by_seed.values()))


def per_class(answers: list[Answers]) -> list[dict] | None:
    """A dict a class, in the order of the first run; None where the runs name other classes.

    ``rows`` of the class, ``precision``, ``recall`` and ``f1`` (None where nothing is divided by
    nothing), and ``predicted_as``, the class's row of the confusion matrix: class -> rows, without
    zeros.
    """
    import numpy as np

    names = answers[0].labels
    if answers[0].target.ndim == 2:
        return per_label(answers)
    ids = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=int)  # (true, predicted)
    for one in answers:
        if set(one.labels) != set(names):
            return None
        order = np.array([ids[name] for name in one.labels])
        np.add.at(counts, (order[one.target], order[one.predicted]), 1)
    found = []
    for number, (name, line) in enumerate(zip(names, counts)):
        hits, of_class, given = (
            int(n) for n in (line[number], line.sum(), counts[:, number].sum())
        )
        found.append(_of_class(name, hits, of_class, given))
        found[-1]["predicted_as"] = {names[k]: int(line[k]) for k in line.nonzero()[0]}
    return found


def per_label(answers: list[Answers]) -> list[dict] | None:
    """``per_class`` where a row has any number of labels; no label is taken for another one."""
    import numpy as np

    names = answers[0].labels
    if any(one.labels != names for one in answers):
        return None
    target, predicted = (
        np.concatenate([getattr(one, part) for one in answers]) for part in ("target", "predicted")
    )
    counts = ((target & predicted).sum(0), target.sum(0), predicted.sum(0))
    return [_of_class(name, *map(int, numbers)) for name, *numbers in zip(names, *counts)]


def _of_class(name: str, hits: int, rows: int, given: int) -> dict:
    """What follows from how many rows a class has, how many were given it, and how many of these
    rightly."""
    return {
        "class": name,
        "rows": rows,
        "precision": hits / given if given else None,
        "recall": hits / rows if rows else None,
        "f1": 2 * hits / (rows + given) if rows + given else None,
        "predicted_as": {},
    }

"""Test rows worth reading: wrong with all seeds of all methods, or disputed between methods."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.report.answers import Answers, read_answers
from fairseq_peft.report.html.words import name_of
from fairseq_peft.report.runs import Run
from fairseq_peft.runs import plan
from fairseq_peft.scores import LABELS
from fairseq_peft.text.corpus import find
from fairseq_peft.text.rows import Reader

MAX_ROWS = 10  # of each kind
MAX_TEXT = 2000  # letters of one
NO_PREDICTIONS = "No run has predictions of its test rows (predictions.npz)."


@dataclass
class Example:
    """A row of test.

    Attributes:
        number: of the row, from 1.
        texts: one, or both of a pair; empty where they are not known.
        label: what the data says.
        right: methods all of whose seeds are right.
        wrong: what was given -> methods all of whose seeds are wrong.
        mixed: (method, how many of its seeds are right).
    """

    number: int
    texts: list[str]
    label: str
    right: list[str] = field(default_factory=list)
    wrong: dict[str, list[str]] = field(default_factory=dict)
    mixed: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Examples:
    """``hard``: wrong with most methods first; ``disputed``: most evenly first; ``why``: why there
    are none, or no texts; ``counts``: (method, rows all its seeds get wrong, seeds that differ, all
    right)."""

    hard: list[Example] = field(default_factory=list)
    disputed: list[Example] = field(default_factory=list)
    counts: list[tuple] = field(default_factory=list)
    num_hard: int = 0
    num_disputed: int = 0
    why: str = ""


def read_by_row(rows: list[dict], runs: list[Run]) -> dict[str, list[Answers]]:
    """Name of the row -> its runs' answers, of the runs whose files are whole; only rows that
    were tested on the same examples as the first."""
    import numpy as np

    found, first = {}, None
    for row in rows:
        answers = []
        for run in runs:
            if (run.result["init"], run.result["method"]) != (row["init"], row["method"]):
                continue
            try:
                one = read_answers(run)
            except InputError:  # a note of the row says so
                one = None
            if one is not None:
                first = first or one
                if np.array_equal(one.classes, first.classes):
                    answers.append(one)
        if answers:
            found[name_of(row)] = answers
    return found


def choose(rows: list[dict], runs: list[Run], with_texts: bool = True) -> Examples:
    """The examples of one data set."""
    import numpy as np

    answers = read_by_row(rows, runs)
    if not answers:
        return Examples(why=NO_PREDICTIONS)
    names = list(answers)
    share = np.stack([np.mean([one.right for one in answers[name]], axis=0) for name in names])
    right, wrong = share == 1, share == 0  # (methods, rows)
    found = Examples(
        counts=[
            (name, int(wrong[n].sum()), int((~right[n] & ~wrong[n]).sum()), int(right[n].sum()))
            for n, name in enumerate(names)
        ]
    )
    num_wrong, num_right = wrong.sum(axis=0), right.sum(axis=0)
    hard = np.flatnonzero(num_wrong == len(names))
    disputed = np.flatnonzero((num_wrong > 0) & (num_right > 0))
    found.num_hard, found.num_disputed = len(hard), len(disputed)
    # a fixed draw, not the first rows: data is often sorted by class
    hard = np.sort(np.random.default_rng(0).permutation(hard)[:MAX_ROWS])
    evenly = np.argsort(-np.minimum(num_wrong, num_right)[disputed], kind="stable")
    disputed = disputed[evenly[:MAX_ROWS]]
    texts = None
    if with_texts:
        texts, found.why = _texts(rows[0], runs, answers[names[0]][0])
    found.hard, found.disputed = (
        [_example(int(row), answers, share, texts) for row in part] for part in (hard, disputed)
    )
    return found


def _example(row: int, answers: dict, share, texts) -> Example:
    first = next(iter(answers.values()))[0]
    example = Example(row + 1, texts[row] if texts else [], _label(first, first.target[row]))
    for n, (name, runs) in enumerate(answers.items()):
        if share[n, row] == 1:
            example.right.append(name)
        elif share[n, row] == 0:
            given = dict.fromkeys(_label(one, one.predicted[row]) for one in runs)
            example.wrong.setdefault(" or ".join(given), []).append(name)
        else:
            hits = round(share[n, row] * len(runs))
            example.mixed.append((name, f"{hits} of {len(runs)}"))
    return example


def _label(answers: Answers, value) -> str:
    """A class by name; of several labels their names, or ``none``."""
    if answers.target.ndim == 1:
        return answers.labels[int(value)]
    return " ".join(answers.labels[k] for k in value.nonzero()[0]) or "none"


def _texts(row: dict, runs: list[Run], answers: Answers) -> tuple[list | None, str]:
    """The texts of test, from ``raw/`` of the data folder that a run names, if its labels are those
    that the runs were measured with; else why not."""
    folders = {}
    for run in runs:
        try:
            found = plan.read(run.path)
        except InputError:
            continue
        if found is not None:
            folders[found.data] = None
    why = "No text: no run says where its data lies (plan.json)."
    for folder in folders:
        raw = Path(folder) / "raw"
        if not find(raw, "test.review").exists():
            why = f"No text: the data folder {folder} is not here, or has no raw/test.review."
            continue
        try:
            columns = [Reader().lines(find(raw, f"test.{part}")) for part in ("review", "label")]
            if find(raw, "test.review2").exists():
                columns.append(Reader().lines(find(raw, "test.review2")))
        except InputError as error:
            why = f"No text: {error}"
            continue
        if _same_labels(columns[1], answers, row["kind"]) and len({*map(len, columns)}) == 1:
            texts = zip(*(columns[:1] + columns[2:]))
            return [[text[:MAX_TEXT] for text in one] for one in texts], ""
        why = f"No text: the test rows in {raw} are not those that the runs were measured on."
    return None, why


def _same_labels(lines: list[str], answers: Answers, kind: str) -> bool:
    if len(lines) != len(answers.target):
        return False
    expected = (_label(answers, value) for value in answers.target)
    if kind == LABELS:
        return all(set(a.split() or ["none"]) == set(b.split()) for a, b in zip(lines, expected))
    return all(a == b for a, b in zip(lines, expected))

"""Data folders of the other kinds of task: any number of labels a row, and a number a row."""

from __future__ import annotations

from helpers import random_rows, write_data

LABELS = ["bad", "good", "long"]


def labels_rows(seed=0):
    """split -> (words, labels): bad or good as in ``random_rows``, and long above 15 words; every
    seventh row has none of the first two."""
    rows = {}
    for split, items in random_rows(seed).items():
        rows[split] = []
        for i, (words, label) in enumerate(items):
            labels = [label] * (i % 7 != 0) + ["long"] * (len(words) > 15)
            rows[split].append((words, labels))
    return rows


def number_of(words) -> float:
    """What a row's number is: more good words, more; more bad ones, less."""
    return sum((5 <= word < 10) - (word < 5) for word in words) + len(words) / 8


def write_labels(folder, seed=0):
    """A data folder with any number of labels a row."""
    write_data(folder, labels_rows(seed), LABELS)
    (folder / "kind.txt").write_text("labels\n")
    return folder


def write_numbers(folder, seed=0):
    """A data folder with a number a row, as stock fairseq has it."""
    rows = random_rows(seed)
    write_data(folder, rows, LABELS)
    for path in (folder / "label").iterdir():
        path.unlink()
    for split, items in rows.items():
        lines = [f"{number_of(words)}\n" for words, _ in items]
        (folder / "label" / f"{split}.label").write_text("".join(lines))
    return folder

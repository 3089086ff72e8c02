"""Few examples: a drawn part of the training rows (``--train-examples``)."""

from __future__ import annotations

import numpy as np

from fairseq_peft.errors import InputError


def drawn_rows(targets: np.ndarray, num_examples: int, seed: int) -> np.ndarray:
    """Numbers of the drawn rows, ascending: ``num_examples`` of them, each class as often as any
    other, or once more, as far as it has rows.

    A seed draws one order of the rows, of which it takes the first: fewer are a part of more.

    Args:
        targets: (N,) class ids; one id for all, where rows have no single class.

    Raises:
        InputError: there are fewer rows, or fewer are wanted than there are classes.
    """
    classes = np.unique(targets)
    if not len(classes) <= num_examples <= len(targets):
        of_classes = f" of {len(classes)} classes" if len(classes) > 1 else ""
        raise InputError(
            f"--train-examples {num_examples}: there are {len(targets)} training rows{of_classes}. "
            f"Give a number between {len(classes)} and {len(targets)}."
        )
    order = np.random.default_rng(seed).permutation(len(targets))
    turn = np.empty(len(targets), dtype=int)  # a row's place among those of its class
    for target in classes:
        of_class = order[targets[order] == target]
        turn[of_class] = np.arange(len(of_class))
    # By turns, a row of each class; within a turn, the classes in the order of the draw.
    first = order[np.argsort(turn[order], kind="stable")]
    return np.sort(first[:num_examples])


def drawn_of(cfg, split: str, targets: np.ndarray) -> np.ndarray | None:
    """Numbers of the rows of ``split`` that a task's flags leave; None: all. Only the first rows to
    train on are drawn from."""
    if not cfg.train_examples or split != cfg.train_subset:
        return None
    return drawn_rows(targets, cfg.train_examples, cfg.seed)


class Rows:
    """Rows ``numbers`` of an indexed data set."""

    def __init__(self, rows, numbers: np.ndarray):
        self._rows = rows
        self._numbers = numbers
        self.sizes = np.asarray(rows.sizes)[numbers]

    def __len__(self):
        return len(self._numbers)

    def __getitem__(self, index):
        return self._rows[self._numbers[index]]

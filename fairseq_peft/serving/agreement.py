"""How far two ways to compute the same predictions agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fairseq_peft.serving.predict import Prediction


class Agreement(NamedTuple):
    """What two lists of predictions of the same rows have in common.

    Attributes:
        num_rows: how many rows they are.
        equal: share of rows with the same label; None of numbers, which have none.
        largest: how far a probability, or a number, is from the other one at most.
    """

    num_rows: int
    equal: float | None
    largest: float

    def __str__(self) -> str:
        if self.equal is None:
            return f"{self.num_rows:,} rows: a number differs by {self.largest:.1e} at most"
        return (
            f"{self.num_rows:,} rows: {self.equal:.2%} have the same label, a probability differs "
            f"by {self.largest:.1e} at most"
        )


def compare(expected: Sequence[Prediction], found: Sequence[Prediction]) -> Agreement:
    """How far ``found`` agrees with ``expected``, row by row; there is one row at least."""
    pairs = list(zip(expected, found))
    if expected[0].value is not None:
        return Agreement(len(pairs), None, max(abs(a.value - b.value) for a, b in pairs))
    equal = sum(a.label == b.label for a, b in pairs) / len(pairs)
    changes = (
        abs(p - b.probabilities[name]) for a, b in pairs for name, p in a.probabilities.items()
    )
    return Agreement(len(pairs), equal, max(changes))

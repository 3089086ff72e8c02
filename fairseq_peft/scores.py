"""Accuracy, macro-F1 and MCC from integer counts per class.

For class k: ``hit`` rows of k predicted as k, ``target`` rows of k, ``predicted`` rows predicted as
k.
"""

from __future__ import annotations

import math

KINDS = ("hit", "target", "predicted")
#: Name of the meter whose sum is the counts: (3, classes), in the order of ``KINDS``.
COUNTS = "_counts"


def from_counts(hit, target, predicted) -> dict:
    """Scores of a classification, from three lists of one integer a class.

    Macro-F1 is the mean over classes with at least one row or one prediction. MCC is the
    multi-class one (Gorodkin 2004), 0 where it is undefined. Shares are NaN for no rows at all.
    """
    rows, correct = sum(target), sum(hit)
    if rows == 0:
        nan = float("nan")
        return {"num_correct": 0, "num_examples": 0, "accuracy": nan, "macro_f1": nan, "mcc": nan}
    f1 = [2 * h / (t + p) for h, t, p in zip(hit, target, predicted) if t + p]
    spread_predicted = rows * rows - sum(p * p for p in predicted)
    spread_target = rows * rows - sum(t * t for t in target)
    covariance = correct * rows - sum(t * p for t, p in zip(target, predicted))
    spread = math.sqrt(spread_predicted) * math.sqrt(spread_target)
    return {
        "num_correct": correct,
        "num_examples": rows,
        "accuracy": correct / rows,
        "macro_f1": sum(f1) / len(f1),
        "mcc": covariance / spread if spread else 0.0,
    }


def f1_of_class(meters, k: int) -> float:
    """F1 of class k from fairseq's meters; 0 where no row is of it or predicted as it."""
    hit, target, predicted = meters[COUNTS].sum[:, k].tolist()
    return 2 * hit / (target + predicted) if target + predicted else 0.0


def from_meters(meters) -> dict:
    """``from_counts`` on fairseq's meters, one of which is ``COUNTS``; adds ``predicted``."""
    rows = meters[COUNTS].sum.tolist()
    counts = {kind: [round(number) for number in row] for kind, row in zip(KINDS, rows)}
    return {**from_counts(**counts), "predicted": counts["predicted"]}

"""Scores of the kinds of task, from counts and sums that batches and processes add up.

``classes``: one class a row. Accuracy, macro-F1 and MCC, from integers for each class k: ``hit``
rows of k predicted as k, ``target`` rows of k, ``predicted`` rows predicted as k.
``labels``: any number of labels a row. The same integers for each label, and the rows whose labels
are all right: micro-F1, macro-F1, and accuracy as the share of such rows.
``number``: a number a row. Pearson's correlation and the mean squared error, from sums; Spearman's
correlation needs the numbers themselves.
``text``: an answer in words. The loss a token, and where answers were written, ROUGE.
"""

from __future__ import annotations

import math

CLASSES, LABELS, NUMBER, TEXT = "classes", "labels", "number", "text"
#: F1 of the words, of the pairs of words, and of the longest common row of words.
ROUGE = ("rouge1", "rouge2", "rougeL")
#: Kind of task -> the metrics that can choose a checkpoint, beside the loss; the first by default.
METRICS = {
    CLASSES: ("accuracy", "macro_f1", "mcc"),
    LABELS: ("micro_f1", "macro_f1", "accuracy"),
    NUMBER: ("pearson", "spearman", "mse"),
    TEXT: ("loss", *ROUGE),
}
#: Metrics of which less is better.
LOWEST = ("loss", "mse")

KINDS = ("hit", "target", "predicted")
#: Name of the meter whose sum is the counts: (3, classes), in the order of ``KINDS``.
COUNTS = "_counts"
#: The same of the other kinds: (3, labels + 1), its last column the right rows, all rows, and 0;
#: and (6,), the arguments of ``from_sums``.
LABEL_COUNTS, SUMS = "_label_counts", "_sums"
#: And of texts: the rows; the sums of ``ROUGE`` over them, with their number.
ROWS, ROUGE_SUMS = "_rows", "_rouge"


def is_share(metric: str) -> bool:
    """Whether it is a fraction that people read in per cent; correlations and losses are not."""
    return metric == "accuracy" or metric.endswith("_f1") or metric.startswith(("f1_", "rouge"))


def has_accuracy(kind: str) -> bool:
    """Whether an answer is right or wrong: a number is never quite right, nor is a text."""
    return "accuracy" in METRICS[kind]


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


def from_label_counts(hit, target, predicted, num_correct: int, rows: int) -> dict:
    """Scores where a row has any number of labels, from three lists of one integer a label.

    Micro-F1 is that of all (row, label) pairs together; macro-F1 the mean over labels with at least
    one row or one prediction. Both are 1 where nothing is to be found and nothing was. Shares are
    NaN for no rows at all.
    """
    f1 = [2 * h / (t + p) for h, t, p in zip(hit, target, predicted) if t + p]
    pairs = sum(target) + sum(predicted)
    nan = float("nan")
    return {
        "num_correct": num_correct,
        "num_examples": rows,
        "accuracy": num_correct / rows if rows else nan,
        "micro_f1": (2 * sum(hit) / pairs if pairs else 1.0) if rows else nan,
        "macro_f1": (sum(f1) / len(f1) if f1 else 1.0) if rows else nan,
    }


def from_sums(n, p, t, pp, tt, pt) -> dict:
    """Scores of n predicted numbers p and their targets t, from the sums of p, t, p * p, t * t and
    p * t.

    Pearson's correlation is 0 where it is undefined: all predictions, or all targets, are equal.
    """
    if n == 0:
        return {"num_examples": 0, "pearson": float("nan"), "mse": float("nan")}
    # Numbers that are all equal leave a rounding error of about this share.
    squares = (n * pp - p * p, n * pp), (n * tt - t * t, n * tt)
    spread = math.prod(math.sqrt(s) if s > 1e-12 * most else 0.0 for s, most in squares)
    return {
        "num_examples": round(n),
        "pearson": (n * pt - p * t) / spread if spread else 0.0,
        "mse": max(pp - 2 * pt + tt, 0.0) / n,
    }


def correlation(one, other) -> float:
    """Pearson's, of two (N,) arrays; 0 where it is undefined."""
    import numpy as np

    one, other = (np.asarray(x, dtype=np.float64) for x in (one, other))
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    one, other = one - one.mean(), other - other.mean()
    return float(one @ other) / math.sqrt(float(one @ one) * float(other @ other))


def of_numbers(predicted, target) -> dict:
    """The three scores of a split's numbers (N,): what ``from_sums`` says, without its rounding,
    and Spearman's correlation: Pearson's of the ranks, equal numbers sharing their mean rank."""
    import numpy as np

    predicted, target = (np.asarray(x, dtype=np.float64) for x in (predicted, target))
    return {
        "num_examples": len(target),
        "pearson": correlation(predicted, target),
        "spearman": correlation(ranks(predicted), ranks(target)),
        "mse": float(np.mean((predicted - target) ** 2)),
    }


def ranks(numbers):
    """(N,) mean ranks, from 1 on."""
    import numpy as np

    _, place, count = np.unique(numbers, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place]


def f1_of_class(meters, k: int) -> float:
    """F1 of class k from fairseq's meters; 0 where no row is of it or predicted as it."""
    counts = meters[COUNTS if COUNTS in meters else LABEL_COUNTS].sum
    return f1(*counts[:, k].tolist())


def f1(hit, target, predicted) -> float:
    """F1 of a class; 0 where no row is of it or predicted as it."""
    return 2 * hit / (target + predicted) if target + predicted else 0.0


def from_meters(meters) -> dict:
    """The scores that fairseq's meters hold, of whichever kind; of classes, ``predicted``, too:
    how often each was."""
    if SUMS in meters:
        return from_sums(*meters[SUMS].sum.tolist())
    if LABEL_COUNTS in meters:
        rows = [[round(number) for number in row] for row in meters[LABEL_COUNTS].sum.tolist()]
        correct, examples = rows[0].pop(), rows[1].pop()
        rows[2].pop()
        return from_label_counts(*rows, correct, examples)
    rouge = from_rouge_sums(meters[ROUGE_SUMS].sum.tolist()) if ROUGE_SUMS in meters else {}
    if COUNTS not in meters:
        return {"num_examples": round(float(meters[ROWS].sum)), **rouge}
    rows = meters[COUNTS].sum.tolist()
    counts = {kind: [round(number) for number in row] for kind, row in zip(KINDS, rows)}
    return {**from_counts(**counts), "predicted": counts["predicted"], **rouge}


def from_rouge_sums(sums) -> dict:
    """The means of ``ROUGE`` from their sums over the rows, and the number of these."""
    *of_each, rows = sums
    return {name: total / rows for name, total in zip(ROUGE, of_each)}


def of_validation(meters, kind: str, predicted, target) -> dict:
    """What metrics.jsonl says of a split: its loss and its scores.

    Args:
        meters: fairseq's, of the split.
        predicted, target: of its rows; the scores of numbers are of these.
    """
    found = of_numbers(predicted, target) if kind == NUMBER else from_meters(meters)
    found.pop("predicted", None)
    return {"loss": float(meters["loss"].avg), **found}

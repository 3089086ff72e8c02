"""Scores from integer counts are scikit-learn's, also where classes are missing."""

import math

import numpy as np
import pytest

from fairseq_peft.scores import from_counts

metrics = pytest.importorskip("sklearn.metrics")


def counts(target, predicted, num_classes):
    target, predicted = np.asarray(target), np.asarray(predicted)
    return [
        np.bincount(labels, minlength=num_classes).tolist()
        for labels in (target[target == predicted], target, predicted)
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_classes", [2, 3, 7])
@pytest.mark.parametrize("skill", [0.0, 0.5, 0.95])
def test_equal_to_scikit_learn(num_classes, skill):
    rng = np.random.default_rng(num_classes)
    for rows in (1, 2, 5, 400):
        target = rng.integers(num_classes, size=rows)
        guess = rng.integers(num_classes, size=rows)
        predicted = np.where(rng.random(rows) < skill, target, guess)
        found = from_counts(*counts(target, predicted, num_classes))
        assert found["num_examples"] == rows and found["num_correct"] == (target == predicted).sum()
        assert found["accuracy"] == pytest.approx(metrics.accuracy_score(target, predicted))
        f1 = metrics.f1_score(target, predicted, average="macro")
        assert found["macro_f1"] == pytest.approx(f1)
        mcc = metrics.matthews_corrcoef(target, predicted)
        assert found["mcc"] == pytest.approx(mcc, abs=1e-12)


@pytest.mark.parametrize(
    "target, predicted, accuracy, macro_f1, mcc",
    [
        ([0, 0, 1, 1], [0, 0, 0, 0], 0.5, 1 / 3, 0.0),  # collapsed
        ([0, 0], [0, 0], 1.0, 1.0, 0.0),  # one class in the data: no correlation to speak of
        ([0, 1], [1, 0], 0.0, 0.0, -1.0),
        ([0, 1, 2], [0, 1, 2], 1.0, 1.0, 1.0),
    ],
)
def test_degenerate(target, predicted, accuracy, macro_f1, mcc):
    found = from_counts(*counts(target, predicted, 3))
    assert (found["accuracy"], found["macro_f1"]) == (accuracy, pytest.approx(macro_f1))
    assert found["mcc"] == pytest.approx(mcc)


def test_no_rows():
    found = from_counts([0, 0], [0, 0], [0, 0])
    assert found["num_examples"] == 0 and math.isnan(found["accuracy"])


def test_many_rows_do_not_overflow():
    n = 10**9
    found = from_counts([n, n], [n, 2 * n], [2 * n, n])
    assert found["accuracy"] == pytest.approx(2 / 3) and found["mcc"] == pytest.approx(0.5)

"""The tests of significance against numbers that can be worked out by hand."""

import itertools

import numpy as np
import pytest

from fairseq_peft.report.significance import bootstrap_interval, holm, mcnemar, wins_and_losses


def differences_of(wins, losses, rows, seeds=1):
    one = np.zeros(rows, dtype=int)
    one[:wins], one[wins : wins + losses] = 1, -1
    return np.stack([one] * seeds)


def test_mcnemar_by_hand():
    def p(wins, losses):
        return mcnemar(differences_of(wins, losses, 50))

    # 2 (1 + 12 + 66) / 2^12
    assert p(10, 2) == pytest.approx(158 / 4096) and p(2, 10) == pytest.approx(158 / 4096)
    assert p(0, 6) == pytest.approx(2 / 64)
    assert p(5, 5) == p(0, 0) == 1


def test_several_seeds_by_all_tosses():
    differences = np.random.default_rng(1).integers(-1, 2, size=(3, 9))
    sums = differences.sum(0)
    totals = [abs(sums @ signs) for signs in itertools.product([-1, 1], repeat=len(sums))]
    expected = np.mean(np.array(totals) >= abs(sums.sum()))
    assert mcnemar(differences) == pytest.approx(expected)
    # Seeds that agree are one seed.
    assert mcnemar(differences_of(10, 2, 50, seeds=5)) == pytest.approx(158 / 4096)


def test_what_is_the_same_with_every_seed_is_no_better_for_it():
    """Rows of which each answer is right with a chance of their own: on the two counts alone one
    answer, held against three seeds, would win beyond all doubt."""
    told, told_by_counts = 0, 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        chance = rng.choice([0.95, 0.6], size=2000)
        one, *three = (rng.random(2000) < chance for _ in range(4))
        differences = np.stack([one.astype(int) - other for other in three])
        told += mcnemar(differences) < 0.05
        told_by_counts += mcnemar(np.sign(differences.sum(axis=0, keepdims=True))) < 0.05
    assert 2 <= told <= 18  # 5 % of 200, and 2.6 times their binomial deviation on each side
    assert told_by_counts > 100


def test_holm_by_hand():
    # Smallest first: .01 x 4, .02 x 3, .03 x 2 (not below the one before), .9 x 1.
    assert holm([0.03, 0.9, 0.01, 0.02]) == pytest.approx([0.06, 0.9, 0.04, 0.06])
    assert holm([0.6, 0.5]) == [1, 1]
    assert holm([0.04]) == [0.04] and holm([]) == []


def test_a_row_counts_once_whatever_the_seeds():
    differences = np.array([[1, 1, -1, 0], [1, 0, 0, -1], [-1, 0, 1, 0]])
    assert wins_and_losses(differences) == (2, 1)
    assert wins_and_losses(differences_of(7, 3, 50, seeds=5)) == (7, 3)


def test_the_interval_over_rows_is_the_normal_one():
    # One seed, n = 2,000: 120 wins, 80 losses. Mean .02, variance of a row .1 - .02^2.
    low, high = bootstrap_interval(differences_of(120, 80, 2000))
    half = 1.96 * np.sqrt((0.1 - 0.02**2) / 2000)
    assert (low, high) == pytest.approx((0.02 - half, 0.02 + half), abs=1e-3)


def test_the_interval_over_seeds_has_their_variance():
    """Rows that are all alike leave the seeds' spread alone: s^2 / k, not (k - 1) / k of it."""
    # Mean of seed s is its share; two thirds of the variance would be found by k draws out of 3.
    shares, rows = (0.1, 0.2, 0.3), 100_000
    differences = np.zeros((3, rows), dtype=int)
    for line, share in zip(differences, shares):
        line[: int(share * rows)] = 1
    # Draws of 2 of 3 seeds: means .1 .15 .2 .25 .3, of which the outermost have 1/9 each.
    assert bootstrap_interval(differences) == pytest.approx((0.1, 0.3), abs=5e-3)


def test_more_seeds_that_agree_do_not_narrow_the_interval_over_rows():
    one = bootstrap_interval(differences_of(120, 80, 2000))
    assert bootstrap_interval(differences_of(120, 80, 2000, seeds=5)) == pytest.approx(one)


def test_the_order_of_rows_does_not_matter():
    rng = np.random.default_rng(1)
    differences = rng.integers(-1, 2, (3, 500))
    mixed = differences[:, rng.permutation(500)]
    assert bootstrap_interval(differences) == bootstrap_interval(mixed)
    assert wins_and_losses(differences) == wins_and_losses(mixed)

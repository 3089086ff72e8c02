"""Two methods on the same rows: McNemar's exact test, a paired bootstrap, Holm's correction.

Which test for what, and why a test set is resampled by row: Dror et al. 2018 ("The Hitchhiker's
Guide to Testing Statistical Significance in NLP"), Berg-Kirkpatrick et al. 2012 ("An Empirical
Investigation of Statistical Significance in NLP").

``differences`` (seeds, rows) holds, for each seed and row, 1 where only the method is right, -1
where only the other one is, and 0 where both or none are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

NUM_DRAWS = 10_000
LEVEL = 0.05


def wins_and_losses(differences: np.ndarray) -> tuple[int, int]:
    """Rows on which the method is right with more seeds than the other one, and the reverse.

    A row counts once: its predictions with several seeds are not independent, and to count each of
    them would find significance where there is none. With one seed these are McNemar's two counts.
    """
    sums = differences.sum(axis=0)
    return int((sums > 0).sum()), int((sums < 0).sum())


def mcnemar(wins: int, losses: int) -> float:
    """Two-sided p of McNemar's exact test (1947): ``2 P(X <= min(wins, losses))``, at most 1, with
    X binomial of ``wins + losses`` tosses of a fair coin."""
    from scipy.special import bdtr  # scipy.stats takes ten times as long to import

    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))


def bootstrap_interval(differences: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean difference, over rows and seeds.

    Each of ``NUM_DRAWS`` draws takes n of the n rows, and k - 1 of the k seeds, with replacement;
    both methods keep their predictions on what is drawn. k - 1, because a draw of k out of few
    seeds varies less than the seeds do, by (k - 1) / k (Rao and Wu 1988). One seed is taken as it
    is: the interval is then over rows alone.

    The order of the rows does not matter: those that are alike in all seeds are drawn together.
    """
    import numpy as np

    num_seeds, num_rows = differences.shape
    kinds, counts = np.unique(differences.T, axis=0, return_counts=True)  # (kinds, seeds)
    rng = np.random.default_rng(seed)
    rows = rng.multinomial(num_rows, counts / num_rows, size=NUM_DRAWS)  # (draws, kinds)
    means = rows @ kinds / num_rows  # (draws, seeds)
    if num_seeds > 1:
        shares = rng.multinomial(num_seeds - 1, [1 / num_seeds] * num_seeds, size=NUM_DRAWS)
        means = means * shares * num_seeds / (num_seeds - 1)
    low, high = np.quantile(means.mean(axis=1), [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down correction (1979): the smallest of m is multiplied by m, the next by m - 1,
    and so on; none becomes smaller than one before it, or larger than 1."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected

"""Two methods on the same rows: McNemar's exact test, a paired bootstrap, Holm's correction.

Which test for what, and why a test set is resampled by row: Dror et al. 2018 ("The Hitchhiker's
Guide to Testing Statistical Significance in NLP"), Berg-Kirkpatrick et al. 2012 ("An Empirical
Investigation of Statistical Significance in NLP").

``differences`` (seeds, rows) holds, for each seed and row, 1 where only the method is right, -1
where only the other one is, and 0 where both or none are. A row counts once, by its sum: its
predictions with several seeds are not independent, and to count each of them would find
significance where there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

NUM_DRAWS = 10_000
LEVEL = 0.05


def wins_and_losses(differences: np.ndarray) -> tuple[int, int]:
    """Rows on which the method is right with more seeds than the other one, and the reverse.

    With one seed these are McNemar's two counts.
    """
    sums = differences.sum(axis=0)
    return int((sums > 0).sum()), int((sums < 0).sum())


def mcnemar(differences: np.ndarray) -> float:
    """Two-sided p of McNemar's exact test (1947), and of what it is with several seeds.

    With one seed each row that only one of the two gets right is a toss of a fair coin. With k a
    row is a sum from -k to k, whose sign is tossed (Fisher's randomisation test, 1935): p is the
    share of all tosses whose total is at least as far from 0 as the one that was seen. Not only
    signs are counted: a row that a baseline, the same with every seed, gets right and two of three
    seeds do, too, says little for the baseline, and there are many such rows.

    The distribution of the total is that of its characteristic function, the product of
    ``cos(t |sum|)``; probabilities are exact to 1e-12.
    """
    import numpy as np

    sums = differences.sum(axis=0)
    seen = abs(int(sums.sum()))
    sizes, counts = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    reach = int(sizes @ counts)
    angles = np.arange(2 * reach + 1) * 2 * np.pi / (2 * reach + 1)
    characteristic = np.ones_like(angles)
    for size, count in zip(sizes, counts):
        characteristic *= np.cos(angles * size) ** count
    shares = np.fft.fft(characteristic).real / len(angles)  # of the totals 0, 1, ..., -2, -1
    return float(np.clip(2 * shares[seen : reach + 1].sum(), 0, 1))


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

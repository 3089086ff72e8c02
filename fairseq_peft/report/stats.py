"""The statistics of the report: mean, spread, and the paired difference with its interval."""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple, Optional

CONFIDENCE = 0.95


class Difference(NamedTuple):
    """Mean of paired differences and its 95 % t interval (None with fewer than two pairs)."""

    mean: float
    low: Optional[float]
    high: Optional[float]
    num_pairs: int


def mean(values: list[float | None]) -> float | None:
    """Mean of what is not None; None of nothing."""
    values = [value for value in values if value is not None]
    return statistics.fmean(values) if values else None


def sample_sd(values: list[float]) -> float | None:
    """``sqrt(sum (x - mean)^2 / (n - 1))``; None below two values, where it is not defined."""
    return statistics.stdev(values) if len(values) > 1 else None


def paired_difference(values: dict[int, float], baseline: dict[int, float]) -> Difference | None:
    """Differences ``values[seed] - baseline[seed]`` over the seeds that both have.

    Interval: ``mean_interval`` of the differences. It speaks of the seeds only; the test set's own
    sampling error is not in it (``comparisons.py`` has both).

    Returns:
        None if no seed is common.
    """
    differences = [values[seed] - baseline[seed] for seed in sorted(values) if seed in baseline]
    if not differences:
        return None
    low, high = mean_interval(differences) or (None, None)
    return Difference(statistics.fmean(differences), low, high, len(differences))


def mean_interval(values: list[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of a mean, ``mean +- t(0.975, n - 1) * sd / sqrt(n)``; None below
    two values."""
    n = len(values)
    if n < 2:
        return None
    half = t_quantile(n - 1) * statistics.stdev(values) / math.sqrt(n)
    return statistics.fmean(values) - half, statistics.fmean(values) + half


def t_quantile(degrees: int) -> float:
    """The two-sided 95 % quantile of Student's t: 12.71, 4.30, 3.18, ... for 1, 2, 3, ..."""
    from scipy.special import stdtrit  # scipy.stats takes ten times as long to import

    return float(stdtrit(degrees, 0.5 + CONFIDENCE / 2))


def sampling_error(accuracy: float, num_rows: int) -> float:
    """How far the 95 % interval of an accuracy ``p`` on ``n`` rows reaches, to its longer side.

    Wilson's interval (1927): unlike ``1.96 sqrt(p (1 - p) / n)`` it does not vanish where all rows
    are right. At p = 1 it is about 3.84 / n.
    """
    z, n = 1.96, num_rows
    centre = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(accuracy * (1 - accuracy) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
    return half + abs(centre - accuracy)

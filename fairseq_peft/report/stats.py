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

    Interval: ``mean +- t(0.975, n - 1) * sd / sqrt(n)``, the paired Student interval. It speaks of
    the seeds only; the test set's own sampling error is not in it.

    Returns:
        None if no seed is common.
    """
    differences = [values[seed] - baseline[seed] for seed in sorted(values) if seed in baseline]
    if not differences:
        return None
    middle, n = statistics.fmean(differences), len(differences)
    if n < 2:
        return Difference(middle, None, None, n)
    half = t_quantile(n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return Difference(middle, middle - half, middle + half, n)


def t_quantile(degrees: int) -> float:
    """The two-sided 95 % quantile of Student's t: 12.71, 4.30, 3.18, ... for 1, 2, 3, ..."""
    from scipy.special import stdtrit  # scipy.stats takes ten times as long to import

    return float(stdtrit(degrees, 0.5 + CONFIDENCE / 2))


def sampling_error(accuracy: float, num_rows: int) -> float:
    """Half the 95 % interval of one accuracy ``p`` on ``n`` rows: ``1.96 sqrt(p (1 - p) / n)``."""
    return 1.96 * math.sqrt(accuracy * (1 - accuracy) / num_rows)

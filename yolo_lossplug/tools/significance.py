# SPDX-License-Identifier: AGPL-3.0-or-later
"""What can be said about a difference that a few seeds have shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

import numpy as np

LEVEL = 0.95
RESAMPLES = 10_000
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""97.5 % quantiles of Student's t for 1 to 30 degrees of freedom."""
NORMAL_QUANTILE = 1.960
FEWEST = 3
"""Seeds without which nothing is called a difference."""
BETTER, WORSE, NOISE = "better", "worse", "within noise"


class Difference(NamedTuple):
    """A paired difference.

    Attributes:
        mean: Mean of the differences, seed by seed.
        low: Lower end of the bootstrap 95 % interval of the mean; None for one seed.
        high: Its upper end.
        verdict: ``better``, ``worse`` or ``within noise``.
    """

    mean: float
    low: Optional[float]
    high: Optional[float]
    verdict: str


def mean_and_deviation(values: Sequence[float]) -> tuple[float, Optional[float]]:
    """Return the mean and the sample standard deviation, which one value alone has not.

    >>> mean_and_deviation([1.0, 3.0])
    (2.0, 1.4142135623730951)
    """
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), deviation


def bootstrap_interval(differences: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the percentile bootstrap 95 % interval of a mean (Efron, 1979).

    Args:
        differences: One for each seed, at least one.
        seed: Of the resampling.
    """
    values = np.asarray(differences, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def t_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return Student's 95 % interval of a mean of at least two values."""
    values = np.asarray(differences, dtype=np.float64)
    freedom = len(values) - 1
    quantile = T_QUANTILES[freedom - 1] if freedom <= len(T_QUANTILES) else NORMAL_QUANTILE
    half = quantile * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def compare(differences: Sequence[float]) -> Difference:
    """Return what paired differences say; higher is better.

    A bootstrap of three seeds never leaves their range, and would call one difference in four real where there is none.
    So a verdict needs Student's interval to exclude 0 as well, and three seeds.

    Args:
        differences: Measure of a loss less that of the first loss, seed by seed; at least one.
    """
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return Difference(mean, None, None, NOISE)
    low, high = bootstrap_interval(differences)
    if len(differences) < FEWEST or min(np.abs((low, high))) == 0:
        return Difference(mean, low, high, NOISE)
    intervals = ((low, high), t_interval(differences))
    is_better, is_worse = all(one > 0 for one, _ in intervals), all(other < 0 for _, other in intervals)
    return Difference(mean, low, high, BETTER if is_better else WORSE if is_worse else NOISE)

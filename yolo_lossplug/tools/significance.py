# SPDX-License-Identifier: AGPL-3.0-or-later
"""Verdicts on paired differences between a few seeds."""

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
MIN_SEEDS = 3
"""Fewer get no interval and no verdict."""
BETTER, WORSE, NOISE = "better", "worse", "within noise"


class Difference(NamedTuple):
    """A paired difference.

    Attributes:
        mean: Mean of the differences, seed by seed.
        low: Lower end of the 95 % interval of the mean that decides; None below three seeds.
        high: Its upper end.
        interval: ``bootstrap`` or ``student``; None below three seeds.
        verdict: ``better``, ``worse`` or ``within noise``.
    """

    mean: float
    low: Optional[float]
    high: Optional[float]
    interval: Optional[str]
    verdict: str


def mean_and_deviation(values: Sequence[float]) -> tuple[float, Optional[float]]:
    """Return the mean and the sample standard deviation, None for a single value.

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
    """Return the verdict on paired differences; higher is better.

    A bootstrap of three seeds never leaves their range, and would call one difference in four real where there is none.
    So a verdict needs Student's interval to exclude 0 as well, and three seeds. Of both intervals that one decides, and
    is returned, which reaches further towards 0.

    Args:
        differences: Metric of a loss less that of the first loss, seed by seed; at least one.
    """
    mean = float(np.mean(differences))
    if len(differences) < MIN_SEEDS:
        return Difference(mean, None, None, None, NOISE)
    intervals = {"student": t_interval(differences), "bootstrap": bootstrap_interval(differences)}
    name, (low, high) = min(intervals.items(), key=lambda pair: pair[1][0] if mean > 0 else -pair[1][1])
    return Difference(mean, low, high, name, BETTER if low > 0 else WORSE if high < 0 else NOISE)

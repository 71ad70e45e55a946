# SPDX-License-Identifier: AGPL-3.0-or-later
"""Verdicts on paired differences between a few seeds, corrected for the number of losses compared, and their power."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Callable, NamedTuple, Optional

import numpy as np

LEVEL = 0.95
MIN_SEEDS = 3
"""Fewer get no interval and no verdict."""
MAX_SEEDS = 1000
"""More are not searched for."""
POWER = 0.8
"""How often a real difference should be shown, as is usual in the design of experiments (Cohen, 1988)."""
BETTER, WORSE, NOISE, NO_VERDICT = "better", "worse", "within noise", "no verdict"


class Difference(NamedTuple):
    """A paired difference: its mean, Student's interval and its level, None below three seeds, and the verdict."""

    mean: float
    low: Optional[float]
    high: Optional[float]
    verdict: str
    level: Optional[float]


def mean_and_deviation(values: Sequence[float]) -> tuple[float, Optional[float]]:
    """Return the mean and the sample standard deviation, None for a single value.

    >>> mean_and_deviation([1.0, 3.0])
    (2.0, 1.4142135623730951)
    """
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), deviation


def t_interval(differences: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Return Student's interval of a mean of at least two values."""
    mean, seeds = np.mean(differences), len(differences)
    half = t_quantile((1 + level) / 2, seeds - 1) * np.std(differences, ddof=1) / np.sqrt(seeds)
    return float(mean - half), float(mean + half)


def decide(differences: Sequence[float], level: float = LEVEL) -> Difference:
    """Return the verdict on paired differences, seed by seed; higher is better.

    A verdict needs three seeds, and Student's interval to exclude 0. A bootstrap of three seeds never leaves their
    range, and would call one difference in four real where there is none.
    """
    mean = float(np.mean(differences))
    if len(differences) < MIN_SEEDS:
        return Difference(mean, None, None, NO_VERDICT, None)
    low, high = t_interval(differences, level)
    return Difference(mean, low, high, BETTER if low > 0 else WORSE if high < 0 else NOISE, level)


def holm(problems: Mapping[str, Sequence[float]]) -> dict[str, Difference]:
    """Return the verdicts on several losses, together wrong with at most the probability of one wrong verdict.

    Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979, with intervals in place of p-values: all losses
    start at the level of Bonferroni, ``1 - 0.05 / losses``. Where some intervals exclude 0, these losses are decided,
    and the others are tried again at the level for their smaller number, until none is decided any more. Each loss
    keeps the interval of its last trial, so interval and verdict always agree. Losses with fewer than three seeds get
    no verdict, and do not count.
    """
    decided = {name: decide(values) for name, values in problems.items()}
    left = [name for name, difference in decided.items() if difference.level is not None]
    n_tried = 0
    while left and len(left) != n_tried:
        n_tried = len(left)
        level = 1 - (1 - LEVEL) / n_tried
        decided.update({name: decide(problems[name], level) for name in left})
        left = [name for name in left if decided[name].verdict == NOISE]
    return decided


def statistical_power(effect: float, seeds: int, level: float = LEVEL) -> float:
    """Return how often Student's interval excludes 0 if the true difference is not 0.

    `effect` is that difference divided by the standard deviation of the differences, of two seeds or more.
    """
    freedom, shift = seeds - 1, abs(effect) * math.sqrt(seeds)
    critical = t_quantile((1 + level) / 2, freedom)
    ratio, density = _deviations(freedom)
    outside = _normal_cdf(shift - critical * ratio) + _normal_cdf(-shift - critical * ratio)
    return float(min(1.0, (density * outside).sum()))


def smallest_shown(deviation: float, seeds: int, level: float = LEVEL) -> float:
    """Return the true difference that as many seeds show with a probability of 0.8, by the differences' deviation."""
    return deviation * _root(lambda effect: statistical_power(effect, seeds, level) - POWER)


def seeds_needed(mean: float, deviation: float, level: float = LEVEL) -> Optional[int]:
    """Return how many seeds show a true difference with a probability of 0.8, at least 3; None for more than 1000."""
    if deviation <= 1e-12 * abs(mean):
        return MIN_SEEDS if mean else None
    few, many = MIN_SEEDS - 1, MAX_SEEDS
    if statistical_power(mean / deviation, many, level) < POWER:
        return None
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if statistical_power(mean / deviation, middle, level) >= POWER else (middle, many)
    return many


@functools.cache
def t_quantile(probability: float, freedom: int) -> float:
    """Return a quantile of Student's t distribution, of a probability in (0.5, 1) and some degrees of freedom."""
    return _root(lambda t: t_cdf(t, freedom) - probability)


def t_cdf(t: float, freedom: int) -> float:
    """Return the probability that Student's t with some degrees of freedom is at most t, for t >= 0."""
    return 1 - _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t)) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function, by its continued fraction (DLMF 8.17.22) where that is fast."""
    if x >= 1:
        return 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    fraction = 1.0
    for m in range(200, 0, -1):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m - 1) * (a + b + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1))
        fraction = 1 + odd / (1 + even / fraction)
    return front / (a * fraction)


@functools.cache
def _deviations(freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights of an integral over the sample deviation of a normal variable with deviation 1."""
    spread = 8 / math.sqrt(2 * freedom)
    low, high = max(0.0, 1 - spread), 1 + spread
    nodes, weights = np.polynomial.legendre.leggauss(128)
    ratio = low + (nodes + 1) * (high - low) / 2
    logarithm = math.log(2) + freedom / 2 * math.log(freedom / 2) - math.lgamma(freedom / 2)
    density = np.exp(logarithm + (freedom - 1) * np.log(ratio) - freedom * ratio**2 / 2)
    return ratio, density * weights * (high - low) / 2


def _normal_cdf(values: np.ndarray) -> np.ndarray:
    return np.array([math.erfc(-value / math.sqrt(2)) / 2 for value in values])


def _root(function: Callable[[float], float]) -> float:
    """Return where an increasing function that is negative at 0 is 0."""
    low, high = 0.0, 2.0
    while function(high) < 0:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return (low + high) / 2

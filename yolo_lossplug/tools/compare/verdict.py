# SPDX-License-Identifier: AGPL-3.0-or-later
"""Effects of losses on a metric, the verdict on the primary one, and what the seeds could have shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from yolo_lossplug.tools.compare import significance
from yolo_lossplug.tools.compare.measures import Results, measured
from yolo_lossplug.tools.compare.significance import Difference


@dataclass(frozen=True)
class Effect:
    """The paired difference of one arm from the baseline in one metric.

    Attributes:
        arm: Name of the arm.
        metric: Full name of the metric.
        mean: Mean difference, seed by seed; None without a common seed.
        low: Lower end of the interval, the one that decides in the primary metric; None below three seeds.
        high: Its upper end.
        level: Confidence level of the interval, in (0, 1); None below three seeds.
        seeds: Number of seeds that both arms have.
        verdict: ``better``, ``worse`` or ``within noise``; empty for a metric that carries no verdict.
        interval: ``student`` or ``bootstrap``; None below three seeds.
        deviation: Standard deviation of the differences; None below two seeds.
        smallest: True difference that these seeds show with power 0.8; None below three seeds.
        needed: Seeds that show the observed difference with power 0.8; None if more than 1000, or below three seeds.
    """

    arm: str
    metric: str
    mean: Optional[float]
    low: Optional[float]
    high: Optional[float]
    level: Optional[float]
    seeds: int
    verdict: str
    interval: Optional[str] = None
    deviation: Optional[float] = None
    smallest: Optional[float] = None
    needed: Optional[int] = None


def effects(results: Results, baseline: str, metric: str, is_primary: bool = True) -> list[Effect]:
    """Return the paired differences of all arms but the baseline in one metric.

    Args:
        results: What came out of each finished run, by arm and seed.
        baseline: Name of the arm that the others are compared with.
        metric: Full name of the metric, as `measures.resolve` returns it.
        is_primary: Whether the metric carries the verdict: corrected by Holm over the arms. Others have intervals at
            95 %, each for itself, and no verdict.
    """
    arms = [arm for arm in dict.fromkeys(arm for arm, _ in results) if arm != baseline]
    pairs = {arm: differences(results, baseline, arm, metric) for arm in arms}
    paired = {arm: values for arm, values in pairs.items() if values}
    decided = (
        significance.holm(paired)
        if is_primary
        else {arm: significance.compare(values)._replace(verdict="") for arm, values in paired.items()}
    )
    return [_effect(arm, metric, pairs[arm], decided.get(arm)) for arm in arms]


def differences(results: Results, baseline: str, arm: str, metric: str) -> list[float]:
    """Return the differences of an arm from the baseline, of all seeds for which both have the metric."""
    of_arm, of_baseline = (values_of(results, one, metric) for one in (arm, baseline))
    return [value - of_baseline[seed] for seed, value in of_arm.items() if seed in of_baseline]


def values_of(results: Results, arm: str, metric: str) -> dict[int, float]:
    """Return a metric of an arm by seed; runs without it are left out."""
    values = {seed: measured(result).get(metric) for (name, seed), result in results.items() if name == arm}
    return {seed: value for seed, value in values.items() if value is not None}


def noise_floor(results: Results, baseline: str, metric: str) -> Optional[float]:
    """Return the standard deviation of the baseline over its seeds; None below two."""
    values = list(values_of(results, baseline, metric).values())
    return significance.mean_and_deviation(values)[1] if values else None


def _effect(arm: str, metric: str, pairs: Sequence[float], difference: Optional[Difference]) -> Effect:
    if difference is None:
        return Effect(arm, metric, None, None, None, None, 0, "")
    mean, low, high, interval, verdict, level = difference
    deviation = significance.mean_and_deviation(pairs)[1]
    if level is None or deviation is None:
        return Effect(arm, metric, mean, low, high, level, len(pairs), verdict, interval, deviation)
    smallest = significance.smallest_shown(deviation, len(pairs), level)
    needed = significance.seeds_needed(mean, deviation, level)
    return Effect(arm, metric, mean, low, high, level, len(pairs), verdict, interval, deviation, smallest, needed)

# SPDX-License-Identifier: AGPL-3.0-or-later
"""A metric of an arm over its seeds, and its paired difference from the baseline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Optional

from yolo_lossplug.tools.compare import significance
from yolo_lossplug.tools.compare.significance import Difference


class Spread(NamedTuple):
    """Mean and sample standard deviation of a measure over the seeds of an arm.

    Attributes:
        mean: The mean.
        deviation: The deviation; None for one seed.
        seeds: Number of seeds.
    """

    mean: float
    deviation: Optional[float]
    seeds: int

    def text(self, digits: int = 4) -> str:
        """Return mean ± deviation.

        >>> Spread(0.5, 0.125, 3).text(2)
        '0.50 ± 0.12'
        """
        deviation = "" if self.deviation is None else f" ± {self.deviation:.{digits}f}"
        return f"{self.mean:.{digits}f}{deviation}"


@dataclass(frozen=True)
class Effect:
    """The paired difference of one arm from the baseline in one metric.

    Attributes:
        arm: Name of the arm.
        metric: Full name of the metric.
        mean: Mean difference, seed by seed; None without a common seed.
        low: Lower end of Student's interval of the mean; None below three seeds.
        high: Its upper end.
        level: Confidence level of the interval, in (0, 1); None below three seeds.
        seeds: Number of seeds that both arms have.
        verdict: ``better``, ``worse``, ``within noise`` or ``no verdict``; empty for a metric that carries none.
        smallest: True difference that these seeds show with power 0.8; None below three seeds.
        needed: Seeds that show the observed difference with power 0.8; None if more than 1000, or below three seeds.
    """

    arm: str
    metric: str
    mean: Optional[float] = None
    low: Optional[float] = None
    high: Optional[float] = None
    level: Optional[float] = None
    seeds: int = 0
    verdict: str = ""
    smallest: Optional[float] = None
    needed: Optional[int] = None

    @property
    def words(self) -> str:
        """The difference, its interval and its verdict."""
        if self.mean is None:
            return "no common seed"
        if self.low is None:
            return f"{self.mean:+.4f}  {self.seeds} seed{'s' * (self.seeds > 1)}: no interval"
        return f"{self.mean:+.4f}  ({self.low:+.4f} to {self.high:+.4f})  {self.verdict}"

    @property
    def seeds_needed(self) -> Optional[str]:
        """How many seeds would show the observed difference; None below three seeds."""
        if self.smallest is None:
            return None
        return f"more than {significance.MAX_SEEDS}" if self.needed is None else str(self.needed)


def ranked_effects(effects: Iterable[Effect]) -> list[Effect]:
    """Return the effects that have a difference, the best first."""
    return sorted((effect for effect in effects if effect.mean is not None), key=lambda effect: -(effect.mean or 0.0))


def effect_of(arm: str, metric: str, pairs: Sequence[float], difference: Optional[Difference]) -> Effect:
    """Return the effect of an arm on a metric, with its power where it has a verdict.

    Args:
        arm: Name of the arm.
        metric: Full name of the metric.
        pairs: Differences from the baseline, seed by seed.
        difference: What was decided of them; None if there are none.
    """
    if difference is None:
        return Effect(arm, metric)
    mean, low, high, verdict, level = difference
    effect = Effect(arm, metric, mean, low, high, level, len(pairs), verdict)
    deviation = significance.mean_and_deviation(pairs)[1]
    if level is None or deviation is None or not verdict:
        return effect
    smallest = significance.smallest_shown(deviation, len(pairs), level)
    return replace(effect, smallest=smallest, needed=significance.seeds_needed(mean, deviation, level))

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Verdicts that may be looked at after every seed: levels of the paired t test that err in 5 % of comparisons in all.

The plan of a comparison fixes its largest number of seeds, N, and its arms. With n seeds the level is c (n / N)³, so
that early looks spend little, and c is such that one of all looks errs as often as a single test would. It is computed,
not simulated: without a difference, a part of the t statistic is a Markov chain whatever the deviation is. Repeated
intervals: Jennison and Turnbull, Group Sequential Methods, 2000. Holm's correction of them: Maurer and Bretz, Multiple
Testing in Group Sequential Trials Using Graphical Approaches, 2013.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Optional

import numpy as np

from yolo_lossplug.tools.compare.significance import (
    BETTER,
    LEVEL,
    MIN_SEEDS,
    NOISE,
    WORSE,
    Difference,
    decide,
    mean_and_deviation,
    t_interval,
    t_quantile,
)

PRELIMINARY = "preliminary"
EXPONENT = 3
"""Of n / N: a lower one decides earlier, and more often never."""
RACE_LEVEL = 0.9
"""Confidence level of the interval that ends an arm of a race: 5 % above its upper end."""
_COSINES, _NODES = 120, 40
"""Points of the integrals."""


class Look(NamedTuple):
    """What a look at the first differences says.

    Attributes:
        difference: Their mean, its interval and the verdict.
        seeds: How many there are.
    """

    difference: Difference
    seeds: int

    @property
    def is_decided(self) -> bool:
        """Whether the verdict stays."""
        return self.difference.verdict in (BETTER, WORSE)


@functools.cache
def levels(planned: int, total: float = 1 - LEVEL) -> dict[int, float]:
    """Return the level of the test by number of seeds, from 3 to the planned one.

    Args:
        planned: The largest number of seeds.
        total: How often any of the looks may err, in (0, 1).

    >>> {n: round(level, 4) for n, level in levels(5).items()}
    {3: 0.0079, 4: 0.0186, 5: 0.0364}
    """
    shape = {n: (n / planned) ** EXPONENT for n in range(MIN_SEEDS, planned + 1)}
    scale = total
    for _ in range(4 if len(shape) > 1 else 0):  # the error is nearly proportional to the scale
        scale *= total / error_of_looks({n: scale * part for n, part in shape.items()})
    return {n: scale * part for n, part in shape.items()}


def error_of_looks(tested: Mapping[int, float]) -> float:
    """Return how often any of several looks excludes 0 where nothing differs.

    With differences x about 0, w(n) = Σx / √(n Σx²) has a limit where |t| has one, and w(n) √n is w(n−1) √(n−1) cos φ +
    sin φ, where φ is independent of all before, with a density proportional to cosⁿ⁻² φ.

    Args:
        tested: Levels of the looks by number of seeds, without a gap.
    """
    edges = {n: math.atan2(math.sqrt(n - 1), t_quantile(1 - level / 2, n - 1)) for n, level in tested.items()}
    grids = {n: np.geomspace(edge, math.pi / 2, _COSINES) for n, edge in edges.items()}  # arccos |w| without an error
    fine = np.linspace(-math.pi / 2, math.pi / 2, 4001)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    later = np.zeros(_COSINES)  # how often a look after n errs, on its grid
    for n in sorted(tested, reverse=True):
        if n - 1 in grids:
            before = np.cos(grids[n - 1]) * math.sqrt(n - 1)
            length, peak = np.hypot(before, 1), np.arctan2(1, before)  # w(n) √n = length cos(φ − peak)
        else:
            length, peak = np.array([math.sqrt(n)]), np.array([math.pi / 2])
        peaks = np.stack([peak, peak - math.pi])  # of w and −w
        density = np.cos(fine) ** (n - 2)
        steps = np.append(0, (density[1:] + density[:-1]).cumsum())
        below, norm = steps / steps[-1], steps[-1] / 2 * (fine[1] - fine[0])
        outside = np.arccos(np.minimum(math.sqrt(n) * math.cos(edges[n]) / length, 1))
        errs = (np.interp(peaks + outside, fine, below) - np.interp(peaks - outside, fine, below)).sum(0)
        first = np.maximum(outside, 1e-4)[:, None]
        span = np.log(math.pi / 2 / first)
        offsets = first * np.exp(span * (nodes + 1) / 2)
        phi = np.stack([peaks[..., None] - offsets, peaks[..., None] + offsets])
        chance = (np.where(abs(phi) < math.pi / 2, np.cos(phi), 0) ** (n - 2)).sum((0, 1)) / norm
        angle = np.arccos(np.minimum(length[:, None] * np.cos(offsets) / math.sqrt(n), 1))
        errs_later = np.interp(np.log(np.maximum(angle, edges[n])), np.log(grids[n]), later)
        later = errs + (chance * errs_later * offsets * span / 2 * weights).sum(1)
    return float(later[0])


def decide_looks(differences: Sequence[float], planned: int, total: float = 1 - LEVEL) -> Look:
    """Return the verdict on paired differences after looks at the first three, four, ... of them.

    A verdict stays, with the interval of the last look that has it. Until then it is ``preliminary``, and with all
    planned seeds ``within noise``. What exceeds the plan does not count.

    Args:
        differences: Metric of an arm less that of the baseline, in the order of the plan; at least one.
        planned: The largest number of seeds.
        total: How often any of the looks may err, in (0, 1).
    """
    looks = [
        Look(decide(differences[:n], 1 - level), n)
        for n, level in levels(max(planned, MIN_SEEDS), total).items()
        if n <= len(differences)
    ]
    if not looks:
        return Look(decide(differences), len(differences))
    verdict = next((look.difference.verdict for look in looks if look.is_decided), NOISE)
    found = [look for look in looks if look.difference.verdict == verdict][-1]
    is_open = verdict == NOISE and found.seeds < planned
    return found._replace(difference=found.difference._replace(verdict=PRELIMINARY)) if is_open else found


def holm_looks(problems: Mapping[str, Sequence[float]], planned: int, arms: int) -> dict[str, Look]:
    """Return the verdicts on several arms, together wrong in at most 5 % of comparisons, however often one looks.

    Args:
        problems: Paired differences by arm.
        planned: The largest number of seeds.
        arms: The planned number of arms beside the baseline, those included that have no differences yet.
    """
    decided: dict[str, Look] = {}
    left, missing, n_tried = list(problems), max(0, arms - len(problems)), 0
    while left and len(left) + missing != n_tried:
        n_tried = len(left) + missing
        decided.update({arm: decide_looks(problems[arm], planned, (1 - LEVEL) / n_tried) for arm in left})
        left = [arm for arm in left if not decided[arm].is_decided]
    return decided


def is_hopeless(differences: Sequence[float], margin: Optional[float] = None) -> bool:
    """Return whether the upper end of a 90 % interval is below a margin, with at least three seeds.

    Args:
        differences: Metric of an arm less that of the baseline.
        margin: The smallest difference of use; None for one standard deviation of the differences.
    """
    if len(differences) < MIN_SEEDS:
        return False
    deviation = mean_and_deviation(differences)[1] or 0.0
    return t_interval(differences, RACE_LEVEL)[1] < (deviation if margin is None else margin)

# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the runs of a comparison have measured: names, order and values, spread over seeds, paired differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Optional

from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.tools.compare import significance
from yolo_lossplug.tools.compare.significance import Difference

Result = Mapping[str, Any]
"""What came out of one run, as its result file holds it."""
Results = Mapping[tuple[str, int], Result]
"""What came out of each finished run, by loss and seed."""
ORDER = ("mAP50-95", "mAP50", "mAP75", "precision", "recall")
"""The order of metrics in tables and plots, each for boxes, masks and keypoints; the first is the primary one."""
SIZES = ("AP_small", "AP_medium", "AP_large")
MARKS = {"(B)": " box", "(M)": " mask", "(P)": " pose"}
TASKS_WITH = {"(B)": ("detect", "segment", "pose", "obb"), "(M)": ("segment",), "(P)": ("pose",)}
"""Tasks that have the metrics of a mark."""
METRICS, TEST = "metrics/", "test/"
"""Prefixes of Ultralytics' metrics, and of all numbers of the test split."""


def measured(result: Result) -> dict[str, Optional[float]]:
    """Return all metrics of a run by name: Ultralytics', AP by size and class, and those of the test split.

    One that is not finite is missing.
    """
    metrics = {**result["metrics"], **(result.get("average_precision") or {})}
    if test := result.get("test"):
        of_test = {**test.get("metrics", {}), **(test.get("average_precision") or {})}
        metrics.update({f"{TEST}{name.removeprefix(METRICS)}": value for name, value in of_test.items()})
    return {name: None if value is None or not math.isfinite(value) else value for name, value in metrics.items()}


def run_numbers(result: Result) -> dict[str, Optional[float]]:
    """Return all numbers of a run by name: metrics in their order, losses of the last epoch, and seconds."""
    metrics = measured(result)
    seconds = {"seconds": result["seconds"]} if "seconds" in result else {}
    return {**{name: metrics[name] for name in order(metrics)}, **result["losses"], **seconds}


def metrics_of(results: Results) -> list[str]:
    """Return the names of all metrics: the main one first, Ultralytics' before AP by size, by class, and test."""
    return order(dict.fromkeys(name for result in results.values() for name in measured(result)))


def order(names: Iterable[str]) -> list[str]:
    """Return the metrics among names: boxes before masks and keypoints, the main one first, those of classes last."""

    def rank(name: str) -> tuple[bool, bool, int, int]:
        plain = name.removeprefix(TEST).removeprefix(METRICS)
        position = next((i for i, word in enumerate(ORDER) if plain.startswith(f"{word}(")), len(ORDER))
        mark = [*MARKS].index(name[-3:]) if name[-3:] in MARKS else 0
        is_of_class = plain.startswith("AP_") and plain not in SIZES
        return name.startswith(TEST), is_of_class, mark, position

    return sorted((name for name in names if is_metric(name)), key=rank)


def is_metric(name: str) -> bool:
    """Return whether a name is that of a metric, which is higher where a run is better."""
    return name.startswith((METRICS, TEST, "AP_"))


def group_of(measure: str) -> str:
    """Return what a measure is: ``mean``, ``size``, ``class``, ``test``, ``loss`` or ``seconds``."""
    if measure.startswith((TEST, METRICS)):
        return "test" if measure.startswith(TEST) else "mean"
    if measure.startswith("AP_"):
        return "size" if measure in SIZES else "class"
    return measure if measure == "seconds" else "loss"


def label(measure: str, measures: Iterable[str] = ()) -> str:
    """Return a measure's name without Ultralytics' marks.

    Args:
        measure: The full name.
        measures: Full names beside it: with masks or keypoints among them, those of boxes are said to be that.

    >>> label("metrics/mAP50-95(M)")
    'mAP50-95 mask'
    >>> label("test/mAP50(B)"), label("test/mAP50(B)", ["metrics/mAP50(P)"])
    ('test mAP50', 'test mAP50 box')
    """
    if measure.startswith(TEST):
        return f"test {label(measure.removeprefix(TEST), measures)}"
    name = measure.removeprefix(METRICS)
    mark = name[-3:] if name[-3:] in MARKS else ""
    is_named = mark != "(B)" or any(other.startswith(METRICS) and other.endswith(("(M)", "(P)")) for other in measures)
    return name.removesuffix(mark) + MARKS.get(mark, "") * is_named


def primary_of(results: Results, metric: str) -> str:
    """Return the full name of the primary metric; that of the task where it has no mAP; empty without results.

    Raises:
        LossPlugError: If there is no such metric.
    """
    names = metrics_of(results)
    if metric == ORDER[0] and names and f"{METRICS}{metric}(B)" not in names:
        return names[0]
    return resolve_metric(metric, names) if names else ""


def resolve_metric(metric: str, names: Iterable[str]) -> str:
    """Return the full name of a metric as ``metric=`` gives it: ``mAP50(M)``, ``test/AP_dog``, or in full.

    Raises:
        LossPlugError: If there is no such metric.

    >>> resolve_metric("mAP50", ["metrics/mAP50-95(B)", "metrics/mAP50(B)"])
    'metrics/mAP50(B)'
    """
    names, prefix = list(names), TEST if metric.startswith(TEST) else METRICS
    plain = metric.removeprefix(TEST)
    for name in (metric, f"{prefix}{plain}(B)", f"{prefix}{plain}"):
        if name in names:
            return name
    shown = ", ".join(name.removeprefix(METRICS).removesuffix("(B)") for name in names)
    raise LossPlugError(f"metric={metric} was not measured in these runs. Known: {shown}.")


class Spread(NamedTuple):
    """Mean and sample standard deviation of a measure over the seeds of an arm; no deviation for one seed."""

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
    """Return the effect of an arm by its differences, seed by seed, with its power where it has a verdict."""
    if difference is None:
        return Effect(arm, metric)
    mean, low, high, verdict, level = difference
    effect = Effect(arm, metric, mean, low, high, level, len(pairs), verdict)
    deviation = significance.mean_and_deviation(pairs)[1]
    if level is None or deviation is None or not verdict:
        return effect
    smallest = significance.smallest_shown(deviation, len(pairs), level)
    return replace(effect, smallest=smallest, needed=significance.seeds_needed(mean, deviation, level))

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Names, order and values of what a run of a comparison has measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Optional

from yolo_lossplug.registry import LossPlugError

Result = Mapping[str, Any]
"""What came out of one run, as its result file holds it."""
Results = Mapping[tuple[str, int], Result]
"""What came out of each finished run, by loss and seed."""
ORDER = ("mAP50-95", "mAP50", "mAP75", "precision", "recall")
"""The order of metrics in tables and plots, each for boxes, masks and keypoints; the first is the primary one."""
SIZES = ("AP_small", "AP_medium", "AP_large")
MARKS = {"(B)": "", "(M)": " mask", "(P)": " pose"}
METRICS, TEST = "metrics/", "test/"
"""Prefixes of Ultralytics' metrics, and of all numbers of the test split."""


def measured(result: Result) -> dict[str, Optional[float]]:
    """Return all metrics of a run by name: Ultralytics', AP by size and class, and those of the test split.

    One that is not finite is missing.
    """
    test = result.get("test") or {}
    of_test = {name.removeprefix(METRICS): value for name, value in test.get("metrics", {}).items()}
    of_test.update(test.get("average_precision") or {})
    metrics = {
        **result["metrics"],
        **(result.get("average_precision") or {}),
        **{f"{TEST}{name}": value for name, value in of_test.items()},
    }
    return {name: None if value is None or not math.isfinite(value) else value for name, value in metrics.items()}


def run_numbers(result: Result) -> dict[str, Optional[float]]:
    """Return all numbers of a run by name: metrics in their order, losses of the last epoch, and seconds."""
    metrics = measured(result)
    seconds = {"seconds": result["seconds"]} if "seconds" in result else {}
    return {**{name: metrics[name] for name in order(metrics)}, **result["losses"], **seconds}


def metrics_of(results: Results) -> list[str]:
    """Return the names of all metrics: the main one first, Ultralytics' before AP by size, by class, and test."""
    return order({name: None for result in results.values() for name in measured(result)})


def order(names: Iterable[str]) -> list[str]:
    """Return the metrics among names: boxes before masks and keypoints, the main one first, those of classes last."""

    def rank(name: str) -> tuple[bool, bool, int, int]:
        plain = name.removeprefix(TEST).removeprefix(METRICS)
        position = next((i for i, word in enumerate(ORDER) if plain.startswith(f"{word}(")), len(ORDER))
        mark = [*MARKS].index(name[-3:]) if name[-3:] in MARKS else 0
        is_of_class = plain.startswith("AP_") and plain not in SIZES
        return name.startswith(TEST), is_of_class, mark, position

    return sorted((name for name in names if is_metric(name)), key=rank)


def order_rows(rows: Iterable[Mapping[str, float]]) -> list[dict[str, float]]:
    """Return the metrics of a run's history, in order, without its losses, times and learning rates."""
    return [{name: row[name] for name in order(row)} for row in rows]


def is_metric(name: str) -> bool:
    """Return whether a name is that of a metric, which is higher where a run is better."""
    return name.startswith((METRICS, TEST, "AP_"))


def group_of(measure: str) -> str:
    """Return what a measure is: ``mean``, ``size``, ``class``, ``test``, ``loss`` or ``seconds``."""
    if not is_metric(measure):
        return measure if measure == "seconds" else "loss"
    if measure.startswith((TEST, METRICS)):
        return "test" if measure.startswith(TEST) else "mean"
    return "size" if measure in SIZES else "class"


def label(measure: str) -> str:
    """Return a measure's name without Ultralytics' marks.

    >>> label("metrics/mAP50-95(M)")
    'mAP50-95 mask'
    >>> label("test/mAP50(B)")
    'test mAP50'
    """
    if measure.startswith(TEST):
        return f"test {label(measure.removeprefix(TEST))}"
    name = measure.removeprefix(METRICS)
    for mark, word in MARKS.items():
        if name.endswith(mark):
            return name.removesuffix(mark) + word
    return name


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
    """Return the full name of a metric as ``metric=`` gives it.

    Args:
        metric: ``mAP50-95``, ``AP_small``, ``mAP50(M)``, ``test/AP_dog``, or a full name.
        names: The full names there are.

    Raises:
        LossPlugError: If there is no such metric.

    Example:
        >>> resolve_metric("mAP50", ["metrics/mAP50-95(B)", "metrics/mAP50(B)"])
        'metrics/mAP50(B)'
    """
    names = list(names)
    split, plain = (TEST, metric.removeprefix(TEST)) if metric.startswith(TEST) else ("", metric)
    prefix = split or METRICS
    for name in (metric, f"{prefix}{plain}(B)", f"{prefix}{plain}"):
        if name in names:
            return name
    shown = ", ".join(name.removeprefix(METRICS).removesuffix("(B)") for name in names)
    raise LossPlugError(f"metric={metric} was not measured in these runs. Known: {shown}.")

# SPDX-License-Identifier: AGPL-3.0-or-later
"""The answer of a comparison in a few lines: verdict, noise floor, power, gains, and a table for LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import shorten

from yolo_lossplug.tools.compare import significance
from yolo_lossplug.tools.compare.measures import SIZES, Results, label, measured
from yolo_lossplug.tools.compare.significance import BETTER, MIN_SEEDS, NOISE
from yolo_lossplug.tools.compare.verdict import Effect, effects, noise_floor, values_of

NOTHING_LEARNT = "All metrics are 0: nothing has been learnt yet. Train longer."
WIDTH, NAME_WIDTH, MOST = 80, 24, 6
"""Characters of a line and of a loss's name, and losses shown in a terminal."""


def lines(results: Results, arms: Sequence[str], metric: str) -> list[str]:
    """Return at most ten lines that fit a terminal of 80 columns: one for each loss, the noise, and the conclusion."""
    found = effects(results, arms[0], metric)
    baseline = list(values_of(results, arms[0], metric).values())
    last = shorten(conclusion(found, arms[0], nothing_learnt(results, metric)), WIDTH)
    if not baseline:
        return [f"{shorten(arms[0], 40)} has no {label(metric) or 'result'} yet, and nothing can be compared"]
    best = sorted((one for one in found if one.mean is not None), key=lambda one: -(one.mean or 0.0))
    mean = significance.mean_and_deviation(baseline)[0]
    names = short_names([arms[0], *(one.arm for one in best[:MOST])])
    rows = [f"{names[arms[0]]} {mean:.4f}  baseline, {len(baseline)} seed{'s' * (len(baseline) > 1)}"]
    rows += [f"{names[one.arm]} {difference(one)}"[:WIDTH] for one in best[:MOST]]
    floor = noise_floor(results, arms[0], metric)
    noise = [] if floor is None else [f"noise: {label(metric)} of the baseline deviates by {floor:.4f} over seeds"]
    return [f"{label(metric)}, differences seed by seed", *rows, *noise, last]


def short_names(arms: Sequence[str]) -> dict[str, str]:
    """Return names of arms for a column of `NAME_WIDTH`: cut at the end, or at the beginning where ends differ.

    >>> short_names(["ciou", "cls_weights={'bicycle': 1}", "cls_weights={'bicycle': 2}"])["cls_weights={'bicycle': 2}"]
    "…_weights={'bicycle': 2}"
    """
    starts = {arm: arm if len(arm) <= NAME_WIDTH else f"{arm[: NAME_WIDTH - 1]}…" for arm in arms}
    ends = {arm: arm if len(arm) <= NAME_WIDTH else f"…{arm[1 - NAME_WIDTH :]}" for arm in arms}
    names = max(starts, ends, key=lambda cut: len({*cut.values()}))
    return {arm: f"{name:<{NAME_WIDTH}}" for arm, name in names.items()}


def difference(effect: Effect) -> str:
    """Return a difference, the interval that decides, and the verdict."""
    if effect.mean is None:
        return "no common seed"
    if effect.low is None or effect.level is None:
        return f"{effect.mean:+.4f}  {effect.seeds} seed{'s' * (effect.seeds > 1)}: no interval"
    return f"{effect.mean:+.4f}  ({effect.low:+.4f} to {effect.high:+.4f})  {effect.verdict}"


def nothing_learnt(results: Results, metric: str) -> str:
    """Return a sentence if the metric of all runs is 0 or missing, and nothing can be compared; an empty one if not."""
    if not any(value for result in results.values() for value in measured(result).values()):
        return NOTHING_LEARNT
    values = {measured(result).get(metric) for result in results.values()}
    if values - {None, 0.0}:
        return ""
    return f"{label(metric)} is {'missing' if values == {None} else '0'} in all runs: nothing can be compared in it."


def conclusion(found: Sequence[Effect], baseline: str, nothing: str = "") -> str:
    """Return the answer in one sentence.

    Args:
        found: The differences in the primary metric.
        baseline: Name of the arm that the others are compared with.
        nothing: What `nothing_learnt` says.
    """
    if nothing:
        return nothing
    if not found:
        return "Only one loss has run, and there is nothing to compare it with."
    tested = [one for one in found if one.level is not None]
    decided = [one for one in tested if one.verdict != NOISE]
    if not tested:
        return f"No verdict: it takes at least {MIN_SEEDS} common seeds."
    if not decided:
        return f"Within noise: no loss was shown to differ from {baseline}."
    parts = [
        f"{one.arm} is {one.verdict} than {baseline}" for one in sorted(decided, key=lambda e: e.verdict != BETTER)
    ]
    return "; ".join(parts) + "."


def notes(results: Results, arms: Sequence[str], metric: str) -> list[str]:
    """Return what the verdict rests on, as items of Markdown: correction, noise floor, power, gains, size of data."""
    found = [one for one in effects(results, arms[0], metric) if one.level is not None]
    floor = noise_floor(results, arms[0], metric)
    items = []
    if len(found) > 1:
        items.append(
            f"{len(found)} losses are compared with one: Holm's correction keeps the chance of any wrong verdict at "
            "5 %, and each interval is printed at the level that decided."
        )
    if floor is not None:
        count = len(values_of(results, arms[0], metric))
        items.append(
            f"Noise floor: {label(metric)} of `{arms[0]}` has a standard deviation of {floor:.4f} over {count} seeds."
        )
    items += [_power(one) for one in found]
    return [*items, *gains(results, arms), *_sizes(results), *older(results)]


def _power(effect: Effect) -> str:
    needed = f"more than {significance.MAX_SEEDS}" if effect.needed is None else str(effect.needed)
    return (
        f"`{effect.arm}`: {effect.seeds} seeds show a true difference of {effect.smallest:.4f} four times in five "
        f"(power 0.8); to show one of {abs(effect.mean or 0.0):.4f} as observed takes {needed} seeds."
    )


def gains(results: Results, arms: Sequence[str]) -> list[str]:
    """Return which gains the runs had, one item where all had the same."""
    of_arms: dict[str, str] = {}
    for (arm, _), result in results.items():
        if result.get("gains"):
            of_arms[arm] = ", ".join(f"{key}={value:g}" for key, value in result["gains"].items())
    if len(set(of_arms.values())) == 1 and of_arms:
        return [f"All runs had the gains {next(iter(of_arms.values()))}; they were not matched to the scale of a loss."]
    return [f"`{arm}` ran with the gains {of_arms[arm]}." for arm in arms if arm in of_arms]


def _sizes(results: Results) -> list[str]:
    """Return what small, medium and large mean, where AP by size is measured."""
    if not any(result.get("average_precision") for result in results.values()):
        return []
    return [
        "Small, medium and large have COCO's limits of 32² and 96² pixels, at the network's input. AP by size and "
        "class is COCO's, of 100 detections of each class and image."
    ]


def older(results: Results) -> list[str]:
    """Return which runs were made before AP by size and class was measured, one item if there are any."""
    names = [f"`{arm}` seed {seed}" for (arm, seed), result in results.items() if "average_precision" not in result]
    return (
        [f"No AP by size and class, because they were made by an earlier version: {', '.join(names)}."] if names else []
    )


def latex(results: Results, arms: Sequence[str], metric: str, about: Sequence[str] = ()) -> str:
    """Return a table for the package booktabs: means of the metric and of AP by size, and the paired difference.

    Args:
        results: What came out of each finished run, by arm and seed.
        arms: Names of the arms, the baseline first.
        metric: Full name of the primary metric.
        about: Lines that stand above it as comments.
    """
    names = list(
        dict.fromkeys([metric, *(size for size in SIZES if any(values_of(results, arm, size) for arm in arms))])
    )
    found = {one.arm: one for one in effects(results, arms[0], metric)}
    head = " & ".join(["loss", "seeds", *(_escaped(label(name)) for name in names), "difference", "verdict"])
    rows = []
    for arm in arms:
        values = {name: list(values_of(results, arm, name).values()) for name in names}
        cells = [_mean(values[name]) for name in names]
        effect = found.get(arm)
        last = [_latex_difference(effect), effect.verdict] if effect else ["", "baseline"]
        rows.append(" & ".join([_escaped(arm), str(len(values[metric])), *cells, *last]) + r" \\")
    columns = "lr" + "r" * len(names) + "rl"
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head + r" \\", r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([*(f"% {line}" for line in about), *body, r"\end{tabular}", ""])


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "--"
    mean, deviation = significance.mean_and_deviation(values)
    return f"${mean:.4f}$" if deviation is None else rf"${mean:.4f} \pm {deviation:.4f}$"


def _latex_difference(effect: Effect) -> str:
    if effect.mean is None:
        return "--"
    interval = "" if effect.low is None else rf"\ [{effect.low:+.4f}, {effect.high:+.4f}]"
    return f"${effect.mean:+.4f}{interval}$"


def _escaped(text: str) -> str:
    """Return a text as LaTeX prints it."""
    words = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
    return "".join(rf"\{char}" if char in "_%&#${}" else words.get(char, char) for char in text)

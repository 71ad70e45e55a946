# SPDX-License-Identifier: AGPL-3.0-or-later
"""Plots of a comparison: a forest plot of the paired differences, and learning curves beside theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any, Optional

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from yolo_lossplug import charts
from yolo_lossplug.tools.compare.measures import Effect, label, order, ranked_effects
from yolo_lossplug.tools.compare.significance import BETTER, WORSE

Histories = Mapping[tuple[str, int], Sequence[Mapping[str, float]]]
"""Metrics after every epoch, by arm and seed."""
Runs = Mapping[int, np.ndarray]
"""One metric after every epoch, by seed."""
DECIDED = {BETTER: ("#0072b2", ">"), WORSE: ("#d55e00", "<")}
"""Colour and marker of a difference that is more than noise; the marker points where the difference does."""
UNDECIDED = ("#666666", "o")
NAME_WIDTH = 30
"""Characters of an arm's name in a line."""
RAMP = 0.25
"""The share of epochs, from the first, that does not count for the limits of an axis: all arms rise steeply there."""


def draw_forest(effects: Sequence[Effect], baseline: str, noise: Optional[float] = None) -> Optional[Figure]:
    """Draw the paired differences of one metric from the baseline, each with its interval and the decision, best first.

    The noise floor, the deviation of the baseline over its seeds, is a band around 0. None if there is nothing to draw.
    """
    ranked = ranked_effects(effects)
    if not ranked:
        return None
    lines = [fill(effect.arm, NAME_WIDTH) for effect in ranked]
    heights = np.array([0.55 + 0.17 * line.count("\n") for line in lines])
    figure, axes = charts.figure(1, 1, width=5.8, height=0.9 + float(heights.sum()))
    axis = axes[0, 0]
    axis.axvline(0, color="#000000", linewidth=1)
    if noise is not None:
        axis.axvspan(-noise, noise, color="#e4e4e4", linewidth=0, zorder=0)
    for y, line, effect in zip(heights.cumsum(), lines, ranked):
        _draw_effect(axis, y - 0.14, line, effect)
    axis.set_ylim(heights.sum() + 0.05, 0)
    axis.set_xlim(*_around_zero(ranked, noise or 0.0))
    interval = ", with intervals" if any(effect.low is not None for effect in ranked) else ""
    axis.set_xlabel(f"difference of {label(ranked[0].metric)} from {baseline}{interval}", fontsize=9)
    axis.set_yticks([])
    low, high = axis.get_xlim()
    axis.set_title("worse  ◂  ▸  better", fontsize=8, color="#444444", x=-low / (high - low))
    axis.tick_params(labelsize=9)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.grid(axis="x", alpha=0.25)
    return figure


def _draw_effect(axis: Any, y: float, name: str, effect: Effect) -> None:
    """Draw a difference, filled where it is decided; name and numbers are above it, so that a phone can show it."""
    colour, marker = DECIDED.get(effect.verdict, UNDECIDED)
    if effect.low is not None:
        axis.plot([effect.low, effect.high], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
    face = colour if effect.verdict in DECIDED else "#ffffff"
    axis.plot([effect.mean], [y], marker, color=colour, markerfacecolor=face, markersize=8, markeredgewidth=1.5)
    place = {"transform": axis.get_yaxis_transform(), "va": "bottom", "fontsize": 9, "color": "#000000"}
    backdrop = {"facecolor": "#ffffff", "edgecolor": "none", "pad": 1}
    axis.text(0, y - 0.12, name, ha="left", fontweight="bold", bbox=backdrop, **place)
    axis.text(1, y - 0.12, effect.words.replace("-", "−"), ha="right", bbox=backdrop, **place)


def _around_zero(effects: Sequence[Effect], noise: float) -> tuple[float, float]:
    """Return limits that hold intervals and the band of noise with a margin, and 0 far enough from both edges."""
    ends = [end for effect in effects for end in (effect.mean, effect.low, effect.high) if end is not None]
    low, high = min(-noise, *ends), max(noise, *ends)
    span = high - low or 0.1
    return min(low - 0.08 * span, -0.16 * span), max(high + 0.08 * span, 0.16 * span)


def draw_curves(histories: Histories, arms: Sequence[str]) -> Optional[Figure]:
    """Draw every metric against the epoch, and beside it the paired differences from the first arm.

    A line is the mean over the seeds; where few share an axis, a band of one standard deviation lies around each.
    Metrics that are 0 throughout are left out. None if nothing has been learnt yet, or no run has a history.
    """
    names = _learnt(histories)
    with_rows = {arm for (arm, _), rows in histories.items() if rows}
    drawn = {arm: style for arm, style in zip(arms, charts.styles()) if arm in with_rows}
    if not names:
        return None
    has_pairs = arms[0] in drawn and len(drawn) > 1
    columns = charts.legend_columns(list(drawn), 80)
    figure, axes = charts.figure(len(names), 1 + has_pairs, 3.8, 2.3 + 0.21 * (len(drawn) / columns - 1) / len(names))
    for panels, name in zip(axes, names):
        runs = _runs(histories, list(drawn), name)
        shown = label(name, names)
        _draw_lines(panels[0], runs, drawn, shown)
        if has_pairs:
            panels[1].axhline(0, color="#000000", linewidth=1)
            _draw_lines(panels[1], paired_differences(runs, arms[0]), drawn, f"{shown}: difference from {arms[0]}")
    if len(drawn) > 1:
        charts.legend_below(figure, axes[0, 0], columns)
    return figure


def _learnt(histories: Histories) -> list[str]:
    """Return the metrics that are not 0 throughout, in the order of the rows."""
    rows = [row for history in histories.values() for row in history]
    return [n for n in order(dict.fromkeys(n for row in rows for n in row)) if any(row.get(n) for row in rows)]


def paired_differences(runs: Mapping[str, Runs], first: str) -> dict[str, Runs]:
    """Return the runs of all arms but one less its run of the same seed, as far as the shorter one goes."""
    of_first, others = runs[first], {arm: of_arm for arm, of_arm in runs.items() if arm != first}
    return {arm: {s: _less(run, of_first[s]) for s, run in of.items() if s in of_first} for arm, of in others.items()}


def _less(run: np.ndarray, other: np.ndarray) -> np.ndarray:
    length = min(len(run), len(other))
    return run[:length] - other[:length]


def _runs(histories: Histories, arms: Sequence[str], name: str) -> dict[str, Runs]:
    """Return the values of a metric after every epoch, by arm and seed; seeds without any are left out."""
    values = {key: np.array([row[name] for row in rows if name in row]) for key, rows in histories.items()}
    return {arm: {s: run for (other, s), run in values.items() if other == arm and len(run)} for arm in arms}


def _draw_lines(axis: Any, runs: Mapping[str, Runs], styles: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Draw the mean of each arm's runs, as far as the shortest goes, with limits that let the differences show."""
    has_bands = len(runs) <= 4  # more would hide each other
    bands = [_draw_line(axis, of_arm, arm, styles[arm], has_bands) for arm, of_arm in runs.items() if of_arm]
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_xlabel("epoch")
    axis.margins(x=0.02)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=6))
    axis.grid(alpha=0.3)
    if bands:
        axis.set_ylim(*limits_of(bands))


def _draw_line(axis: Any, runs: Runs, arm: str, style: Mapping[str, Any], has_band: bool) -> np.ndarray:
    """Draw the mean of runs, and return the ends of what is drawn (2, epochs)."""
    length = min(map(len, runs.values()))
    values, epochs = np.stack([run[:length] for run in runs.values()]), np.arange(1, length + 1)
    mean = values.mean(0)
    spread = values.std(0, ddof=1) if len(values) > 1 and has_band else np.zeros(length)
    axis.plot(epochs, mean, label=arm, markevery=max(1, length // 8), **style)
    axis.fill_between(epochs, mean - spread, mean + spread, color=style["color"], alpha=0.15, linewidth=0)
    return np.stack([mean - spread, mean + spread])


def limits_of(bands: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the limits of an axis: those of the bands (2, epochs) after the first quarter of epochs, with a margin."""
    kept = [band[:, int(RAMP * band.shape[1]) :] for band in bands]
    low, high = min(float(band.min()) for band in kept), max(float(band.max()) for band in kept)
    margin = 0.06 * (high - low) or max(0.05 * abs(high), 1e-3)
    return low - margin, high + margin

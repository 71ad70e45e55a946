# SPDX-License-Identifier: AGPL-3.0-or-later
"""Pictures of `lossplug inspect`: sizes against strides, candidates by size, and images with their anchors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from yolo_lossplug import charts
from yolo_lossplug.tools.inspect.counts import by_bins

EDGES = tuple(float(2**i) for i in (1, 2, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5, 7, 8, 9, 10))
"""Edges of the bins of sides, in pixels."""
LEVEL_COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#0072b2")
NO_SIGNAL, OBJECT = "#d55e00", "#ffffff"
MAX_DOTS = 20_000
"""Candidates of an image that are drawn; of more, a random part is."""


MAX_OBJECTS, MAX_CENTRES = 60, 500
"""Objects up to which an image is drawn as a whole, and objects that a part may be around."""
SIDES_SHOWN = 6
"""Median sides of the objects on either side of the middle of a part."""
WIDTH, POINTS_PER_INCH = 4.2, 72
"""Inches of an image in the grid, and points of the size of a dot in an inch."""


class Panel(NamedTuple):
    """One image with its objects.

    Attributes:
        image: Pixels (imgsz, imgsz, 3), RGB, as the network sees them.
        shown: Left, top, right, bottom of the part that is no padding, in pixels.
        title: Why it is shown.
        corners: Corners (n, 4, 2) of the objects in pixels.
        has_signal: Whether each object has an anchor, or without a model a candidate (n,).
        candidates: Anchor (P,) of each pair with an object.
        assigned: Anchors (Q,) that are assigned; empty without a model.
        points: Centres (A, 2) of the anchors in pixels.
        level: Level (A,) of the anchors.
    """

    image: np.ndarray
    shown: tuple[float, float, float, float]
    title: str
    corners: np.ndarray
    has_signal: np.ndarray
    candidates: np.ndarray
    assigned: np.ndarray
    points: np.ndarray
    level: np.ndarray


def draw_sizes(sides: dict[int, np.ndarray], strides: Sequence[float], file: Path) -> Path:
    """Draw a histogram of the sides of objects at each imgsz, with the strides.

    Args:
        sides: Root of the area (G,) in pixels of the input, by imgsz.
        strides: Strides of the levels.
        file: A PNG.
    """
    edges = 2.0 ** np.arange(0, 11.01, 0.25)
    figure, axes = charts.figure(len(sides), 1, 7.5, 2.5)
    for panel, (imgsz, values) in zip(axes[:, 0], sides.items()):
        shown = np.histogram(np.clip(values, edges[0], edges[-1] * 0.999), edges)[0] / max(1, len(values)) * 100
        panel.bar(edges[:-1], shown, np.diff(edges), align="edge", color="#0072b2", alpha=0.75, linewidth=0)
        top = max(1.0, shown.max()) * 1.28
        for stride in strides:
            panel.axvline(stride, color="#d55e00", linestyle="--", linewidth=1.2)
            panel.text(stride * 1.04, top * 0.98, f"stride {stride:g}", color="#a04000", fontsize=8, va="top")
        for limit, name in ((32, "small | medium"), (96, "medium | large")):
            panel.axvline(limit, color="black", linestyle=":", linewidth=1.2)
            panel.text(limit, top * 0.86, name, fontsize=8, va="top", ha="center", backgroundcolor="white")
        panel.set_xscale("log", base=2)
        panel.set_xticks(2.0 ** np.arange(0, 12))
        panel.set_xticklabels([f"{2**i}" for i in range(12)])
        panel.minorticks_off()
        panel.set_xlim(min(4.0, *edges[:-1][shown > 0]), max(1.1 * imgsz, 192.0))
        panel.set_ylim(0, top)
        panel.set_ylabel("% of objects")
        panel.set_title(f"imgsz {imgsz}: size of objects against the strides", fontsize=10)
    axes[-1, 0].set_xlabel("side (root of the area) in pixels of the network's input")
    return charts.save(figure, file)


def draw_candidates(
    sides: dict[int, np.ndarray],
    candidates: dict[int, np.ndarray],
    strides: Sequence[float],
    topk: int,
    file: Path,
) -> Path:
    """Draw strips of the mean number of candidates by size and level, one block for each imgsz.

    Args:
        sides: Root of the area (G,) in pixels of the input, by imgsz.
        candidates: Candidates (G, L), by imgsz.
        strides: Strides of the L levels.
        topk: Anchors that the assigner selects for an object at most.
        file: A PNG.
    """
    from matplotlib.colors import LogNorm

    rows = len(strides) + 2
    figure, axes = charts.figure(len(sides), 1, 9, 0.42 * rows + 0.9)
    norm = LogNorm(1, 400, clip=True)
    used = np.flatnonzero(by_bins(np.concatenate([*sides.values()]), np.concatenate([*sides.values()]), EDGES)[1])
    first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, len(EDGES) - 1)
    for panel, (imgsz, values) in zip(axes[:, 0], sides.items()):
        total = candidates[imgsz].sum(1)
        columns = [candidates[imgsz][:, i] for i in range(len(strides))] + [total]
        means = np.stack([by_bins(values, column, EDGES)[0] for column in columns])
        low, _ = by_bins(values, total < topk, EDGES)
        shown = np.vstack((means, np.full((1, len(low)), np.nan)))
        panel.imshow(np.maximum(shown, 1), cmap="Blues", norm=norm, aspect="auto")
        for i, row in enumerate(np.vstack((means, low * 100))):
            for j, value in enumerate(row):
                if np.isnan(value):
                    continue
                text = f"{value:.0f} %" if i == rows - 1 else f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
                is_dark = i < rows - 1 and norm(max(1, value)) > 0.6
                panel.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if is_dark else "black")
        panel.set_xlim(first - 0.5, last - 0.5)
        panel.set_xticks(np.arange(first, last + 1) - 0.5)
        panel.set_xticklabels([f"{edge:.0f}" for edge in EDGES[first : last + 1]], fontsize=8)
        panel.set_yticks(range(rows))
        names = [f"stride {stride:g}" for stride in strides]
        panel.set_yticklabels([*names, "all levels", f"fewer than {topk}"], fontsize=8)
        panel.set_title(f"imgsz {imgsz}: mean number of candidates of an object, by its size", fontsize=10)
        panel.tick_params(length=0)
        for spine in panel.spines.values():
            spine.set_visible(False)
        panel.axhline(rows - 1.5, color="black", linewidth=0.8)
    axes[-1, 0].set_xlabel("side (root of the area) in pixels of the network's input")
    return charts.save(figure, file)


def draw_images(panels: Sequence[Panel], strides: Sequence[float], file: Path) -> Path:
    """Draw images with their objects and anchors.

    Args:
        panels: The images, six at most.
        strides: Strides of the levels.
        file: A PNG or JPEG.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = charts.figure(rows, columns, WIDTH, WIDTH + 0.3)
    for axis in axes.flat:
        axis.axis("off")
    for axis, panel in zip(axes.flat, panels):
        _draw(axis, panel)
    figure.legend(
        handles=_legend(panels, strides),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=9,
        handlelength=1.6,
    )
    return charts.save(figure, file)


def window(panel: Panel) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of what is drawn: a part, where objects are very small or very many.

    The part is around an object without signal, or around the one with most others near it.
    """
    left, top, right, bottom = panel.shown
    centres, extent = panel.corners.mean(1), max(right - left, bottom - top)
    side = float(np.median(np.ptp(panel.corners, axis=1).max(1)))
    half = min(extent / 2, max(0.15 * extent, SIDES_SHOWN * side))
    if half > extent / 3 and len(centres) <= MAX_OBJECTS:
        return panel.shown
    away = np.abs(centres[:, None] - centres[None, :MAX_CENTRES]).max(-1)
    index = int((~panel.has_signal[:MAX_CENTRES]).argmax()) if (~panel.has_signal[:MAX_CENTRES]).any() else -1
    index = int((away < half).sum(0).argmax()) if index < 0 else index
    if len(centres) > MAX_OBJECTS:
        half = min(half, float(np.sort(away[:, index])[MAX_OBJECTS // 2]))
    low = np.clip(centres[index] - half, (left, top), (max(left, right - 2 * half), max(top, bottom - 2 * half)))
    high = np.minimum(low + 2 * half, (right, bottom))
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _draw(axis: Any, panel: Panel) -> None:
    from matplotlib.patches import Polygon

    left, top, right, bottom = window(panel)
    low, high = np.array([left, top]), np.array([right, bottom])
    spacing = WIDTH * POINTS_PER_INCH / max(right - left, bottom - top) * _least_spacing(panel)
    axis.imshow(panel.image // 2 + 127)  # pale, so that dots are seen
    is_inside = _is_inside(panel.points, low, high)
    dots = np.unique(panel.candidates)
    dots = dots[is_inside[dots]]
    if len(dots) > MAX_DOTS:
        dots = np.random.default_rng(0).choice(dots, MAX_DOTS, replace=False)
    size = min(3.4, 0.5 * spacing) ** 2
    axis.scatter(*panel.points[dots].T, s=size, c=_colours(panel.level[dots]), linewidths=0)
    chosen, size = panel.assigned[is_inside[panel.assigned]], min(5.8, 0.85 * spacing) ** 2
    colours, edge = _colours(panel.level[chosen]), min(0.8, 0.15 * spacing)
    axis.scatter(*panel.points[chosen].T, s=size, c=colours, edgecolors="black", linewidths=edge, zorder=3)
    for corners, has_signal in zip(panel.corners, panel.has_signal):
        for width, colour in ((2.4, "black"), (1.2, OBJECT if has_signal else NO_SIGNAL)):
            axis.add_patch(
                Polygon(corners, fill=False, edgecolor=colour, linewidth=width, zorder=4 if not has_signal else 2)
            )
    missed = panel.corners[~panel.has_signal].mean(1)
    missed = missed[_is_inside(missed, low, high)]
    axis.scatter(*missed.T, s=45, marker="x", c=NO_SIGNAL, linewidths=2, zorder=5, clip_on=False)
    axis.set_xlim(left, right)
    axis.set_ylim(bottom, top)
    axis.set_title(panel.title + ("" if window(panel) == panel.shown else " (part)"), fontsize=9)


def _is_inside(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return whether points (P, 2) are in a rectangle."""
    return np.asarray(np.logical_and(points >= low, points <= high).all(axis=1))


def _least_spacing(panel: Panel) -> float:
    """Return the distance in pixels of the anchors of the finest level."""
    first = panel.points[panel.level == 0]
    return float(first[1, 0] - first[0, 0]) if len(first) > 1 else float(panel.image.shape[0])


def _colours(level: np.ndarray) -> list[str]:
    return [LEVEL_COLOURS[i % len(LEVEL_COLOURS)] for i in level.tolist()]


def _legend(panels: Sequence[Panel], strides: Sequence[float]) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    is_assigned = any(len(panel.assigned) for panel in panels)
    handles: list[Any] = [
        Line2D([], [], linestyle="", marker="o", markersize=5, color=colour, label=f"stride {stride:g}")
        for colour, stride in zip(LEVEL_COLOURS, strides)
    ]
    handles.append(Line2D([], [], linestyle="", marker="o", markersize=3, color="#555555", label="candidate"))
    if is_assigned:
        handles.append(
            Line2D(
                [], [], linestyle="", marker="o", markersize=6, color="#bbbbbb", mec="black", label="assigned anchor"
            )
        )
    what = "an anchor" if is_assigned else "a candidate"
    handles.append(Patch(facecolor="none", edgecolor="black", linewidth=1.5, label=f"object with {what} (white)"))
    handles.append(
        Line2D([], [], linestyle="", marker="x", markersize=8, mew=2, color=NO_SIGNAL, label="object without (red)")
    )
    return handles

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Pictures of `lossplug inspect`: sizes against strides, candidates by size, and images with their anchors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from yolo_lossplug import charts
from yolo_lossplug.boxes import LIMITS
from yolo_lossplug.tools.inspect.counts import by_bins, telling
from yolo_lossplug.tools.inspect.findings import N_PICTURES, Findings
from yolo_lossplug.tools.inspect.views import View
from yolo_lossplug.tools.report import Picture
from yolo_lossplug.ultralytics_hook.dataset.candidates import candidate_pairs, corners_of, points_of
from yolo_lossplug.ultralytics_hook.dataset.labels import pixels_of, shown_part

EDGES = tuple(float(2**i) for i in (1, 2, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5, 7, 8, 9, 10))
"""Edges of the bins of sides, in pixels."""
SIDE_LABEL = "side (root of the area) in pixels of the network's input"
LEVEL_COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#0072b2")
NO_SIGNAL, OBJECT = "#d55e00", "#ffffff"
MAX_DOTS = 20_000
"""Candidates of an image that are drawn; of more, a random part is."""
MAX_OBJECTS, MAX_CENTRES = 60, 500
"""Objects up to which an image is drawn as a whole, and objects that a part may be around."""
WIDTH = 4.2
"""Inches of an image in the grid."""


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
        regions: Corners (R, 4, 2) of the regions in pixels.
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
    regions: Sequence[np.ndarray] = ()


def draw_pictures(found: Findings, directory: Path) -> list[Picture]:
    """Draw the pictures into a directory and return them with what they show."""
    file, alt = directory / "sizes.png", "histogram of the sizes of objects, with the strides of the levels"
    caption = "Objects left of the first stride fit into one cell of the finest level."
    made = [Picture(_draw_sizes(found, file), alt, caption)]
    caption = f"Last line: share of objects with fewer than {found.topk} candidates, which the assigner asks for."
    file, alt = directory / "candidates.png", "mean number of candidate anchors by size of the object and level"
    made.append(Picture(_draw_candidates(found, file), alt, caption))
    if panels := _panels(found):
        images = _draw_images(panels, found.strides, directory / "images.png")
        caption = "Images of most interest, as the network sees them. Dots are centres of anchors, coloured by level."
        made.append(Picture(images, "images with their objects and anchors", caption))
    return made


def _draw_sizes(found: Findings, file: Path) -> Path:
    edges = 2.0 ** np.arange(0, 11.01, 0.25)
    figure, axes = charts.figure(len(found.views), 1, 7.5, 2.5)
    for panel, view in zip(axes[:, 0], found.views):
        counts = np.histogram(np.clip(view.sides, edges[0], edges[-1] * 0.999), edges)[0]
        shown = counts / max(1, len(view.sides)) * 100
        panel.bar(edges[:-1], shown, np.diff(edges), align="edge", color="#0072b2", alpha=0.75, linewidth=0)
        top = max(1.0, shown.max()) * 1.28
        for stride in found.strides:
            panel.axvline(stride, color="#d55e00", linestyle="--", linewidth=1.2)
            panel.text(stride * 1.04, top * 0.98, f"stride {stride:g}", color="#a04000", fontsize=8, va="top")
        for limit, name in zip(np.sqrt(LIMITS), ("small | medium", "medium | large")):
            panel.axvline(limit, color="black", linestyle=":", linewidth=1.2)
            panel.text(limit, top * 0.86, name, fontsize=8, va="top", ha="center", backgroundcolor="white")
        panel.set_xscale("log", base=2)
        panel.set_xticks(2.0 ** np.arange(0, 12), [f"{2**i}" for i in range(12)])
        panel.minorticks_off()
        least, most = min(4.0, *edges[:-1][shown > 0]), max(1.1 * view.imgsz, 192.0)
        panel.set(xlim=(least, most), ylim=(0, top), ylabel="% of objects")
        panel.set_title(f"imgsz {view.imgsz}: size of objects against the strides", fontsize=10)
    axes[-1, 0].set_xlabel(SIDE_LABEL)
    return charts.save(figure, file)


def _draw_candidates(found: Findings, file: Path) -> Path:
    """Draw strips of the mean number of candidates by size and level, one block for each imgsz."""
    rows = [*(f"stride {stride:g}" for stride in found.strides), "all levels", f"fewer than {found.topk}"]
    figure, axes = charts.figure(len(found.views), 1, 9, 0.42 * len(rows) + 0.9)
    sides = np.concatenate([view.sides for view in found.views])
    used = np.flatnonzero(by_bins(sides, sides, EDGES)[1])
    first, last = int(used[0]), int(used[-1]) + 1
    for panel, view in zip(axes[:, 0], found.views):
        _draw_strips(panel, view, found.topk)
        panel.set_xlim(first - 0.5, last - 0.5)
        labels = [f"{edge:.0f}" for edge in EDGES[first : last + 1]]
        panel.set_xticks(np.arange(first, last + 1) - 0.5, labels, fontsize=8)
        panel.set_yticks(range(len(rows)), rows, fontsize=8)
        panel.set_title(f"imgsz {view.imgsz}: mean number of candidates of an object, by its size", fontsize=10)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        panel.axhline(len(rows) - 1.5, color="black", linewidth=0.8)
    axes[-1, 0].set_xlabel(SIDE_LABEL)
    return charts.save(figure, file)


def _draw_strips(panel: Any, view: View, topk: int) -> None:
    """Draw means by level, of all levels, and the share of objects with fewer than the assigner selects."""
    from matplotlib.colors import LogNorm

    columns = (*view.candidates.T, view.total, 100 * (view.total < topk))
    values = np.stack([by_bins(view.sides, column, EDGES)[0] for column in columns])
    last, norm = len(values) - 1, LogNorm(1, 400, clip=True)
    shown = np.maximum(values, 1)
    shown[last] = np.nan
    panel.imshow(shown, cmap="Blues", norm=norm, aspect="auto")
    for i, j in np.argwhere(~np.isnan(values)):
        value = values[i, j]
        text = f"{value:.0f} %" if i == last else f"{value:.{0 if value >= 9.95 else 1}f}"
        colour = "white" if i < last and norm(max(1, value)) > 0.6 else "black"
        panel.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)


def _panels(found: Findings) -> list[Panel]:
    view = found.views[0]
    scores = found.reasons(view)
    points, level = points_of(view.imgsz, found.strides)
    regions_of_images = found.labels.regions or [np.zeros((0, 4, 2))] * len(found.labels.files)
    panels = []
    for image, reason in telling(scores, N_PICTURES):
        if (pixels := pixels_of(found.labels, view.imgsz, image)) is not None:
            shown = shown_part(found.labels, view.imgsz, image)
            title = _title(reason, scores[reason][image], int(found.counts[image]))
            low, high = np.array(shown[:2]), np.array(shown[2:])
            regions = [low + corners * (high - low) for corners in regions_of_images[image]]
            panels.append(Panel(pixels, shown, title, *_objects(found, view, image), points, level, regions))
    return panels


def _objects(found: Findings, view: View, image: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the corners of an image's objects, whether each has a signal, candidates, and assigned anchors."""
    if view.main is not None:
        seen = view.main.kept[image]
        anchors, assigned = seen.candidates.any(0).nonzero()[0], (seen.owner >= 0).nonzero()[0]
        return corners_of(seen.boxes), seen.positives > 0, anchors, assigned
    rows = found.labels.image == image
    boxes = view.boxes[rows]
    _, anchors = candidate_pairs(boxes, view.imgsz, found.strides, found.assigner)
    return corners_of(boxes), view.total[rows] > 0, anchors, np.zeros(0, np.int64)


def _title(reason: str, score: float, count: int) -> str:
    if reason == "smallest object":
        return f"smallest object: side of {1 / score:.1f}, {count} objects"
    if reason.startswith("objects"):
        return f"{score:.0f} of {count} {reason}"
    if reason == "regions":
        return f"{score:.0f} region{'' if score == 1 else 's'}, {count} objects"
    is_counted = reason.startswith(("anchors", "overlapping"))
    return f"{f'{score:.0f} ' * is_counted}{reason}, {count} objects"


def _draw_images(panels: Sequence[Panel], strides: Sequence[float], file: Path) -> Path:
    columns = min(3, len(panels))
    figure, axes = charts.figure(-(-len(panels) // columns), columns, WIDTH, WIDTH + 0.3)
    for axis in axes.flat:
        axis.axis("off")
    for axis, panel in zip(axes.flat, panels):
        _draw(axis, panel, strides[0])
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    dot = partial(Line2D, [], [], linestyle="")
    is_assigned = any(len(panel.assigned) for panel in panels)
    what = "an anchor" if is_assigned else "a candidate"
    levels = zip(LEVEL_COLOURS, strides)
    handles = [
        *(dot(marker="o", markersize=5, color=colour, label=f"stride {stride:g}") for colour, stride in levels),
        dot(marker="o", markersize=3, color="#555555", label="candidate"),
        *[dot(marker="o", markersize=6, color="#bbbbbb", label="assigned anchor", mec="black")] * is_assigned,
        Patch(facecolor="none", edgecolor="black", linewidth=1.5, label=f"object with {what} (white)"),
        *([_hatched(np.zeros((1, 2)), label="region (hatched)")] if any(len(one.regions) for one in panels) else []),
        dot(marker="x", markersize=8, color=NO_SIGNAL, label="object without (red)", mew=2),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9, handlelength=1.6)
    return charts.save(figure, file)


def _hatched(corners: np.ndarray, **style: Any) -> Any:
    from matplotlib.patches import Polygon

    return Polygon(corners, fill=False, edgecolor="#444444", hatch="///", linewidth=0.8, **style)


def window(panel: Panel) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of what is drawn: a part, where objects are very small or very many.

    The part is around an object without signal, or around the one with most others near it.
    """
    left, top, right, bottom = panel.shown
    centres, extent = panel.corners.mean(1), max(right - left, bottom - top)
    side = float(np.median(np.ptp(panel.corners, axis=1).max(1)))
    half = min(extent / 2, max(0.15 * extent, 6 * side))
    if half > extent / 3 and len(centres) <= MAX_OBJECTS:
        return panel.shown
    away = np.abs(centres[:, None] - centres[None, :MAX_CENTRES]).max(-1)
    is_missed = ~panel.has_signal[:MAX_CENTRES]
    index = int((is_missed if is_missed.any() else (away < half).sum(0)).argmax())
    if len(centres) > MAX_OBJECTS:
        half = min(half, float(np.sort(away[:, index])[MAX_OBJECTS // 2]))
    low = np.clip(centres[index] - half, (left, top), (max(left, right - 2 * half), max(top, bottom - 2 * half)))
    high = np.minimum(low + 2 * half, (right, bottom))
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _draw(axis: Any, panel: Panel, stride: float) -> None:
    from matplotlib.patches import Polygon

    left, top, right, bottom = window(panel)
    low, high = np.array([left, top]), np.array([right, bottom])
    spacing = WIDTH * 72 / max(right - left, bottom - top) * stride  # in points
    spare = max(right - left, bottom - top) / 20  # for outlines
    axis.imshow(panel.image // 2 + 127)  # pale, so that dots are seen
    is_inside = _is_inside(panel.points, low, high)
    dots = np.unique(panel.candidates)
    dots, chosen = dots[is_inside[dots]], panel.assigned[is_inside[panel.assigned]]
    if len(dots) > MAX_DOTS:
        dots = np.random.default_rng(0).choice(dots, MAX_DOTS, replace=False)
    small, large, edge = min(3.4, 0.5 * spacing) ** 2, min(5.8, 0.85 * spacing) ** 2, min(0.8, 0.15 * spacing)
    axis.scatter(*panel.points[dots].T, s=small, c=_colours(panel.level[dots]), linewidths=0)
    style = {"c": _colours(panel.level[chosen]), "edgecolors": "black", "linewidths": edge}
    axis.scatter(*panel.points[chosen].T, s=large, **style, zorder=3)
    for corners in panel.regions:
        axis.add_patch(_hatched(corners, zorder=2))
    is_shown = ((panel.corners.max(1) >= low - spare) & (panel.corners.min(1) <= high + spare)).all(1)
    for corners, has_signal in zip(panel.corners[is_shown], panel.has_signal[is_shown]):
        for width, colour in ((2.4, "black"), (1.2, OBJECT if has_signal else NO_SIGNAL)):
            order = 2 if has_signal else 4
            axis.add_patch(Polygon(corners, fill=False, edgecolor=colour, linewidth=width, zorder=order))
    missed = panel.corners[~panel.has_signal].mean(1)
    missed = missed[_is_inside(missed, low, high)]
    axis.scatter(*missed.T, s=45, marker="x", c=NO_SIGNAL, linewidths=2, zorder=5, clip_on=False)
    axis.set(xlim=(left, right), ylim=(bottom, top))
    axis.set_title(panel.title + ("" if window(panel) == panel.shown else " (part)"), fontsize=9)


def _is_inside(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.asarray(np.logical_and(points >= low, points <= high).all(axis=1))


def _colours(level: np.ndarray) -> list[str]:
    return [LEVEL_COLOURS[i % len(LEVEL_COLOURS)] for i in level.tolist()]

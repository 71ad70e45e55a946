# SPDX-License-Identifier: AGPL-3.0-or-later
"""Plots of `lossplug curves`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor

from yolo_lossplug import charts
from yolo_lossplug.registry import ROTATED
from yolo_lossplug.selection.loss import Loss
from yolo_lossplug.tools.arms import Arm, labels
from yolo_lossplug.tools.curves import measures
from yolo_lossplug.tools.curves.measures import ASPECTS, MIN_CURVE_IOU, SIDE, STRIDE, Movement

TARGETS = (0.0, 0.5, 1.0)
"""Targets of class losses."""
DISJOINT_WIDTH = 0.5
"""Length on the axis of a gap of one width, where 1 is the length of IoU 1 to 0."""
NORM = "‖gradient‖ · box side"
Lines = Mapping[str, tuple[Tensor, Tensor]]
"""Loss (N,) and norm of its gradient (N,) by label."""


@dataclass(frozen=True)
class Column:
    """What one column of the figure shows.

    Attributes:
        title: Title.
        label: Label of the x axis.
        x: Positions on that axis (N,).
        lines: The losses.
        kinks: Where no gradient is drawn (N,).
        ticks: Ticks of that axis, position and text; none for matplotlib's own.
        disjoint: Position from which on the boxes do not overlap.
        is_cut: Whether the axis may end before the highest line does.
    """

    title: str
    label: str
    x: Tensor
    lines: Lines
    kinks: Tensor
    ticks: Mapping[float, str]
    disjoint: Optional[float] = None
    is_cut: bool = False


def draw_box_curves(chosen: Sequence[Arm], file: Path, sizes: Sequence[float] = (SIDE,)) -> Path:
    """Draw box losses and the norms of their gradients, and return the file, PNG or SVG.

    One size has a column for each movement, and below them, for rotated boxes, one for each aspect ratio of boxes that
    turn. Several have a column each, of the shift.
    """
    losses = {label: arm.selection.box for label, arm in zip(labels(chosen), chosen)}
    if len(sizes) > 1:
        return _draw_blocks([([_shift_column(measures.movement("shift", size), losses) for size in sizes], NORM)], file)
    (size,) = sizes
    blocks = [([_movement_column(way, losses) for way in measures.movements(size)], NORM)]
    if all(loss.kind == ROTATED for loss in losses.values()):
        blocks.append(([_turn_column(aspect, size, losses) for aspect in ASPECTS], "gradient by the angle"))
    return _draw_blocks(blocks, file, f"target of {size:g} px on the level of stride {STRIDE:g}")


def draw_class_curves(chosen: Sequence[Arm], file: Path) -> Path:
    """Draw class losses and their derivatives by the logit, one column for each target, and return the file."""
    losses = {label: arm.selection.cls for label, arm in zip(labels(chosen, True), chosen)}
    x, columns = measures.probabilities(), []
    for target in TARGETS:
        lines = {label: measures.measure_class(loss, x, target) for label, loss in losses.items()}
        columns.append(Column(f"target {target:g}", "predicted probability", x, lines, x < 0, {}, is_cut=True))
    return _draw_blocks([(columns, "gradient by the logit")], file)


def _movement_column(way: Movement, losses: Mapping[str, Loss]) -> Column:
    """Return a movement with an axis of IoU: 1 at 0, falling to the right, and to the left for smaller boxes."""
    lines = {label: measures.curve(loss, way) for label, loss in losses.items()}
    title, x, ticks, disjoint = "IoU", 1 - way.iou, _quarters(MIN_CURVE_IOU), None
    if way.name == "shift":
        title, disjoint = "IoU, then gap in widths of the box", 1.0
        x = x + DISJOINT_WIDTH * (way.positions - 1).clamp(min=0)
        ticks = {**_quarters(0.0), **{1 + DISJOINT_WIDTH * gap: f"+{gap:g}" for gap in (0.5, 1.0)}}
    elif way.name == "scale":
        title = "IoU   (left: smaller box, right: larger box)"
        x = torch.where(way.positions < 1, -1.0, 1.0) * x
        ticks = {**ticks, **{-at: text for at, text in ticks.items()}}
    return Column(way.title, title, x, lines, way.iou == 1, ticks, disjoint)


def _shift_column(way: Movement, losses: Mapping[str, Loss]) -> Column:
    lines = {label: measures.curve(loss, way) for label, loss in losses.items()}
    title = f"{way.side:g} px, stride {STRIDE:g}"
    return Column(title, "shift along x (pixels)", way.positions * way.side, lines, way.iou == 1, {}, way.side)


def _turn_column(aspect: float, size: float, losses: Mapping[str, Loss]) -> Column:
    lines = {label: measures.measure_turn(loss, aspect, size) for label, loss in losses.items()}
    x = measures.angles().rad2deg()
    ticks = {float(angle): f"{angle}°" for angle in range(0, 91, 15)}
    return Column(f"turn, {aspect:g}:1", "angle between the boxes", x, lines, x == 0, ticks, is_cut=True)


def _quarters(lowest: float) -> dict[float, str]:
    """Return ticks for every quarter of IoU from 1 down to a lowest one."""
    return {1 - i / 4: f"{i / 4:g}" for i in range(4, -1, -1) if i / 4 >= lowest}


def _draw_blocks(blocks: Sequence[tuple[Sequence[Column], str]], file: Path, title: str = "") -> Path:
    """Draw rows of losses, and below each one of their gradients of this name, with one legend, and return the file."""
    names, width = list(blocks[0][0][0].lines), max(len(columns) for columns, _ in blocks)
    legend = charts.legend_columns(names, 50 * width)
    height = 3.2 + 0.11 * max(0, -(-len(names) // legend) - 2)
    figure, axes = charts.figure(2 * len(blocks), width, height=height)
    for k, (columns, gradient) in enumerate(blocks):
        for j, column in enumerate(columns):
            for i, name in enumerate(("loss", gradient)):
                _draw_panel(axes[2 * k + i, j], column, i)
                axes[2 * k + i, j].set(xlabel=column.label, ylabel=name)
            axes[2 * k, j].set_title(column.title)
    figure.suptitle(title, fontsize=11)
    charts.legend_below(figure, axes[0, 0], legend)
    return charts.save(figure, file)


def _draw_panel(axes: Any, column: Column, row: int) -> None:
    """Draw the losses of a column (row 0) or their gradients (row 1), whose line does not join the sides of a kink."""
    for k, ((name, lines), style) in enumerate(zip(column.lines.items(), charts.styles())):
        shown = torch.where(column.kinks, torch.nan, lines[row]) if row else lines[row]
        axes.plot(column.x, shown, label=name, markevery=(5 * k % 24 + 1, 24), **style)
    if column.is_cut:
        _cut_peaks(axes, {name: lines[row] for name, lines in column.lines.items()})
    low, high = float(column.x.min()), float(column.x.max())
    axes.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    if column.ticks:
        axes.set_xticks(list(column.ticks), list(column.ticks.values()))
    if column.disjoint is not None:
        axes.axvspan(column.disjoint, high, color="0.9", zorder=0, linewidth=0)
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom, top + 0.1 * (top - bottom))  # room for the words above every line
        place = {"transform": axes.get_xaxis_transform(), "va": "top", "fontsize": 8}
        axes.text(column.disjoint + 0.01, 0.98, "no overlap", **place)
    axes.grid(alpha=0.3)


def _cut_peaks(axes: Any, lines: Mapping[str, Tensor]) -> None:
    """End an axis where most lines end, if a few would flatten the rest, and name those with their extremes."""
    peaks = {name: float(line.nan_to_num().abs().max()) for name, line in lines.items()}
    usual = sorted(peaks.values())[(len(peaks) - 1) // 2]
    cut = [name for name, peak in peaks.items() if peak > 2.5 * usual > 0]
    if cut:
        kept = torch.cat([line.nan_to_num() for name, line in lines.items() if name not in cut])
        low, high = float(kept.min()), float(kept.max())
        axes.set_ylim(low - (0.05 + 0.15 * (low < 0)) * (high - low), high + 0.2 * (high - low))
        far = [f"{name.partition('(')[0]}: to {float(lines[name][lines[name].abs().argmax()]):.3g}" for name in cut]
        x, side = (0.98, "right") if float(lines[cut[0]].abs().argmax()) * 2 < len(kept) else (0.02, "left")
        axes.text(x, 0.97, "\n".join(far), transform=axes.transAxes, va="top", ha=side, fontsize=8)
    elif max(peaks.values()) < 1e-6:
        axes.set_ylim(-0.1, 1)  # all are 0, not what rounding draws

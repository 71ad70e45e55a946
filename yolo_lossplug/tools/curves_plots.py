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
from yolo_lossplug.selection.loss import Loss
from yolo_lossplug.tools.arms import Arm, labels
from yolo_lossplug.tools.curves_measures import MIN_IOU, Movement, curve, measure_class, movements, probabilities

TARGETS = (0.0, 0.5, 1.0)
"""Targets of class losses."""
DISJOINT_WIDTH = 0.5
"""Length on the axis of a gap of one width, where 1 is the length of IoU 1 to 0."""
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
    """

    title: str
    label: str
    x: Tensor
    lines: Lines
    kinks: Tensor
    ticks: Mapping[float, str]
    disjoint: Optional[float] = None


def draw(chosen: Sequence[Arm], file: Path) -> Path:
    """Draw box losses and the norms of their gradients, one column for each movement, and return the file.

    Args:
        chosen: What to draw.
        file: PNG to write.
    """
    losses = {label: arm.selection.box for label, arm in zip(labels(chosen), chosen)}
    columns = [_movement_column(way, losses) for way in movements()]
    return _draw_columns(columns, "‖gradient‖ · box side", file)


def draw_class(chosen: Sequence[Arm], file: Path) -> Path:
    """Draw class losses and their derivatives by the logit, one column for each target, and return the file.

    Args:
        chosen: What to draw.
        file: PNG to write.
    """
    losses = {label: arm.selection.cls for label, arm in zip(labels(chosen, True), chosen)}
    return _draw_columns([_class_column(target, losses) for target in TARGETS], "gradient by the logit", file)


def _class_column(target: float, losses: Mapping[str, Loss]) -> Column:
    x = probabilities()
    lines = {label: measure_class(loss, x, target) for label, loss in losses.items()}
    return Column(f"target {target:g}", "predicted probability", x, lines, torch.zeros_like(x, dtype=torch.bool), {})


def _movement_column(way: Movement, losses: Mapping[str, Loss]) -> Column:
    """Return a movement with an axis of IoU: 1 at 0, falling to the right, and to the left for smaller boxes."""
    lines = {label: curve(loss, way) for label, loss in losses.items()}
    axis = {"shift": _shift_axis, "scale": _scale_axis, "aspect": _aspect_axis}[way.name]
    label, x, ticks, disjoint = axis(way)
    return Column(way.title, label, x, lines, way.iou == 1, ticks, disjoint)


def _shift_axis(way: Movement) -> tuple[str, Tensor, dict[float, str], Optional[float]]:
    gap = (way.positions - 1).clamp(min=0)
    ticks = {**_quarters(0.0), **{1 + DISJOINT_WIDTH * g: f"+{g:g}" for g in (0.5, 1.0)}}
    return "IoU, then gap in widths of the box", 1 - way.iou + DISJOINT_WIDTH * gap, ticks, 1.0


def _scale_axis(way: Movement) -> tuple[str, Tensor, dict[float, str], Optional[float]]:
    side = torch.where(way.positions < 1, -1.0, 1.0)
    ticks = _quarters(MIN_IOU)
    both = {**ticks, **{-x: text for x, text in ticks.items()}}
    return "IoU   (left: smaller box, right: larger box)", side * (1 - way.iou), both, None


def _aspect_axis(way: Movement) -> tuple[str, Tensor, dict[float, str], Optional[float]]:
    return "IoU", 1 - way.iou, _quarters(MIN_IOU), None


def _quarters(lowest: float) -> dict[float, str]:
    """Return ticks for every quarter of IoU from 1 down to a lowest one."""
    return {1 - i / 4: f"{i / 4:g}" for i in range(4, -1, -1) if i / 4 >= lowest}


def _draw_columns(columns: Sequence[Column], gradient: str, file: Path) -> Path:
    """Draw losses above and gradients below, with one legend, and return the file."""
    names = list(columns[0].lines)
    legend = charts.legend_columns(names, 150)
    figure, axes = charts.figure(2, len(columns), height=3.2 + 0.11 * max(0, -(-len(names) // legend) - 2))
    for j, column in enumerate(columns):
        for i, name in enumerate(("loss", gradient)):
            _draw_panel(axes[i, j], column, i)
            axes[i, j].set(xlabel=column.label, ylabel=name)
        axes[0, j].set_title(column.title)
    charts.legend_below(figure, axes[0, 0], legend)
    return charts.save(figure, file)


def _draw_panel(axes: Any, column: Column, row: int) -> None:
    """Draw the losses of a column (row 0) or their gradients (row 1).

    Without the gradient of a box that is its target: most losses have a kink there, and a line would join both sides.
    """
    for k, ((name, lines), style) in enumerate(zip(column.lines.items(), charts.styles())):
        shown = torch.where(column.kinks, torch.nan, lines[row]) if row else lines[row]
        axes.plot(column.x, shown, label=name, markevery=(5 * k % 24 + 1, 24), **style)
    low, high = float(column.x.min()), float(column.x.max())
    axes.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    if column.ticks:
        axes.set_xticks(list(column.ticks), list(column.ticks.values()))
    if column.disjoint is not None:
        _mark_disjoint(axes, column.disjoint, high)
    axes.grid(alpha=0.3)


def _mark_disjoint(axes: Any, start: float, end: float) -> None:
    axes.axvspan(start, end, color="0.9", zorder=0, linewidth=0)
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.1 * (top - bottom))  # room for the words above every line
    axes.text(start + 0.01, 0.98, "no overlap", transform=axes.get_xaxis_transform(), va="top", fontsize=8)

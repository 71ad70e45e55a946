# SPDX-License-Identifier: AGPL-3.0-or-later
"""Losses and their gradients as curves: of a box that leaves its target in three ways, or of a predicted probability.

The target is a square of 64 x 64 pixels in an image of 640 x 640, on the pyramid level of stride 8, as in training. The
box leaves it by a shift along x, by a change of scale about the common centre, smaller and larger, and by a change of
aspect at equal area about the common centre. Losses that remember are shown as in the first step of a run, with all
positions of a movement as one batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor

from yolo_lossplug import charts
from yolo_lossplug.registry import REGISTRY, ROTATED, SOFTMAX, LossPlugError
from yolo_lossplug.selection.keys import CLASSIFY, COMMON, given_keys, refuse_unknown
from yolo_lossplug.selection.loss import Loss
from yolo_lossplug.state import State
from yolo_lossplug.tools.arms import Arm, arms, know_own, short_name
from yolo_lossplug.ultralytics_hook.console import folder, say

HELP = """\
usage: lossplug curves [loss=NAME,... | cls_loss=NAME,...] [option=VALUE,...] [task=obb] [project=DIR] [name=NAME]

Draws losses and their gradients against IoU while a box leaves its target by shift, by scale and by aspect, or against
the predicted probability for cls_loss=. Writes curves.png and curves.csv.
  loss=        box losses with their prefixes; iou,giou,diou,ciou,eiou,siou if neither is given
  cls_loss=    class losses instead
  task=        obb or classify, for their losses
  option=      options of these losses; of several values each is drawn
  project=, name=   folder of the results; runs/curves/curves if not given
Example: lossplug curves loss=ciou,focal-eiou focal_gamma=0.3,0.5\
"""
DEFAULT = "iou,giou,diou,ciou,eiou,siou"
OTHER_TASKS = {"obb": ",".join(REGISTRY.names(ROTATED)), CLASSIFY: ",".join(REGISTRY.names(SOFTMAX))}
"""Tasks with losses of their own, and these."""
SIDE, STRIDE, IMGSZ = 64.0, 8.0, 640.0
"""Side of the target, cell and image, in pixels."""
STEPS = 120
"""Positions per unit of IoU; 1/2, 1/3 and 1/4 are among them."""
FURTHEST = 2.0
"""Largest shift, in widths of the box: it leaves the target at 1."""
LOWEST = 0.1
"""IoU at which the changes of scale and of aspect end."""
DISJOINT_WIDTH = 0.5
"""Room on the axis for a gap of one width, where 1 is the room for IoU 1 to 0."""
TARGETS = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Movement:
    """A box on its way from its target.

    Attributes:
        name: ``shift``, ``scale`` or ``aspect``.
        title: What happens.
        positions: What changes (N,): the shift in widths, the factor of the sides, or width over height.
        boxes: The box at each position (N, 4), x1 y1 x2 y2 in pixels.
        iou: Its IoU with the target (N,).
    """

    name: str
    title: str
    positions: Tensor
    boxes: Tensor
    iou: Tensor


@dataclass(frozen=True)
class Column:
    """What one column of the figure shows.

    Attributes:
        title: Title.
        label: Label of the x axis.
        x: Places on that axis (N,).
        ticks: Ticks of that axis, place and text; none for matplotlib's own.
        lines: Loss (N,) and length of its gradient (N,) for each name.
        kinks: Where no gradient is drawn (N,).
        disjoint: Place from which on the boxes do not overlap.
    """

    title: str
    label: str
    x: Tensor
    ticks: Mapping[float, str]
    lines: Mapping[str, tuple[Tensor, Tensor]]
    kinks: Tensor
    disjoint: Optional[float] = None


def main(args: Mapping[str, Any]) -> None:
    """Draw curves and write them as a table.

    Args:
        args: Keys as `HELP` lists them.

    Raises:
        LossPlugError: If a key or a value is wrong.
    """
    know_own(args)
    refuse_unknown(args, "task", "project", "name")
    refuse_task(args, *OTHER_TASKS)
    refuse_keys_of_training(args)
    task = args.get("task")
    is_class = args.get("cls_loss") is not None or task == CLASSIFY
    if is_class and args.get("loss") is not None:
        raise LossPlugError(
            f"loss={args['loss']} and cls_loss={args['cls_loss']} are drawn against different things; give one of them."
        )
    key = "cls_loss" if is_class else "loss"
    chosen = arms({**args, key: args.get(key) or OTHER_TASKS.get(str(task), DEFAULT)}, task)
    place = folder("curves", args.get("name"), args.get("project"))
    charts.save_table(class_rows(chosen) if is_class else rows(chosen), place / "curves.csv")
    (draw_class if is_class else draw)(chosen, place / "curves.png")
    say(f"drew {', '.join(labels(chosen, is_class))}: {place / 'curves.png'}")


def target_box() -> Tensor:
    """Return the target (4,), x1 y1 x2 y2 in pixels, float64; it is in the middle of the image."""
    low, high = (IMGSZ - SIDE) / 2, (IMGSZ + SIDE) / 2
    return torch.tensor([low, low, high, high], dtype=torch.float64)


def movement(name: str) -> Movement:
    """Return one of the three movements; its positions are 1/120 of IoU apart, and 1/120 of a width without overlap.

    Args:
        name: ``shift``: along x, up to two widths, the last of them without overlap. ``scale``: concentric, of equal
            aspect, from the smallest to the largest box with an IoU of 0.1. ``aspect``: concentric, of equal area,
            wider and wider down to an IoU of 0.1.

    Raises:
        KeyError: If there is no such movement.
    """
    return {"shift": _shift, "scale": _scale, "aspect": _aspect}[name]()


def movements() -> list[Movement]:
    """Return all movements."""
    return [movement(name) for name in ("shift", "scale", "aspect")]


def measure(loss: Loss, boxes: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return a loss and its gradient.

    Args:
        loss: A box loss; if it remembers anything, it starts afresh. Rotated boxes have an angle of 0.
        boxes: Boxes (N, 4), x1 y1 x2 y2 in pixels.
        target: Their target (4,).

    Returns:
        Losses (N,), and gradients (N, 4) by the coordinates, per pixel. Where edges of both boxes coincide, the loss
        has a kink, and a gradient is the mean of those on both sides.
    """
    pred = (boxes / STRIDE).requires_grad_()
    stride, wanted = pred.new_full((len(pred), 1), STRIDE), (target / STRIDE).expand_as(pred)
    pair = (_unturned(pred), _unturned(wanted)) if loss.kind == ROTATED else (pred, wanted)
    values = _afresh(loss)(*pair, stride=stride, imgsz=pred.new_full((2,), IMGSZ))
    return values.detach(), torch.autograd.grad(values.sum(), pred)[0] / STRIDE


def measure_class(loss: Loss, probabilities: Tensor, target: float) -> tuple[Tensor, Tensor]:
    """Return a class loss and its gradient by the logit.

    Args:
        loss: A class loss; if it remembers anything, it starts afresh. One of classify has two classes.
        probabilities: Predicted probabilities (N,), above 0 and below 1.
        target: Target of all of them, in [0, 1].

    Returns:
        Losses (N,), and derivatives (N,).
    """
    logits = probabilities.logit().requires_grad_()
    if loss.kind == SOFTMAX:
        pair = torch.stack((logits, torch.zeros_like(logits)), 1)
        values = _afresh(loss)(pair, pair.new_tensor([target, 1 - target]).expand_as(pair)).sum(1)
    else:
        values = _afresh(loss)(logits, torch.full_like(logits, target))
    return values.detach(), torch.autograd.grad(values.sum(), logits)[0]


def labels(chosen: Sequence[Arm], is_class: bool = False) -> list[str]:
    """Return a label for each arm: its loss with the options, and the arm's name where two would be the same."""
    found = [short_name(str(arm.selection.cls if is_class else arm.selection.box)) for arm in chosen]
    counts = Counter(found)
    return [label if counts[label] == 1 else f"{label} [{arm.name}]" for label, arm in zip(found, chosen)]


def rows(chosen: Sequence[Arm]) -> list[dict[str, Any]]:
    """Return box losses as a table: movement, position, iou, loss, value, gradient.

    The gradient is the L2 norm of that by the four coordinates, in units of the loss per side of the target.
    """
    return [
        {"movement": way.name, "position": position, "iou": iou, "loss": label, "value": value, "gradient": gradient}
        for way in movements()
        for label, arm in zip(labels(chosen), chosen)
        for position, iou, value, gradient in _numbers(way.positions, way.iou, *_curve(arm.selection.box, way))
    ]


def class_rows(chosen: Sequence[Arm]) -> list[dict[str, Any]]:
    """Return class losses as a table: target, probability, loss, value, gradient, the last by the logit."""
    return [
        {"target": target, "probability": p, "loss": label, "value": value, "gradient": gradient}
        for target in TARGETS
        for label, arm in zip(labels(chosen, True), chosen)
        for p, value, gradient in _numbers(_grid(), *measure_class(arm.selection.cls, _grid(), target))
    ]


def draw(chosen: Sequence[Arm], file: Path) -> Path:
    """Draw box losses and the lengths of their gradients, one column for each movement, and return the file.

    Args:
        chosen: What to draw.
        file: PNG to write.
    """
    curves = [
        (way, {label: _curve(arm.selection.box, way) for label, arm in zip(labels(chosen), chosen)})
        for way in movements()
    ]
    return _draw([_column(way, lines) for way, lines in curves], "‖gradient‖ · box side", file)


def draw_class(chosen: Sequence[Arm], file: Path) -> Path:
    """Draw class losses and their derivatives by the logit, one column for each target, and return the file.

    Args:
        chosen: What to draw.
        file: PNG to write.
    """
    columns = []
    for target in TARGETS:
        lines = {
            label: measure_class(arm.selection.cls, _grid(), target) for label, arm in zip(labels(chosen, True), chosen)
        }
        columns.append(
            Column(
                f"target {target:g}",
                "predicted probability",
                _grid(),
                {},
                lines,
                torch.zeros_like(_grid(), dtype=torch.bool),
            )
        )
    return _draw(columns, "gradient by the logit", file)


def legend_columns(names: Sequence[str], width: int) -> int:
    """Return the number of columns of a legend that is not wider than a number of characters, rows alike long."""
    most = max(1, min(6, len(names), width // (max(len(name) for name in names) + 10)))
    rows_needed = -(-len(names) // most)
    return -(-len(names) // rows_needed)


def refuse_task(args: Mapping[str, Any], *others: str) -> None:
    """Raise an error for a task without horizontal boxes.

    Args:
        args: The arguments.
        others: Tasks that are fine besides.

    Raises:
        LossPlugError: If it is one.
    """
    known = ("detect", "segment", "pose", *others)
    if args.get("task") not in (None, *known):
        raise LossPlugError(f"task={args['task']} cannot be used here; remove it, or give {', '.join(known)}.")


def refuse_keys_of_training(args: Mapping[str, Any], *others: str) -> None:
    """Raise an error for a key of ours that changes a training run, but no loss of a single box.

    Args:
        args: The arguments.
        others: Keys without effect besides.

    Raises:
        LossPlugError: If there is one.
    """
    without = {*COMMON - {"loss", "cls_loss"}, *others}
    for key, value in given_keys(args).items():
        if key in without:
            raise LossPlugError(f"{key}={value} has no effect here, only in training; remove it.")


def _shift() -> Movement:
    overlapping = torch.arange(STEPS, -1, -1, dtype=torch.float64) / STEPS
    apart = 1 + torch.arange(1, round((FURTHEST - 1) * STEPS) + 1, dtype=torch.float64) / STEPS
    shift = torch.cat(((1 - overlapping) / (1 + overlapping), apart))
    offset = torch.stack((shift, torch.zeros_like(shift)), 1).repeat(1, 2) * SIDE
    iou = torch.cat((overlapping, torch.zeros_like(apart)))
    return Movement("shift", "shift along x", shift, target_box() + offset, iou)


def _scale() -> Movement:
    iou = _iou_of_concentric()
    smaller, larger = iou.sqrt().flip(0), iou.rsqrt()[1:]
    factor = torch.cat((smaller, larger))
    boxes = _concentric(factor, factor)
    return Movement("scale", "scale about the centre", factor, boxes, torch.cat((iou.flip(0), iou[1:])))


def _aspect() -> Movement:
    iou = _iou_of_concentric()
    factor = (1 / iou + 1) / 2  # intersection 1/f, union 2 − 1/f
    return Movement("aspect", "aspect at equal area", factor.square(), _concentric(factor, 1 / factor), iou)


def _iou_of_concentric() -> Tensor:
    return torch.arange(STEPS, round(LOWEST * STEPS) - 1, -1, dtype=torch.float64) / STEPS


def _concentric(width: Tensor, height: Tensor) -> Tensor:
    """Return boxes (N, 4) about the target's centre whose sides are multiples (N,) of the target's."""
    half = torch.stack((width, height), 1) * (SIDE / 2)
    return IMGSZ / 2 + torch.cat((-half, half), 1)


def _grid() -> Tensor:
    """Return the probabilities at which class losses are measured."""
    return torch.arange(1, 100, dtype=torch.float64) / 100


def _unturned(boxes: Tensor) -> Tensor:
    """Return boxes x1 y1 x2 y2 (N, 4) as x, y, w, h and an angle of 0 (N, 5)."""
    low, high = boxes[:, :2], boxes[:, 2:]
    return torch.cat(((low + high) / 2, high - low, torch.zeros_like(boxes[:, :1])), 1)


def _afresh(loss: Loss) -> Loss:
    """Return a loss that remembers nothing yet."""
    return loss.within(State().scoped("curves"))


def _curve(loss: Loss, way: Movement) -> tuple[Tensor, Tensor]:
    """Return a loss (N,), and the length of its gradient in units of the loss per side of the target (N,)."""
    values, gradients = measure(loss, way.boxes, target_box())
    return values, gradients.norm(dim=1) * SIDE


def _numbers(*columns: Tensor) -> zip[tuple[float, ...]]:
    return zip(*(column.tolist() for column in columns))


def _column(way: Movement, lines: Mapping[str, tuple[Tensor, Tensor]]) -> Column:
    """Return a movement with an axis of IoU: 1 at 0, falling to the right, and to the left for smaller boxes."""
    tenths = {1 - i / 4: f"{i / 4:g}" for i in range(4, -1, -1)}
    if way.name == "shift":
        gap = (way.positions - 1).clamp(min=0)
        ticks = {**tenths, **{1 + DISJOINT_WIDTH * g: f"+{g:g}" for g in (0.5, 1.0)}}
        label = "IoU, then gap in widths of the box"
        return Column(way.title, label, 1 - way.iou + DISJOINT_WIDTH * gap, ticks, lines, way.iou == 1, disjoint=1.0)
    side = torch.where(way.positions < 1, -1.0, 1.0) if way.name == "scale" else 1.0
    ticks = {x: text for x, text in tenths.items() if x <= 1 - LOWEST}
    if way.name == "scale":
        ticks.update({-x: text for x, text in tenths.items() if x <= 1 - LOWEST})
    label = "IoU   (left: smaller box, right: larger box)" if way.name == "scale" else "IoU"
    return Column(way.title, label, side * (1 - way.iou), ticks, lines, way.iou == 1)


def _draw(columns: Sequence[Column], gradient: str, file: Path) -> Path:
    """Draw losses above and gradients below, with one legend, and return the file."""
    names = list(columns[0].lines)
    legend = legend_columns(names, 150)
    made, axes = charts.figure(2, len(columns), height=3.2 + 0.11 * max(0, -(-len(names) // legend) - 2))
    for j, column in enumerate(columns):
        for i, name in enumerate(("loss", gradient)):
            _draw_panel(axes[i, j], column, i)
            axes[i, j].set(xlabel=column.label, ylabel=name)
        axes[0, j].set_title(column.title)
    charts.legend_below(made, axes[0, 0], legend)
    return charts.save(made, file)


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
        axes.axvspan(column.disjoint, high, color="0.9", zorder=0, linewidth=0)
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom, top + 0.1 * (top - bottom))  # room for the words above every line
        axes.text(
            column.disjoint + 0.01, 0.98, "no overlap", transform=axes.get_xaxis_transform(), va="top", fontsize=8
        )
    axes.grid(alpha=0.3)

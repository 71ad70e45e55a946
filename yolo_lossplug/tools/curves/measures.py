# SPDX-License-Identifier: AGPL-3.0-or-later
"""Losses and their gradients along curves: of a box that leaves its target in three ways, or of a probability.

The target is a square, of 64 x 64 pixels if not said otherwise, in an image of 640 x 640, on the pyramid level of
stride 8, as in training. The box leaves it by a shift along x, by a change of scale about the common centre, smaller
and larger, and by a change of aspect ratio at equal area about the common centre. A rotated box also turns about the
centre of its target. Losses with a state are shown as in the first step of a run, with all positions of a movement as
one batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from yolo_lossplug.registry import ROTATED, SOFTMAX
from yolo_lossplug.selection.loss import Loss
from yolo_lossplug.state import State

SIDE, STRIDE, IMGSZ = 64.0, 8.0, 640.0
"""Side of the target where none is given, cell and image, in pixels."""
MAX_TARGET = IMGSZ / 5
"""Largest side of a target: a box three widths away is still in the image."""
STEPS = 120
"""Positions per unit of IoU; 1/2, 1/3 and 1/4 are among them."""
MAX_SHIFT = 2.0
"""In widths of the box: it leaves the target at 1."""
MIN_CURVE_IOU = 0.1
"""IoU at which the changes of scale and of aspect ratio end."""
ASPECTS = (1, 2, 8)
"""Width over height of the rotated boxes that turn."""


@dataclass(frozen=True)
class Movement:
    """A box on its way from its target.

    Attributes:
        name: ``shift``, ``scale`` or ``aspect``.
        title: Title of the plot.
        positions: What changes (N,): the shift in widths, the factor of the sides, or width over height.
        boxes: The box at each position (N, 4), x1 y1 x2 y2 in pixels.
        iou: Its IoU with the target (N,).
        side: Side of the target in pixels.
    """

    name: str
    title: str
    positions: Tensor
    boxes: Tensor
    iou: Tensor
    side: float = SIDE


def target_box(side: float = SIDE) -> Tensor:
    """Return the target (4,), x1 y1 x2 y2 in pixels, float64; it is in the middle of the image."""
    low, high = (IMGSZ - side) / 2, (IMGSZ + side) / 2
    return torch.tensor([low, low, high, high], dtype=torch.float64)


def movement(name: str, side: float = SIDE) -> Movement:
    """Return one of the three movements; its positions are 1/120 of IoU apart, and 1/120 of a width without overlap.

    Args:
        name: ``shift``: along x, up to two widths, the last of them without overlap. ``scale``: concentric, of equal
            aspect ratio, from the smallest to the largest box with an IoU of 0.1. ``aspect``: concentric, of equal
            area, wider and wider down to an IoU of 0.1.
        side: Side of the target in pixels.
    """
    return {"shift": _shift, "scale": _scale, "aspect": _aspect}[name](side)


def movements(side: float = SIDE) -> list[Movement]:
    """Return all movements of a target with this side in pixels."""
    return [movement(name, side) for name in ("shift", "scale", "aspect")]


def measure_box(loss: Loss, boxes: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return a box loss (N,) of boxes and a target (4,), and its gradients (N, 4) by the coordinates, per pixel.

    Boxes are (N, 4), x1 y1 x2 y2 in pixels; rotated ones have an angle of 0. Where edges of both boxes coincide, the
    loss has a kink, and a gradient is the mean of those on both sides.
    """
    pred = (boxes / STRIDE).requires_grad_()
    stride, expanded = pred.new_full((len(pred), 1), STRIDE), (target / STRIDE).expand_as(pred)
    pair = (_unrotated(pred), _unrotated(expanded)) if loss.kind == ROTATED else (pred, expanded)
    values = _first_step(loss)(*pair, stride=stride, imgsz=pred.new_full((2,), IMGSZ))
    return values.detach(), torch.autograd.grad(values.sum(), pred)[0] / STRIDE


def measure_class(loss: Loss, probabilities: Tensor, target: float) -> tuple[Tensor, Tensor]:
    """Return a class loss (N,) of probabilities (N,) with one target, and its derivatives (N,) by the logit.

    A loss of classify has two classes.
    """
    logits = probabilities.logit().requires_grad_()
    if loss.kind == SOFTMAX:
        pair = torch.stack((logits, torch.zeros_like(logits)), 1)
        values = _first_step(loss)(pair, pair.new_tensor([target, 1 - target]).expand_as(pair)).sum(1)
    else:
        values = _first_step(loss)(logits, torch.full_like(logits, target))
    return values.detach(), torch.autograd.grad(values.sum(), logits)[0]


def curve(loss: Loss, way: Movement) -> tuple[Tensor, Tensor]:
    """Return a loss (N,), and the norm of its gradient in units of the loss per side of the target (N,)."""
    values, gradients = measure_box(loss, way.boxes, target_box(way.side))
    return values, gradients.norm(dim=1) * way.side


def angles() -> Tensor:
    """Return the angles (91,) by which rotated boxes turn, 0° to 90°, in radians, float64."""
    return torch.arange(91, dtype=torch.float64).deg2rad()


def measure_turn(loss: Loss, aspect: float, side: float = SIDE) -> tuple[Tensor, Tensor]:
    """Return a loss of rotated boxes (91,) at the angles of `angles`, and its derivatives (91,), per radian.

    The box turns about its target, of which `aspect` is width over height and `side` the root of the area in pixels.
    """
    sides = angles().new_tensor([side * aspect**0.5, side / aspect**0.5]) / STRIDE
    target = torch.cat((torch.full_like(sides, IMGSZ / 2 / STRIDE), sides, torch.zeros_like(sides[:1])))
    turns = angles().requires_grad_()
    pred = torch.cat((target[:4].expand(len(turns), 4), turns[:, None]), 1)
    stride, imgsz = pred.new_full((len(pred), 1), STRIDE), pred.new_full((2,), IMGSZ)
    values = _first_step(loss)(pred, target.expand_as(pred), stride=stride, imgsz=imgsz)
    return values.detach(), torch.autograd.grad(values.sum(), turns)[0]


def probabilities() -> Tensor:
    """Return the probabilities (99,) at which class losses are measured, float64."""
    return torch.arange(1, 100, dtype=torch.float64) / 100


def _shift(side: float) -> Movement:
    overlapping = torch.arange(STEPS, -1, -1, dtype=torch.float64) / STEPS
    disjoint = 1 + torch.arange(1, round((MAX_SHIFT - 1) * STEPS) + 1, dtype=torch.float64) / STEPS
    shift = torch.cat(((1 - overlapping) / (1 + overlapping), disjoint))
    offset = torch.stack((shift, torch.zeros_like(shift)), 1).repeat(1, 2) * side
    iou = torch.cat((overlapping, torch.zeros_like(disjoint)))
    return Movement("shift", "shift along x", shift, target_box(side) + offset, iou, side)


def _scale(side: float) -> Movement:
    iou = _concentric_iou()
    smaller, larger = iou.sqrt().flip(0), iou.rsqrt()[1:]
    factor = torch.cat((smaller, larger))
    boxes = _concentric(factor, factor, side)
    return Movement("scale", "scale about the centre", factor, boxes, torch.cat((iou.flip(0), iou[1:])), side)


def _aspect(side: float) -> Movement:
    iou = _concentric_iou()
    factor = (1 / iou + 1) / 2  # intersection 1/f, union 2 − 1/f
    boxes = _concentric(factor, 1 / factor, side)
    return Movement("aspect", "aspect at equal area", factor.square(), boxes, iou, side)


def _concentric_iou() -> Tensor:
    return torch.arange(STEPS, round(MIN_CURVE_IOU * STEPS) - 1, -1, dtype=torch.float64) / STEPS


def _concentric(width: Tensor, height: Tensor, side: float) -> Tensor:
    """Return boxes (N, 4) about the target's centre whose sides are multiples (N,) of the target's."""
    half = torch.stack((width, height), 1) * (side / 2)
    return IMGSZ / 2 + torch.cat((-half, half), 1)


def _unrotated(boxes: Tensor) -> Tensor:
    """Return boxes x1 y1 x2 y2 (N, 4) as x, y, w, h and an angle of 0 (N, 5)."""
    low, high = boxes[:, :2], boxes[:, 2:]
    return torch.cat(((low + high) / 2, high - low, torch.zeros_like(boxes[:, :1])), 1)


def _first_step(loss: Loss) -> Loss:
    """Return a loss with an empty state, if it has one."""
    return loss.within(State().scoped("curves"))

# SPDX-License-Identifier: AGPL-3.0-or-later
"""The floor of a gt's sides when an assigner chooses candidates: that of the host, which is measured, and ours.

Releases differ: none before 8.4, the first stride until it became the second, which `tal_min_side` sets.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any, Callable

import torch
import ultralytics
from torch import Tensor
from ultralytics.utils.ops import xywh2xyxy, xyxy2xywh

from yolo_lossplug.registry import ROTATED, LossPlugError
from yolo_lossplug.selection.select import Selection
from yolo_lossplug.ultralytics_hook.originals import RotatedTaskAlignedAssigner, TaskAlignedAssigner

CENTRE = 512.0
"""Centre of boxes that are measured, in points of a diagonal that are one pixel apart."""
MEASURED_BELOW = 1.5
"""Pixels below a side with which a rotated box has fewer of these points than with that side."""


def set_min_side(assigner: TaskAlignedAssigner, side: float) -> None:
    """Set the floor of a gt's side in pixels when candidates are chosen.

    Raises:
        LossPlugError: If this release has no such floor.
    """
    _refuse_min_side(side, isinstance(assigner, RotatedTaskAlignedAssigner))
    assigner.stride_val = side


def refuse_min_side(selection: Selection) -> None:
    """Raise an error if a floor of a gt's side is selected, and the assigner of this release has none."""
    if selection.tal_min_side is not None:
        _refuse_min_side(selection.tal_min_side, selection.box.kind == ROTATED)


def _refuse_min_side(side: float, is_rotated: bool) -> None:
    cls = RotatedTaskAlignedAssigner if is_rotated else TaskAlignedAssigner
    if not has_floor(cls.select_candidates_in_gts, is_rotated):
        raise LossPlugError(
            f"tal_min_side={side:g} cannot be used with ultralytics {ultralytics.__version__}: its {cls.__name__} has "
            f"no floor for the sides of an object. Remove it, or install a newer Ultralytics; 8.4.190 has one."
        )


@functools.lru_cache(maxsize=16)
def has_floor(select_candidates: Callable[..., Tensor], is_rotated: bool = False) -> bool:
    """Return whether a method that chooses candidates raises every side below `stride_val` to it; measured by a call.

    Releases that widen sides below the first stride to the second have no floor: a side between them counts as shorter.
    """
    settings = SimpleNamespace(stride=[8, 16, 32], stride_val=24.0)
    return _n_inside(select_candidates, settings, 20.0, is_rotated) == settings.stride_val


def floor_of(assigner: Any) -> tuple[float, float]:
    """Return the side below which an assigner widens a gt box, and the new side; measured by calling it."""
    if has_floor(type(assigner).select_candidates_in_gts):
        return assigner.stride_val, assigner.stride_val
    strides = tuple(float(stride) for stride in getattr(assigner, "stride", ()))
    return _floor_of(type(assigner).select_candidates_in_gts, strides, float(getattr(assigner, "stride_val", 0)))


@functools.lru_cache(maxsize=16)
def _floor_of(select_candidates: Callable[..., Tensor], strides: tuple[float, ...], size: float) -> tuple[float, float]:
    settings = SimpleNamespace(stride=list(strides), stride_val=size)
    counts = ((stride, float(_n_inside(select_candidates, settings, stride - 1))) for stride in strides[:2])
    return max((pair for pair in counts if pair[1] >= pair[0]), default=(0.0, 0.0))


def rotated_floor_of(assigner: Any) -> tuple[float, float]:
    """Return the side below which an assigner widens a rotated box, and the new side; measured by calling it."""

    def count(side: float) -> int:
        return _n_inside(type(assigner).select_candidates_in_gts, assigner, side, is_rotated=True)

    side = float(getattr(assigner, "stride_val", 0))
    if side > MEASURED_BELOW and count(side - MEASURED_BELOW) == count(side):
        return side, side
    for stride in tuple(float(stride) for stride in getattr(assigner, "stride", ()))[:1]:
        widened = count(stride - MEASURED_BELOW)
        if widened >= stride:
            return stride, float(widened)
    return 0.0, 0.0


def _n_inside(select_candidates: Callable[..., Tensor], assigner: Any, side: float, is_rotated: bool = False) -> int:
    """Return how many points a method of an assigner finds in a square; -1 if it has no floor, and takes no mask."""
    points = torch.arange(2 * CENTRE).unsqueeze(1).add(0.5).expand(-1, 2).contiguous()
    low, high = CENTRE - side / 2, CENTRE + side / 2
    box = [CENTRE, CENTRE, side, side, 0.0] if is_rotated else [low, low, high, high]
    try:
        return int(select_candidates(assigner, points, torch.tensor([[box]]), torch.ones(1, 1, 1)).sum())
    except (TypeError, AttributeError):
        return -1


def candidate_boxes(gt_bboxes: Tensor, mask_gt: Tensor, floor: tuple[float, float]) -> Tensor:
    """Return the boxes (b, n, 4) whose anchors are candidates of the gts, by the host's operations in their order."""
    threshold, size = floor
    if not threshold:
        return gt_bboxes
    boxes = xyxy2xywh(gt_bboxes)
    is_small = (boxes[..., 2:] < threshold) & mask_gt.bool()
    boxes[..., 2:] = boxes[..., 2:].masked_fill(is_small, size)
    return xywh2xyxy(boxes)

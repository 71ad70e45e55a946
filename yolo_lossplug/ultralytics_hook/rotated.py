# SPDX-License-Identifier: AGPL-3.0-or-later
"""Candidates of rotated boxes: the anchors near a box, tested by the host's own test."""

from __future__ import annotations

import functools
import inspect
from types import SimpleNamespace
from typing import Any, Callable, Optional

import torch
from torch import Tensor

from yolo_lossplug.sparse.assign import Inside
from yolo_lossplug.sparse.grid import bounds_of_rotated
from yolo_lossplug.ultralytics_hook.min_side import has_floor

SHAPES = ((-1, 2, 1, 1), (-1, 1, 1, 2))
"""Shapes of anchor centres with which the host's test compares each with a box of its own: it reads either coordinate
by itself, or in older releases both together."""


def rotated_candidates(assigner: Any, boxes: Tensor, points: Tensor) -> tuple[Tensor, Inside]:
    """Return bounds (G, 4), x1 y1 x2 y2, of the candidates of boxes (G, 5), and the test of anchors in there."""
    select, strides = type(assigner).select_candidates_in_gts, list(getattr(assigner, "stride", ()))[:2]
    is_floored, shape = has_floor(select, is_rotated=True), pair_shape(assigner)
    floor = float(assigner.stride_val if is_floored else max(strides, default=0.0))

    def inside(row: Tensor, anchor: Tensor) -> Tensor:
        return _is_inside(
            assigner.select_candidates_in_gts, points[anchor].view(shape or SHAPES[0]), boxes[row].unsqueeze(1)
        )

    return bounds_of_rotated(boxes, floor, is_floored), inside


def pair_shape(assigner: Any) -> Optional[tuple[int, ...]]:
    """Return the shape of anchor centres with which an assigner tests pairs; measured by calls, None if it has none."""
    is_static = isinstance(inspect.getattr_static(assigner, "select_candidates_in_gts"), staticmethod)
    return _pair_shape(type(assigner).select_candidates_in_gts, is_static)


@functools.lru_cache(maxsize=16)
def _pair_shape(select_candidates: Callable[..., Tensor], is_static: bool) -> Optional[tuple[int, ...]]:
    settings = SimpleNamespace(stride=[8, 16, 32], stride_val=16)
    boxes = torch.tensor([[20.0, 30, 24, 50, 0.4], [40.0, 20, 3, 60, -1.2], [31.0, 31, 40, 17, 1.57]])
    points = torch.cartesian_prod(torch.arange(8), torch.arange(8)).add(0.5).mul(8)
    row, point = (index.flatten() for index in torch.meshgrid(torch.arange(3), torch.arange(64), indexing="ij"))
    select = select_candidates if is_static else functools.partial(select_candidates, settings)
    for shape in SHAPES:
        try:
            expected = select(points, boxes.unsqueeze(0), torch.ones(1, 3, 1)).flatten()
            actual = _is_inside(select, points[point].view(shape), boxes[row].unsqueeze(1))
        except (TypeError, AttributeError, RuntimeError, IndexError):
            continue
        if torch.equal(actual, expected):
            return shape
    return None


def _is_inside(select_candidates: Callable[..., Tensor], points: Tensor, boxes: Tensor) -> Tensor:
    """Return which points lie in the box of each (P,)."""
    return select_candidates(points, boxes, boxes.new_ones(len(boxes), 1, 1)).flatten()

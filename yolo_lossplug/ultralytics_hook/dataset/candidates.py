# SPDX-License-Identifier: AGPL-3.0-or-later
"""How many anchors are candidates of objects, by level, from their boxes alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Callable

import numpy as np
import torch
from torch import Tensor
from ultralytics.utils import tal
from ultralytics.utils.ops import xywhr2xyxyxyxy

from yolo_lossplug.selection.select import Selection
from yolo_lossplug.sparse.grid import Level, points_of_levels, rectangles
from yolo_lossplug.sparse.pairs import enumerate_pairs, n_cells
from yolo_lossplug.ultralytics_hook.counts import overlaps
from yolo_lossplug.ultralytics_hook.criterion import set_assigner_options
from yolo_lossplug.ultralytics_hook.min_side import candidate_boxes, floor_of, rotated_floor_of

MAX_GTS, MAX_PAIRS = 100_000, 1_000_000
"""Gts, and pairs of rotated boxes and anchors, that are handled at once."""


def make_assigner(task: str, strides: Sequence[float], selection: Selection) -> Any:
    """Return the host's assigner as the criterion of a one-to-many head makes it, with our numbers."""
    kind = tal.RotatedTaskAlignedAssigner if task == "obb" else tal.TaskAlignedAssigner
    make = functools.partial(kind, topk=10, num_classes=1, alpha=0.5, beta=6.0)
    try:
        assigner = make(stride=[float(s) for s in strides])
    except TypeError:  # older releases do not take strides
        assigner = make()
    set_assigner_options(assigner, selection)
    return assigner


def levels_of(imgsz: int, strides: Sequence[float]) -> tuple[Level, ...]:
    """Return the levels of anchors of a square input."""
    sides = [int(imgsz // stride) for stride in strides]
    centres = [(torch.arange(side) + 0.5) * float(stride) for side, stride in zip(sides, strides)]
    offsets = accumulate((side * side for side in sides), initial=0)
    return tuple(Level(x, x, offset) for x, offset in zip(centres, offsets))


def points_of(imgsz: int, strides: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return centres (A, 2) in pixels, and levels (A,), of the anchors of a square input."""
    levels = levels_of(imgsz, strides)
    sides = [len(level.x) for level in levels]
    return points_of_levels(levels).numpy(), np.repeat(np.arange(len(sides)), np.square(sides))


def corners_of(boxes: np.ndarray) -> np.ndarray:
    """Return the corners (n, 4, 2), in turn, of boxes (n, 4) or rotated ones (n, 5)."""
    if boxes.shape[1] == 5:
        return xywhr2xyxyxyxy(torch.from_numpy(boxes)).numpy()
    x1, y1, x2, y2 = boxes.T
    return np.stack((x1, y1, x2, y1, x2, y2, x1, y2), 1).reshape(-1, 4, 2)


def overlap_of(boxes: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return a function that measures the overlap (P,) of boxes, given by two lists of indices (P,).

    Args:
        boxes: Boxes (G, 4), x1 y1 x2 y2, whose overlap is IoU, or (G, 5), x y w h and an angle, as of `overlaps`.
    """
    rows = torch.from_numpy(boxes)
    return lambda first, second: overlaps(rows[first], rows[second]).numpy()


def count_candidates(boxes: np.ndarray, imgsz: int, strides: Sequence[float], assigner: Any) -> np.ndarray:
    """Return the number of candidates of each object on each level (G, L), as an assigner has them.

    Boxes are (G, 4), x1 y1 x2 y2 in pixels of the input, or (G, 5), x y w h and an angle.
    """
    levels = levels_of(imgsz, strides)
    count = _rotated if boxes.shape[1] == 5 else _horizontal
    parts = [count(part, levels, assigner) for part in torch.from_numpy(boxes).split(MAX_GTS)]
    return torch.cat(parts).numpy() if parts else np.zeros((0, len(strides)), np.int64)


def candidate_pairs(
    boxes: np.ndarray, imgsz: int, strides: Sequence[float], assigner: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return all pairs of an object (P,) and an anchor (P,) that is its candidate, of a few objects."""
    levels, rows = levels_of(imgsz, strides), torch.from_numpy(boxes)
    if boxes.shape[1] == 5:
        found = [(row + first, anchor) for first, row, anchor in _rotated_pairs(rows, levels, assigner)]
        row, anchor = (torch.cat(part) for part in zip(*found)) if found else (torch.zeros(0).long(),) * 2
        return row.numpy(), anchor.numpy()
    every = enumerate_pairs(_cells(rows, levels, assigner), levels)
    return every.row.numpy(), every.anchor.numpy()


def _cells(boxes: Tensor, levels: tuple[Level, ...], assigner: Any) -> Tensor:
    """Return the cells (G, L, 4) of the candidates of horizontal boxes; none of boxes that the criterion masks."""
    mask = boxes.sum(1, keepdim=True) > 0
    widened = candidate_boxes(boxes[None], mask[None], floor_of(assigner))[0]
    return rectangles(widened, levels) * mask[..., None]


def _horizontal(boxes: Tensor, levels: tuple[Level, ...], assigner: Any) -> Tensor:
    cells = _cells(boxes, levels, assigner)
    return (cells[..., 2:] - cells[..., :2]).clamp(min=0).prod(-1)


def _rotated(boxes: Tensor, levels: tuple[Level, ...], assigner: Any) -> Tensor:
    total = torch.zeros(len(boxes), len(levels), dtype=torch.long)
    ends = torch.tensor([level.offset for level in levels[1:]])
    for first, row, anchor in _rotated_pairs(boxes, levels, assigner):
        level = torch.bucketize(anchor, ends, right=True)
        total.view(-1).index_add_(0, (row + first) * len(levels) + level, torch.ones_like(row))
    return total


def _rotated_pairs(boxes: Tensor, levels: tuple[Level, ...], assigner: Any) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield chunks of pairs: the first gt of the chunk, gts from there on (P,), and anchors (P,)."""
    # The host's criterion drops rotated boxes with a side below 2 pixels.
    mask = (boxes.sum(1, keepdim=True) > 0) & (boxes[:, 2:4] >= 2.0).all(1, keepdim=True)
    threshold, side = rotated_floor_of(assigner)
    widened = boxes.clone()
    widened[:, 2:4] = torch.where((boxes[:, 2:4] < threshold) & mask, torch.tensor(side), boxes[:, 2:4])
    corners = xywhr2xyxyxyxy(widened)
    cells = rectangles(torch.cat((corners.amin(1) - 1, corners.amax(1) + 1), 1), levels) * mask[..., None]
    points = points_of_levels(levels)
    for rows in _chunks(n_cells(cells)):
        every = enumerate_pairs(cells[rows], levels)
        inside = _is_inside(points[every.anchor], corners[rows][every.row])
        yield rows.start, every.row[inside], every.anchor[inside]


def _is_inside(points: Tensor, corners: Tensor) -> Tensor:
    """Return whether points (P, 2) are in rectangles (P, 4, 2), edges included, by the host's operations."""
    first, second, last = corners[:, 0], corners[:, 1], corners[:, 3]
    along, across, offset = second - first, last - first, points - first
    ahead, aside = (offset * along).sum(-1), (offset * across).sum(-1)
    return (ahead >= 0) & (ahead <= (along * along).sum(-1)) & (aside >= 0) & (aside <= (across * across).sum(-1))


def _chunks(count: Tensor) -> Iterator[slice]:
    """Yield slices of gts whose pairs do not exceed the limit together, or single gts."""
    ends = count.cumsum(0)
    start = 0
    while start < len(count):
        limit = (int(ends[start - 1]) if start else 0) + MAX_PAIRS
        end = max(start + 1, int(torch.searchsorted(ends, limit, right=True)))
        yield slice(start, end)
        start = end

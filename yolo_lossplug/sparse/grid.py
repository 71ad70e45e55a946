# SPDX-License-Identifier: AGPL-3.0-or-later
"""Levels of a feature pyramid, and the cells whose centre lies inside boxes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Optional

import torch
from torch import Tensor

MAX_LEVELS = 16
"""Maximum number of grids that points may form to count as a pyramid."""


class Level(NamedTuple):
    """A grid of anchors, row by row.

    Attributes:
        x: Column centres (w,), ascending, in pixels.
        y: Row centres (h,), ascending, in pixels.
        offset: Index of its first anchor.
    """

    x: Tensor
    y: Tensor
    offset: int


def levels_of_shapes(points: Tensor, shapes: Iterable[tuple[int, int]]) -> tuple[Level, ...]:
    """Return the levels of anchors from their heights and widths.

    Args:
        points: Anchor centres (A, 2) in pixels, level after level, row after row.
        shapes: Height and width of each level in cells.
    """
    levels, offset = [], 0
    for height, width in shapes:
        end = offset + height * width
        levels.append(
            Level(points[offset : offset + width, 0].contiguous(), points[offset:end:width, 1].contiguous(), offset)
        )
        offset = end
    return tuple(levels)


def shapes_of_points(points: Tensor) -> Optional[tuple[tuple[int, int], ...]]:
    """Recover the height and width of each level from anchor centres (A, 2), None if they form no grids."""
    xs, ys = points.detach().cpu().double().unbind(-1)
    if len(points) == 0:
        return None
    starts = torch.cat((torch.ones(1, dtype=torch.bool), (xs.diff() <= 0) | (ys.diff() != 0))).nonzero().squeeze(1)
    widths = torch.cat((starts, torch.tensor([len(points)]))).diff()
    lefts, tops = xs[starts], ys[starts]
    is_new = (widths.diff() != 0) | (lefts.diff() != 0) | (tops.diff() <= 0)
    firsts = torch.cat((torch.ones(1, dtype=torch.bool), is_new)).nonzero().squeeze(1)
    if len(firsts) > MAX_LEVELS:
        return None
    heights = torch.cat((firsts, torch.tensor([len(starts)]))).diff()
    return tuple(zip(heights.tolist(), widths[firsts].tolist()))


def points_of_levels(levels: tuple[Level, ...]) -> Tensor:
    """Return the anchor centres (A, 2) of the levels."""
    return torch.cat([torch.cartesian_prod(level.y, level.x).flip(-1) for level in levels])


def rectangles(boxes: Tensor, levels: tuple[Level, ...]) -> Tensor:
    """Return the cells of each level whose centre lies inside boxes, edges excluded.

    Comparing a centre with an edge is equivalent to the dense form's comparison of their difference with 1e-9: two
    unequal float32 numbers, one of which is at least ½, differ by more than that.

    Args:
        boxes: Boxes (G, 4), x1 y1 x2 y2 in pixels. A box with a NaN has no cells.
        levels: L levels.

    Returns:
        First column and row, last column and row plus 1 (G, L, 4), int64.
    """
    left, top, right, bottom = (side.contiguous() for side in boxes.unbind(-1))
    is_box = (boxes == boxes).all(-1)
    cells = []
    for level in levels:
        first = _rank(level.x, left, right=True), _rank(level.y, top, right=True)
        last = _rank(level.x, right), _rank(level.y, bottom)
        cells.append(torch.stack((*first, *last), -1))
    return torch.stack(cells, 1) * is_box[:, None, None]


def bounds_of_rotated(boxes: Tensor, floor: float, is_floored: bool) -> Tensor:
    """Return boxes (G, 4), x1 y1 x2 y2, that hold all anchors that a rounded test may find in rotated ones.

    The test compares the products of an anchor's offset from a corner and two sides with 0 and the squares of the
    sides. Sides are differences of rounded corners, so that its error grows with the coordinates, and with the ratio of
    the sides; where a side vanishes, the test holds beyond the other's ends, and the bounds are infinite.

    Args:
        boxes: Boxes (G, 5), centre, width, height in pixels, angle in radians.
        floor: No side is widened beyond it, in pixels.
        is_floored: Whether every shorter side is widened to it.
    """
    centre, sides, angle = boxes[:, :2], boxes[:, 2:4].abs(), boxes[:, 4]
    cos, sin = angle.cos().abs(), angle.sin().abs()
    width, height = sides.clamp(min=floor).unbind(-1)
    sides = sides.clamp(min=floor) if is_floored else sides
    half = torch.stack((width * cos + height * sin, width * sin + height * cos), -1) / 2
    scale = centre.abs().sum(-1) + sides.sum(-1)
    slack = 1e-3 + 1e-6 * scale * (1 + sides.amax(-1) / sides.amin(-1))
    slack = torch.where(sides.amin(-1) < 1e-2, torch.inf, slack).unsqueeze(-1)
    return torch.cat((centre - half - slack, centre + half + slack), -1)


def _rank(centres: Tensor, edges: Tensor, right: bool = False) -> Tensor:
    """Return the number of centres below edges (G,), or not above them: `torch.searchsorted`.

    Centres are equidistant, so that the rank can be computed, which with a check is faster than a search on a CPU. If
    the check fails, because of rounding or of edges that are NaN or infinite, it falls back to the search.
    """
    if edges.is_cuda or len(centres) < 2 or not len(edges):
        return torch.searchsorted(centres, edges, right=right)
    steps = (edges - centres[0]) / ((centres[-1] - centres[0]) / (len(centres) - 1))
    rank = (steps.floor() + 1 if right else steps.ceil()).clamp(0, len(centres)).nan_to_num(0).long()
    bounds = torch.nn.functional.pad(centres, (1, 1), value=torch.inf)
    bounds[0] = -torch.inf
    low, high = bounds[rank], bounds[rank + 1]
    is_right = (low <= edges) & (edges < high) if right else (low < edges) & (edges <= high)
    return rank if is_right.all() else torch.searchsorted(centres, edges, right=right)

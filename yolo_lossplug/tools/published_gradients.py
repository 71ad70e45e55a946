# SPDX-License-Identifier: AGPL-3.0-or-later
"""The gradients behind the published figure of Zheng et al., Distance-IoU Loss, AAAI 2020, section 3.

The authors' program takes steps along gradients that are not those of the formulas. They are written here from what it
does, in our own notation, so that the published order of the losses can be repeated and explained:

1. By w and h the edges' derivatives are subtracted without the factor 1/2, which doubles those of the IoU.
2. GIoU's intersection is a product of two extents also where they are negative, that is, for disjoint boxes.
3. By x and y the derivative of c² in ρ²/c² has the other sign: boxes are pulled faster than the formula does.
4. That derivative is taken by one side and used for both sides of the enclosing box, and is −1 by a side that encloses.
5. By w and h that of CIoU's v lacks the factor 1/(w² + h²), which the paper says.

All functions take boxes x, y, w, h (4, N) and their targets (4, N), and return gradients (4, N).
"""

from __future__ import annotations

import math
from typing import Callable, NamedTuple

import torch
from torch import Tensor


class Extents(NamedTuple):
    """Both axes (2, N) of a pair of boxes: intersection, enclosing box, and the edges that bound these.

    Attributes:
        shared: Extent of the intersection, negative for disjoint boxes.
        hull: Extent of the enclosing box.
        inner: Whether the lower and the upper edge (2, 2, N) of the predicted box bound the intersection.
        outer: Whether they bound the enclosing box.
    """

    shared: Tensor
    hull: Tensor
    inner: Tensor
    outer: Tensor


def iou(boxes: Tensor, targets: Tensor) -> Tensor:
    """Gradient of 1 − IoU, with 1."""
    pair = _extents(boxes, targets)
    union, overlap, (by_overlap, by_union) = _union(boxes, targets, pair)
    by_edges = (union * by_overlap - overlap * by_union) / union**2
    return -_by_centre_and_size(torch.where((pair.shared > 0).all(0), by_edges, 0.0))


def giou(boxes: Tensor, targets: Tensor) -> Tensor:
    """Gradient of 1 − IoU + (C − U)/C, with 1 and 2."""
    pair = _extents(boxes, targets)
    union, _, (_, by_union) = _union(boxes, targets, pair)
    area = pair.hull.prod(0)
    by_area = _signed(pair.outer) * pair.hull.flip(0)
    return iou(boxes, targets) - _by_centre_and_size((area * by_union - union * by_area) / area**2)


def diou(boxes: Tensor, targets: Tensor) -> Tensor:
    """Gradient of 1 − IoU + ρ²/c², with 1, 3 and 4."""
    pair = _extents(boxes, targets)
    diagonal = pair.hull.pow(2).sum(0)
    away = boxes[:2] - targets[:2]
    distance = away.pow(2).sum(0)
    lower, upper = pair.outer.to(boxes.dtype)
    by_side = torch.where(pair.outer.all(0), -1.0, (lower + upper) / 2)
    both = 2 * pair.hull.sum(0)
    by_centre = (2 * away * diagonal + both * (upper - lower) * distance) / diagonal**2
    by_size = -both * by_side * distance / diagonal**2
    return iou(boxes, targets) + torch.cat((by_centre, by_size))


def ciou(boxes: Tensor, targets: Tensor) -> Tensor:
    """Gradient of 1 − IoU + ρ²/c² + sg(α)·v, with 1, 3, 4 and 5."""
    pair = _extents(boxes, targets)
    union, overlap, _ = _union(boxes, targets, pair)
    ratio = torch.where((pair.shared > 0).all(0), overlap / union, 0.0)
    angle = torch.atan(targets[2] / targets[3]) - torch.atan(boxes[2] / boxes[3])
    v = 4 / math.pi**2 * angle**2
    factor = v / (1 - ratio + v + 1e-7) * 8 / math.pi**2 * angle
    zero = torch.zeros_like(factor)
    return diou(boxes, targets) + torch.stack((zero, zero, -factor * boxes[3], factor * boxes[2]))


GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {each.__name__: each for each in (iou, giou, diou, ciou)}
"""By the name of the loss; the paper has no others."""


def _extents(boxes: Tensor, targets: Tensor) -> Extents:
    lower, upper = boxes[:2] - boxes[2:] / 2, boxes[:2] + boxes[2:] / 2
    other_lower, other_upper = targets[:2] - targets[2:] / 2, targets[:2] + targets[2:] / 2
    return Extents(
        torch.minimum(upper, other_upper) - torch.maximum(lower, other_lower),
        torch.maximum(upper, other_upper) - torch.minimum(lower, other_lower),
        torch.stack((lower > other_lower, upper < other_upper)),
        torch.stack((lower < other_lower, upper > other_upper)),
    )


def _union(boxes: Tensor, targets: Tensor, pair: Extents) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Return union (N,), intersection (N,), and of both, intersection first, the derivatives by edges (2, 2, N)."""
    overlap = pair.shared.prod(0)
    by_overlap = _signed(pair.inner) * pair.shared.flip(0)
    by_area = _signed(torch.ones_like(pair.inner)) * boxes[2:].flip(0)
    union = boxes[2:].prod(0) + targets[2:].prod(0) - overlap
    return union, overlap, (by_overlap, by_area - by_overlap)


def _signed(edges: Tensor) -> Tensor:
    """Return the derivatives of an extent by the lower and the upper edges that bound it, (2, 2, N)."""
    sign = torch.tensor([-1.0, 1.0], device=edges.device).view(2, 1, 1)
    return edges * sign


def _by_centre_and_size(by_edges: Tensor) -> Tensor:
    """Return derivatives by x, y, w, h (4, N) of those by lower and upper edges (2, 2, N), with 1."""
    lower, upper = by_edges
    return torch.cat((lower + upper, upper - lower))

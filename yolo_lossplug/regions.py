# SPDX-License-Identifier: AGPL-3.0-or-later
"""Regions: boxes inside which some classes are neither object nor background.

A region is a quadrilateral with a kind; a table says which classes the regions of a kind silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor

from yolo_lossplug.boxes import as_float

KEY = "lossplug"
"""Key of a batch that holds the regions of its images."""
MIN_SHARE = 0.5
"""Share of the area of a detection, or of a query's box, above which it lies in a region."""
SAMPLES = 16
"""Points along a side of a rotated box."""
BOX_DIMENSIONS = 2
"""Dimensions of a tensor of upright boxes."""


class ImageRegions(NamedTuple):
    """Regions of one image.

    Attributes:
        corners: Corners (R, 4, 2), x y, as shares of width and height of the image, in order; float32.
        kind: Kind (R,) of each, int64.
        table: Which classes each kind silences (kinds, classes), bool.
    """

    corners: np.ndarray
    kind: np.ndarray
    table: np.ndarray


def upright_corners(boxes: np.ndarray) -> np.ndarray:
    """Return the corners (R, 4, 2) of boxes (R, 4), x1 y1 x2 y2."""
    return boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)


def is_upright(corners: Tensor) -> bool:
    """Return whether corners (R, 4, 2) are all in the order of `upright_corners`; corners on a CPU."""
    return bool(
        (corners[:, 0, 1] == corners[:, 1, 1]).all()
        and (corners[:, 1, 0] == corners[:, 2, 0]).all()
        and (corners[:, 2, 1] == corners[:, 3, 1]).all()
        and (corners[:, 3, 0] == corners[:, 0, 0]).all()
    )


def inside(corners: Tensor, x: Tensor, y: Tensor, is_box: bool) -> Tensor:
    """Return which cells of a grid have their centre in regions, edges included.

    Args:
        corners: Corners (R, 4, 2).
        x: Centres of the columns (w,).
        y: Centres of the rows (h,).
        is_box: Whether all are upright boxes.

    Returns:
        (R, h, w), bool.
    """
    if is_box:
        (left, top), (right, bottom) = corners[:, 0].unbind(-1), corners[:, 2].unbind(-1)
        in_x = (x >= left[:, None]) & (x <= right[:, None])
        in_y = (y >= top[:, None]) & (y <= bottom[:, None])
        return in_y.unsqueeze(-1) & in_x.unsqueeze(-2)
    start, side = corners, corners.roll(-1, 1) - corners
    dx, dy = x - start[..., :1], y - start[..., 1:]  # (R, 4, w), (R, 4, h)
    cross = side[..., :1].unsqueeze(-2) * dy.unsqueeze(-1) - side[..., 1:].unsqueeze(-2) * dx.unsqueeze(-2)
    return (cross >= 0).all(1) | (cross <= 0).all(1)


def silenced_cells(
    images: Sequence[ImageRegions], size: tuple[int, int], shapes: Iterable[tuple[int, int]], device: torch.device
) -> Tensor:
    """Return which classes are silenced at which anchors of a batch.

    Args:
        images: Regions of b images.
        size: Height and width of the images in pixels.
        shapes: Height and width of each level in cells.
        device: Where the result is needed.

    Returns:
        (b, classes, A), bool.
    """
    table, counts = images[0].table, [len(one.kind) for one in images]
    n_kinds, n_classes = table.shape
    corners = torch.from_numpy(np.concatenate([one.corners for one in images]))
    kind = torch.from_numpy(np.concatenate([one.kind for one in images]))
    row = torch.arange(len(images)).repeat_interleave(torch.tensor(counts)) * n_kinds + kind
    is_box = is_upright(corners)
    corners, row = corners.to(device) * torch.tensor([size[1], size[0]], device=device), row.to(device)
    levels = []
    for height, width in shapes:
        x, y = (
            (torch.arange(n, device=device) + 0.5) * (side / n) for n, side in ((width, size[1]), (height, size[0]))
        )
        hits = torch.zeros(len(images) * n_kinds, height * width, dtype=torch.int32, device=device)
        hits.index_add_(0, row, inside(corners, x, y, is_box).flatten(1).int())
        levels.append(hits > 0)
    covered = torch.cat(levels, 1).view(len(images), n_kinds, -1)
    silenced = torch.zeros(len(images), n_classes, covered.shape[2], dtype=torch.bool, device=device)
    for i, classes in enumerate(table):
        if classes.all():
            silenced |= covered[:, i : i + 1]
        else:
            silenced[:, torch.from_numpy(classes.nonzero()[0]).to(device)] |= covered[:, i : i + 1]
    return silenced


def share_inside(boxes: Tensor, corners: Tensor) -> Tensor:
    """Return the share of the area of boxes that lies in upright regions.

    Args:
        boxes: Boxes (N, 4), x1 y1 x2 y2.
        corners: Corners (R, 4, 2) in the same units.

    Returns:
        (N, R), 0 for a box without area.
    """
    boxes, corners = as_float(boxes), as_float(corners)
    low = torch.maximum(boxes[:, None, :2], corners[:, 0])
    high = torch.minimum(boxes[:, None, 2:], corners[:, 2])
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1, keepdim=True)
    return (high - low).clamp(min=0).prod(-1) / area.clamp(min=torch.finfo(area.dtype).tiny)


def rotated_share_inside(boxes: Tensor, corners: Tensor) -> Tensor:
    """Return the same of rotated boxes with corners (N, 4, 2), and of rotated regions, by `SAMPLES`² points of each."""
    along = (torch.arange(SAMPLES, device=boxes.device) + 0.5) / SAMPLES
    u, v = (axis.flatten()[:, None] for axis in torch.meshgrid(along, along, indexing="ij"))
    first, second = boxes[:, None, 1] - boxes[:, None, 0], boxes[:, None, 3] - boxes[:, None, 0]
    points = boxes[:, None, 0] + u * first + v * second
    side = corners.roll(-1, 1) - corners
    apart = points[:, :, None, None] - corners  # (N, points, R, 4, 2)
    cross = side[..., 0] * apart[..., 1] - side[..., 1] * apart[..., 0]
    return ((cross >= 0).all(-1) | (cross <= 0).all(-1)).float().mean(1)


def lies_in_region(
    boxes: Tensor, regions: ImageRegions, size: tuple[float, float], shown: Optional[Sequence[float]] = None
) -> Tensor:
    """Return whether more than half of the area of boxes lies in a region that silences a class (N, classes), bool.

    Arguments are those of `share_by_class`.
    """
    return share_by_class(boxes, regions, size, shown) > MIN_SHARE


def share_by_class(
    boxes: Tensor, regions: ImageRegions, size: tuple[float, float], shown: Optional[Sequence[float]] = None
) -> Tensor:
    """Return the largest share of the area of boxes, as far as it is in the image, in a region that silences a class.

    Args:
        boxes: Boxes (N, 4), x1 y1 x2 y2 in the units of `size`, or corners (N, 4, 2) of rotated ones.
        regions: Regions of their image.
        size: Height and width of the image.
        shown: Left, top, right and bottom of what is no padding; None for no padding.

    Returns:
        (N, classes), in [0, 1].
    """
    corners = torch.from_numpy(regions.corners)
    is_box = boxes.ndim == BOX_DIMENSIONS and is_upright(corners)
    if boxes.ndim == BOX_DIMENSIONS and not is_box:
        boxes = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    limit = boxes.new_tensor([size[1], size[0]])
    low, high = boxes.new_tensor((0, 0, size[1], size[0]) if shown is None else shown).split(2)
    boxes = torch.minimum(torch.maximum(boxes, low.repeat(2)), high.repeat(2)) if is_box else boxes.clamp(low, high)
    shares = (share_inside if is_box else rotated_share_inside)(boxes, corners.to(boxes) * limit)
    table = torch.from_numpy(regions.table[regions.kind]).to(shares)
    none = shares.new_zeros(len(boxes), 1, table.shape[1])  # of an image without regions
    return torch.cat((none, shares.unsqueeze(-1) * table), 1).amax(1)

# SPDX-License-Identifier: AGPL-3.0-or-later
"""The gts of a batch as rows, with their candidates and the metric of these.

The candidates of a gt are the cells in one rectangle per level, so that they are enumerated without a list.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from yolo_lossplug.kernels.box_maths import pair_overlap
from yolo_lossplug.kernels.launching import launch
from yolo_lossplug.kernels.rounding import MAX_INT32, exact_power, rounded, sigmoid

N_HEADER = tl.constexpr(2)
"""Columns of `GtRows.info` before the rectangles: image and class."""


class KernelAnchors(NamedTuple):
    """Anchors of an image, in the layout that the kernels read.

    Attributes:
        centres: Centres (A, 2) in pixels, float32.
        points: Centres (A, 2) in cells, float32.
        strides: Pixels per cell (A,), float32.
        levels: First anchor, height and width of each level in cells (L, 3), int32.
        scale: Width and height of the network input in pixels (2,), float32.
    """

    centres: Tensor
    points: Tensor
    strides: Tensor
    levels: Tensor
    scale: Tensor


class GtRows(NamedTuple):
    """The gts of a batch, one per row.

    Attributes:
        info: Image, class, and for each level first column and row, number of columns and rows (N, 2 + 4·L), int32.
        boxes: Boxes (N, 4), x1 y1 x2 y2 in pixels, float32.
        first: N − first row (b,) of each image, 0 for an image without rows, int32.
    """

    info: Tensor
    boxes: Tensor
    first: Tensor


def describe_gts(
    image: Tensor, label: Tensor, boxes: Tensor, shape: tuple[int, int], anchors: KernelAnchors,
    floor: tuple[float, float],
) -> GtRows:  # fmt: skip
    """Return the rows of a batch: image and class of each gt (N,), boxes (N, 4) as the batch has them.

    `shape` is the number of images, and of classes; `floor` the side below which a box is widened for the search, and
    the side it gets, zeros for never.
    """
    n, n_levels, device = len(image), len(anchors.levels), boxes.device
    info = torch.empty(n, N_HEADER.value + 4 * n_levels, dtype=torch.int32, device=device)
    gts = GtRows(info, torch.empty(n, 4, device=device), torch.zeros(shape[0], dtype=torch.int32, device=device))
    if n:
        sources = (image, label, boxes, anchors.centres, anchors.levels, anchors.scale)
        constants = {"LEVELS": n_levels, "WIDEN": floor[0] > 0, "BLOCK": 128}
        launch(_describe, (n,), (*sources, *gts, n, *shape, *floor), constants, num_warps=1)
    return gts


def aligned(n: int) -> int:
    """Return the next number of elements after which 16 bytes of elements of four begin."""
    return -(-n // 4) * 4


@triton.jit(do_not_specialize=["n", "n_images", "n_classes"])
def _describe(
    image_ptr, label_ptr, box_ptr, centre_ptr, level_ptr, scale_ptr, info_ptr, out_ptr, first_ptr, n, n_images,
    n_classes, threshold, size, LEVELS: tl.constexpr, WIDEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    image, label = tl.load(image_ptr + row).to(tl.int32), tl.load(label_ptr + row).to(tl.int32)
    is_row = (image >= 0) & (image < n_images)
    width, height = tl.load(scale_ptr), tl.load(scale_ptr + 1)
    # The operations of Ultralytics that scale boxes and convert (centre, size) to corners.
    cx, cy = tl.load(box_ptr + row * 4).to(tl.float32) * width, tl.load(box_ptr + row * 4 + 1).to(tl.float32) * height
    w = tl.load(box_ptr + row * 4 + 2).to(tl.float32) * width * 0.5
    h = tl.load(box_ptr + row * 4 + 3).to(tl.float32) * height * 0.5
    x1, y1, x2, y2 = cx - w, cy - h, cx + w, cy + h
    tl.store(out_ptr + row * 4, x1)
    tl.store(out_ptr + row * 4 + 1, y1)
    tl.store(out_ptr + row * 4 + 2, x2)
    tl.store(out_ptr + row * 4 + 3, y2)
    is_gt = is_row & (x1 + y1 + x2 + y2 > 0)
    if WIDEN:  # the box whose inside has the candidates
        cx, cy, w, h = (x1 + x2) * 0.5, (y1 + y2) * 0.5, x2 - x1, y2 - y1
        w = tl.where((w < threshold) & is_gt, size, w) * 0.5
        h = tl.where((h < threshold) & is_gt, size, h) * 0.5
        x1, y1, x2, y2 = cx - w, cy - h, cx + w, cy + h
    info = info_ptr + row * (N_HEADER + 4 * LEVELS)
    tl.store(info, tl.where(is_row, image, 0))
    tl.store(info + 1, tl.minimum(tl.maximum(label, 0), n_classes - 1))  # an invalid class must not read out of bounds
    for level in tl.static_range(LEVELS):
        offset = tl.load(level_ptr + level * 3)
        rows, columns = tl.load(level_ptr + level * 3 + 1), tl.load(level_ptr + level * 3 + 2)
        left, across = _inside(centre_ptr + offset * 2, 2, columns, x1, x2, BLOCK)
        upper, down = _inside(centre_ptr + offset * 2 + 1, 2 * columns, rows, y1, y2, BLOCK)
        is_any = is_gt & (across > 0) & (down > 0)
        tl.store(info + N_HEADER + level * 4, left)
        tl.store(info + N_HEADER + level * 4 + 1, upper)
        tl.store(info + N_HEADER + level * 4 + 2, tl.where(is_any, across, 0))
        tl.store(info + N_HEADER + level * 4 + 3, tl.where(is_any, down, 0))
    tl.atomic_max(first_ptr + tl.where(is_row, image, 0), n - row, mask=is_row, sem="relaxed")


@triton.jit
def _inside(centre_ptr, step, length, low, high, BLOCK: tl.constexpr):
    """First and number of the centres of a line between two edges, by the test of Ultralytics."""
    first, count = MAX_INT32, 0
    for start in range(0, length, BLOCK):
        index = start + tl.arange(0, BLOCK)
        is_valid = index < length
        centre = tl.load(centre_ptr + index * step, mask=is_valid, other=0.0)
        is_inside = is_valid & (centre - low > 1e-9) & (high - centre > 1e-9)
        count += tl.sum(is_inside.to(tl.int32), 0)
        first = tl.minimum(first, tl.min(tl.where(is_inside, index, MAX_INT32), 0))
    return first, count


@triton.jit
def n_candidates(info, LEVELS: tl.constexpr):
    """Number of candidates of a row."""
    count = 0
    for level in tl.static_range(LEVELS):
        count += tl.load(info + N_HEADER + level * 4 + 2) * tl.load(info + N_HEADER + level * 4 + 3)
    return count


@triton.jit
def anchor_of(index, info, level_ptr, LEVELS: tl.constexpr):
    """Anchors of a row's candidates by index; candidates are ordered by anchor."""
    anchor, rest = index, index
    for level in tl.static_range(LEVELS):
        left, upper = tl.load(info + N_HEADER + level * 4), tl.load(info + N_HEADER + level * 4 + 1)
        across, down = tl.load(info + N_HEADER + level * 4 + 2), tl.load(info + N_HEADER + level * 4 + 3)
        offset, columns = tl.load(level_ptr + level * 3), tl.load(level_ptr + level * 3 + 2)
        line = rest // tl.maximum(across, 1)
        candidate = offset + (upper + line) * columns + left + rest - line * across
        anchor = tl.where((rest >= 0) & (rest < across * down), candidate, anchor)
        rest -= across * down
    return anchor


@triton.jit
def is_candidate(anchor, info, level_ptr, mask, LEVELS: tl.constexpr):
    """Whether anchors are candidates of a row, or elementwise of one row per anchor."""
    is_candidate = anchor < 0
    for level in tl.static_range(LEVELS):
        left = tl.load(info + N_HEADER + level * 4, mask=mask, other=0)
        upper = tl.load(info + N_HEADER + level * 4 + 1, mask=mask, other=0)
        across = tl.load(info + N_HEADER + level * 4 + 2, mask=mask, other=0)
        down = tl.load(info + N_HEADER + level * 4 + 3, mask=mask, other=0)
        offset = tl.load(level_ptr + level * 3)
        rows, columns = tl.load(level_ptr + level * 3 + 1), tl.load(level_ptr + level * 3 + 2)
        index = anchor - offset
        y = index // columns
        x = index - y * columns
        is_in_level = (index >= 0) & (index < rows * columns)
        is_candidate = is_candidate | (
            is_in_level & (x >= left) & (x < left + across) & (y >= upper) & (y < upper + down)
        )
    return is_candidate & mask


@triton.jit
def overlap_at(
    x1, y1, x2, y2, image, anchor, mask, stride_ptr, score_ptr, grid_ptr, n_anchors,
    OVERLAP: tl.constexpr, THETA: tl.constexpr,
):  # fmt: skip
    """Overlaps of gts, one for all anchors or one per anchor, with the predicted boxes."""
    stride = tl.load(stride_ptr + anchor, mask=mask, other=1.0)
    box = grid_ptr + (image.to(tl.int64) * n_anchors + anchor) * 4
    # Ultralytics multiplies in the dtype of the head's outputs.
    X1 = rounded(tl.load(box, mask=mask, other=0.0) * stride, score_ptr)
    Y1 = rounded(tl.load(box + 1, mask=mask, other=0.0) * stride, score_ptr)
    X2 = rounded(tl.load(box + 2, mask=mask, other=0.0) * stride, score_ptr)
    Y2 = rounded(tl.load(box + 3, mask=mask, other=0.0) * stride, score_ptr)
    return pair_overlap(OVERLAP, THETA, x1, y1, x2, y2, X1, Y1, X2, Y2, grid_ptr)


@triton.jit
def metric_at(
    image, label, anchor, mask, overlaps, score_ptr, n_classes, n_anchors,
    ALPHA: tl.constexpr, BETA: tl.constexpr, ROUND_POWER: tl.constexpr,
):  # fmt: skip
    """Alignment metrics, score^α · overlap^β, from overlaps."""
    index = (image.to(tl.int64) * n_classes + label) * n_anchors + anchor
    logit = tl.load(score_ptr + index, mask=mask, other=0.0).to(tl.float32)
    score = exact_power(rounded(sigmoid(logit), score_ptr), ALPHA)
    if ROUND_POWER:
        score = rounded(score, score_ptr)
    return score * exact_power(overlaps, BETA)

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Decoding of the predicted boxes."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from yolo_lossplug.kernels.gt_rows import KernelAnchors
from yolo_lossplug.kernels.rounding import EXACT, exp, rounded

ANCHORS_PER_PROGRAM = 64
NO_LOSS = -1
"""Kind of a box loss that is evaluated outside the kernels."""


class BoxTermConfig(NamedTuple):
    """Settings of the box and distance terms.

    Attributes:
        kind: Kind of box loss, one of `BoxKind`, or `NO_LOSS`.
        theta: Exponent of the shape cost of SIoU.
        n_bins: Bins of the distribution of distances; with 1 the head predicts distances, and the second term is L1.
        is_rounded: Whether Ultralytics rounds probabilities and distances to the dtype of the outputs when it decodes.
    """

    kind: int
    theta: float
    n_bins: int
    is_rounded: bool = False


def decode(outputs: Tensor, anchors: KernelAnchors, config: BoxTermConfig) -> Tensor:
    """Return the predicted boxes (b·A, 4), x1 y1 x2 y2 in cells, float32, of outputs (b, 4·R, A), contiguous."""
    n_images, _, n_anchors = outputs.shape
    grid = torch.empty(n_images * n_anchors, 4, device=outputs.device)
    _decode[(triton.cdiv(n_anchors, ANCHORS_PER_PROGRAM), n_images)](
        outputs, anchors.points, grid, n_anchors, ROUND=config.is_rounded, **launch_sizes(config), **EXACT
    )
    return grid


def launch_sizes(config: BoxTermConfig) -> dict[str, object]:
    """Return the constants that launches of all kernels share."""
    return {"BINS": config.n_bins, "WIDTH": triton.next_power_of_2(config.n_bins), "BLOCK": ANCHORS_PER_PROGRAM}


@triton.jit
def logits_of(output_ptr, image, side, anchor, mask, n_anchors, BINS: tl.constexpr, WIDTH: tl.constexpr):
    """Logits (WIDTH, anchors) of the bins of a side."""
    bins = tl.arange(0, WIDTH)
    begin = output_ptr + (image.to(tl.int64) * 4 + side) * BINS * n_anchors
    is_bin = (bins < BINS)[:, None]
    x = tl.load(begin + bins[:, None] * n_anchors + anchor[None, :], mask=is_bin & mask[None, :], other=0.0)
    return tl.where(is_bin, x.to(tl.float32), float("-inf"))


@triton.jit
def _butterfly(x, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Sum over the bins in the order of a warp's butterfly reduction."""
    if WIDTH >= 32:
        x = tl.sum(tl.reshape(x, [WIDTH // 16, 16, BLOCK]), 0)
    if WIDTH >= 16:
        x = tl.sum(tl.reshape(x, [2, 8, BLOCK]), 0)
    if WIDTH >= 8:
        x = tl.sum(tl.reshape(x, [2, 4, BLOCK]), 0)
    if WIDTH >= 4:
        x = tl.sum(tl.reshape(x, [2, 2, BLOCK]), 0)
    return tl.sum(x, 0)


@triton.jit
def _distance(
    output_ptr, image, side, anchor, mask, n_anchors, BINS: tl.constexpr, WIDTH: tl.constexpr,
    ROUND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Predicted distances, in cells, from anchors to a side of their boxes."""
    x = logits_of(output_ptr, image, side, anchor, mask, n_anchors, BINS, WIDTH)
    if BINS == 1:
        distance = tl.sum(x, 0)
    else:
        e = exp(x - tl.max(x, 0)[None, :])
        p = tl.div_rn(e, tl.broadcast_to(_butterfly(e, WIDTH, BLOCK)[None, :], [WIDTH, BLOCK]))
        if ROUND:
            p = rounded(p, output_ptr)
        distance = _butterfly(p * tl.arange(0, WIDTH).to(tl.float32)[:, None], WIDTH, BLOCK)
        if ROUND:
            distance = rounded(distance, output_ptr)
    return distance


@triton.jit
def _decode(
    output_ptr, point_ptr, grid_ptr, n_anchors, BINS: tl.constexpr, WIDTH: tl.constexpr,
    ROUND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image, anchor = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = anchor < n_anchors
    for side in tl.static_range(4):
        distance = _distance(output_ptr, image, side, anchor, mask, n_anchors, BINS, WIDTH, ROUND, BLOCK)
        point = tl.load(point_ptr + anchor * 2 + side % 2, mask=mask, other=0.0)
        edge = point - distance if side < 2 else point + distance
        tl.store(grid_ptr + (image * n_anchors + anchor) * 4 + side, rounded(edge, output_ptr), mask=mask)

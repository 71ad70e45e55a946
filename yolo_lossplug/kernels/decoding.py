# SPDX-License-Identifier: AGPL-3.0-or-later
"""Decoding of the predicted boxes."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from yolo_lossplug.kernels.gt_rows import KernelAnchors
from yolo_lossplug.kernels.launching import launch
from yolo_lossplug.kernels.rounding import exp, rounded

ANCHORS_PER_PROGRAM, CORNERS_PER_PROGRAM = 64, 256
NO_LOSS = -1
"""Kind of a box loss that is evaluated outside the kernels."""


class BoxTermConfig(NamedTuple):
    """Settings of the box and distance terms: the kind of box loss, one of `BoxKind`, or `NO_LOSS`, and SIoU's theta.

    With one bin of the distribution of distances the head predicts distances, and the second term is L1.
    """

    kind: int
    theta: float
    n_bins: int


def decode(outputs: Tensor, anchors: KernelAnchors, config: BoxTermConfig, bins: Tensor) -> Tensor:
    """Return the predicted boxes (b·A, 4), x1 y1 x2 y2 in cells, float32.

    Outputs of the head (b, 4·R, A) are contiguous; bins are the values 0 to R − 1 (R,). The product of probabilities
    and bins is torch's: no other order of additions gives the bits of its library.
    """
    n_images, _, n_anchors = outputs.shape
    grid = torch.empty(n_images * n_anchors, 4, device=outputs.device)
    programs, distances = (triton.cdiv(n_anchors, ANCHORS_PER_PROGRAM), n_images), outputs
    if config.n_bins > 1:
        shares = torch.empty(n_images, n_anchors, 4, config.n_bins, dtype=outputs.dtype, device=outputs.device)
        launch(_probabilities, programs, (outputs, shares, n_anchors), launch_sizes(config))
        distances = shares.matmul(bins.type(shares.dtype))
    constants = {"IS_HEAD": config.n_bins == 1, "BLOCK": CORNERS_PER_PROGRAM}
    programs = (triton.cdiv(n_anchors, CORNERS_PER_PROGRAM), n_images)
    launch(_corners, programs, (distances, anchors.points, grid, n_anchors), constants)
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


@triton.jit(do_not_specialize=["n_anchors"])
def _probabilities(
    output_ptr, share_ptr, n_anchors, BINS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Softmax of the bins of each side, with the operations of `torch.softmax`, rounded to the dtype of the outputs."""
    image, anchor = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask, bins = anchor < n_anchors, tl.arange(0, WIDTH)
    first = share_ptr + (image.to(tl.int64) * n_anchors + anchor) * 4 * BINS
    inside = (bins < BINS)[:, None] & mask[None, :]
    for side in tl.static_range(4):
        x = logits_of(output_ptr, image, side, anchor, mask, n_anchors, BINS, WIDTH)
        e = exp(x - tl.max(x, 0)[None, :])
        p = tl.div_rn(e, tl.broadcast_to(_butterfly(e, WIDTH, BLOCK)[None, :], [WIDTH, BLOCK]))
        tl.store(first[None, :] + side * BINS + bins[:, None], rounded(p, output_ptr), mask=inside)


@triton.jit(do_not_specialize=["n_anchors"])
def _corners(distance_ptr, point_ptr, grid_ptr, n_anchors, IS_HEAD: tl.constexpr, BLOCK: tl.constexpr):
    """Corners of boxes; distances are (b, 4, A) as the head has them, else (b, A, 4)."""
    image, anchor = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = anchor < n_anchors
    index = (image * n_anchors + anchor) * 4
    for side in tl.static_range(4):
        source = (image * 4 + side) * n_anchors + anchor if IS_HEAD else index + side
        distance = tl.load(distance_ptr + source, mask=mask, other=0.0).to(tl.float32)
        point = tl.load(point_ptr + anchor * 2 + side % 2, mask=mask, other=0.0)
        edge = point - distance if side < 2 else point + distance
        tl.store(grid_ptr + index + side, rounded(edge, distance_ptr), mask=mask)

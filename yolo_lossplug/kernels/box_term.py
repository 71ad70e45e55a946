# SPDX-License-Identifier: AGPL-3.0-or-later
"""The box and distance terms of the positives, with their gradient."""

from typing import Any, NamedTuple, Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from yolo_lossplug.kernels.assignment import AnchorGts
from yolo_lossplug.kernels.box_maths import pair_loss
from yolo_lossplug.kernels.decoding import ANCHORS_PER_PROGRAM, BoxTermConfig, launch_sizes, logits_of
from yolo_lossplug.kernels.gt_rows import KernelAnchors, aligned
from yolo_lossplug.kernels.launching import launch
from yolo_lossplug.kernels.rounding import rounded
from yolo_lossplug.sparse.huge_pages import empty_like


def box_sums(
    outputs: Tensor, boxes: Tensor, assigned: AnchorGts, grid: Tensor, anchors: KernelAnchors, config: BoxTermConfig
) -> tuple[Tensor, Tensor]:
    """Return partial sums of score·L and of score·(DFL or L1), float32.

    Of the head there are outputs (b, 4·R, A), contiguous, and predicted boxes (b·A, 4) in cells; of gts boxes (N, 4),
    x1 y1 x2 y2 in pixels.
    """
    n_images, _, n_anchors = outputs.shape
    programs = (triton.cdiv(n_anchors, ANCHORS_PER_PROGRAM), n_images)
    n_sums = programs[0] * programs[1]
    box, dfl = torch.empty(2, aligned(n_sums), device=outputs.device)[:, :n_sums]
    sources = (outputs, boxes, assigned.row, assigned.score, grid, anchors.points, anchors.strides, anchors.scale)
    launch(_forward, programs, (*sources, box, dfl, n_anchors), _constants(config))
    return box, dfl


def box_gradient(
    outputs: Tensor, boxes: Tensor, assigned: AnchorGts, grid: Tensor, anchors: KernelAnchors, config: BoxTermConfig,
    scales: tuple[Tensor, Tensor], box_grad: Optional[Tensor],
) -> Tensor:  # fmt: skip
    """Return the gradient of both sums with respect to the outputs; arguments are those of `box_sums`, and two more.

    `scales` are factors () of both sums, and `box_grad` is the gradient (N·k, 4) of score·L by slot where L is
    evaluated outside the kernels, None otherwise.
    """
    n_images, _, n_anchors = outputs.shape
    gradient = empty_like(outputs)
    sources = (outputs, boxes, assigned.row, assigned.score, grid, anchors.points, anchors.strides, anchors.scale)
    by_slot = assigned.chosen, assigned.score if box_grad is None else box_grad, len(assigned.slots)
    programs = (triton.cdiv(n_anchors, ANCHORS_PER_PROGRAM), n_images)
    launch(_backward, programs, (*sources, gradient, *scales, *by_slot, n_anchors), _constants(config))
    return gradient


def _constants(config: BoxTermConfig) -> dict[str, Any]:
    return {"KIND": config.kind, "THETA": config.theta, **launch_sizes(config)}


class Slots(NamedTuple):
    """The positives in a list with a slot for every selection: boxes (N·k, 4) in cells; unused slots have score 0."""

    predicted: Tensor
    targets: Tensor
    scores: Tensor
    strides: Tensor


def positive_slots(assigned: AnchorGts, boxes: Tensor, grid: Tensor, anchors: KernelAnchors) -> Slots:
    """Return the positives, each in one slot; an unused slot has two equal boxes."""
    n, block = len(assigned.slots), 4 * ANCHORS_PER_PROGRAM
    slots = Slots(*(torch.empty(shape, device=grid.device) for shape in ((n, 4), (n, 4), (n,), (n, 1))))
    if n:
        sources = (assigned.slots, assigned.chosen, assigned.row, assigned.score, boxes, grid, anchors.strides)
        launch(_list, (triton.cdiv(n, block),), (*sources, *slots, n, len(anchors.strides)), {"BLOCK": block})
    return slots


@triton.jit
def _target(box_ptr, row, side, stride, mask):
    """A side of the gt boxes in cells."""
    return tl.div_rn(tl.load(box_ptr + row * 4 + side, mask=mask, other=0.0), stride)


@triton.jit
def _losses(grid_ptr, box_ptr, output_ptr, index, row, stride, mask, KIND: tl.constexpr, THETA: tl.constexpr):
    """Box losses of anchors and their derivatives; masked anchors have two unit boxes."""
    x1 = tl.load(grid_ptr + index * 4, mask=mask, other=0.0)
    y1 = tl.load(grid_ptr + index * 4 + 1, mask=mask, other=0.0)
    x2 = tl.load(grid_ptr + index * 4 + 2, mask=mask, other=1.0)
    y2 = tl.load(grid_ptr + index * 4 + 3, mask=mask, other=1.0)
    X1, Y1 = _target(box_ptr, row, 0, stride, mask), _target(box_ptr, row, 1, stride, mask)
    X2 = tl.where(mask, _target(box_ptr, row, 2, stride, mask), 1.0)
    Y2 = tl.where(mask, _target(box_ptr, row, 3, stride, mask), 1.0)
    return pair_loss(KIND, THETA, x1, y1, x2, y2, X1, Y1, X2, Y2, output_ptr)


@triton.jit
def _target_distance(box_ptr, point_ptr, row, side, anchor, stride, mask):
    """Target distances, in cells, from anchors to a side of their gt boxes."""
    point = tl.load(point_ptr + anchor * 2 + side % 2, mask=mask, other=0.0)
    edge = _target(box_ptr, row, side, stride, mask)
    return point - edge if side < 2 else edge - point


@triton.jit
def _bins(distance, BINS: tl.constexpr):
    """Bin below each distance, and the weight of the bin above."""
    distance = tl.minimum(tl.maximum(distance, 0.0), BINS - 1 - 0.01)
    below = distance.to(tl.int32)
    return below, distance - below.to(tl.float32)


@triton.jit
def _scaled(distance, stride, size, output_ptr):
    """Distances relative to the network input, rounded as by Ultralytics to the dtype of the outputs."""
    return rounded(tl.div_rn(rounded(distance * stride, output_ptr), size), output_ptr)


@triton.jit(do_not_specialize=["n_anchors"])  # with wide loads a thread has eight pairs of boxes, and spills
def _forward(
    output_ptr, box_ptr, row_ptr, score_ptr, grid_ptr, point_ptr, stride_ptr, scale_ptr, box_sum_ptr, dfl_sum_ptr,
    n_anchors, KIND: tl.constexpr, THETA: tl.constexpr, BINS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image, anchor = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    index = image * n_anchors + anchor
    row = tl.load(row_ptr + index, mask=anchor < n_anchors, other=-1)
    mask = row >= 0
    total, distribution = 0.0, 0.0
    if tl.max(row, 0) >= 0:
        weight = tl.load(score_ptr + index, mask=mask, other=0.0)
        stride = tl.load(stride_ptr + anchor, mask=mask, other=1.0)
        if KIND >= 0:
            loss, _, _, _, _ = _losses(grid_ptr, box_ptr, output_ptr, index, row, stride, mask, KIND, THETA)
            total = tl.sum(tl.where(mask, loss * weight, 0.0), 0)
        bins = tl.arange(0, WIDTH)
        losses = tl.zeros([BLOCK], tl.float32)
        for side in tl.static_range(4):
            x = logits_of(output_ptr, image, side, anchor, mask, n_anchors, BINS, WIDTH)
            distance = _target_distance(box_ptr, point_ptr, row, side, anchor, stride, mask)
            if BINS == 1:
                size = tl.load(scale_ptr + side % 2)
                losses += tl.abs(_scaled(tl.sum(x, 0), stride, size, output_ptr) - tl.div_rn(distance * stride, size))
            else:
                largest = tl.max(x, 0)
                normaliser = largest + tl.log(tl.sum(tl.exp(x - largest[None, :]), 0))
                below, upper_weight = _bins(distance, BINS)
                left = tl.sum(tl.where(bins[:, None] == below[None, :], x, 0.0), 0)
                right = tl.sum(tl.where(bins[:, None] == below[None, :] + 1, x, 0.0), 0)
                losses += normaliser - left * (1.0 - upper_weight) - right * upper_weight
        distribution = tl.sum(tl.where(mask, losses * 0.25 * weight, 0.0), 0)
    program = image * tl.num_programs(0) + tl.program_id(0)
    tl.store(box_sum_ptr + program, total)
    tl.store(dfl_sum_ptr + program, distribution)


@triton.jit(do_not_specialize=["n_slots", "n_anchors"])
def _backward(
    output_ptr, box_ptr, row_ptr, score_ptr, grid_ptr, point_ptr, stride_ptr, scale_ptr, out_ptr, box_scale_ptr,
    dfl_scale_ptr, chosen_ptr, box_grad_ptr, n_slots, n_anchors, KIND: tl.constexpr, THETA: tl.constexpr,
    BINS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image, anchor = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_anchor = anchor < n_anchors
    index = image * n_anchors + anchor
    row = tl.load(row_ptr + index, mask=is_anchor, other=-1)
    mask = row >= 0
    bins = tl.arange(0, WIDTH)
    inside = (bins < BINS)[:, None] & is_anchor[None, :]
    begin = out_ptr + image.to(tl.int64) * 4 * BINS * n_anchors
    if tl.max(row, 0) >= 0:
        box_scale, dfl_scale = tl.load(box_scale_ptr), tl.load(dfl_scale_ptr)
        weight = tl.load(score_ptr + index, mask=mask, other=0.0)
        stride = tl.load(stride_ptr + anchor, mask=mask, other=1.0)
        if KIND >= 0:
            _, g1, g2, g3, g4 = _losses(grid_ptr, box_ptr, output_ptr, index, row, stride, mask, KIND, THETA)
            g1, g2, g3, g4 = g1 * weight, g2 * weight, g3 * weight, g4 * weight
        else:
            slot = box_grad_ptr + (n_slots - tl.load(chosen_ptr + index, mask=mask, other=0)) * 4
            g1, g2 = tl.load(slot, mask=mask, other=0.0), tl.load(slot + 1, mask=mask, other=0.0)
            g3, g4 = tl.load(slot + 2, mask=mask, other=0.0), tl.load(slot + 3, mask=mask, other=0.0)
        for side in tl.static_range(4):
            grad = -g1 if side == 0 else (-g2 if side == 1 else (g3 if side == 2 else g4))
            grad = grad * box_scale
            x = logits_of(output_ptr, image, side, anchor, mask, n_anchors, BINS, WIDTH)
            distance = _target_distance(box_ptr, point_ptr, row, side, anchor, stride, mask)
            per_side = weight * 0.25 * dfl_scale
            if BINS == 1:
                size = tl.load(scale_ptr + side % 2)
                gap = _scaled(tl.sum(x, 0), stride, size, output_ptr) - tl.div_rn(distance * stride, size)
                sign = tl.where(gap > 0, 1.0, tl.where(gap < 0, -1.0, 0.0))
                g = (grad + per_side * sign * stride / size)[None, :] + tl.zeros([WIDTH, BLOCK], tl.float32)
            else:
                e = tl.exp(x - tl.max(x, 0)[None, :])
                p = e / tl.sum(e, 0)[None, :]
                expected = tl.sum(p * bins.to(tl.float32)[:, None], 0)
                below, upper_weight = _bins(distance, BINS)
                target = tl.where(bins[:, None] == below[None, :], 1.0 - upper_weight[None, :], 0.0)
                target = tl.where(bins[:, None] == below[None, :] + 1, upper_weight[None, :], target)
                # d(expected) = p·(bin − expected); d(loss) = p − the two bins next to the target, by their weights.
                g = p * (bins.to(tl.float32)[:, None] - expected[None, :]) * grad[None, :]
                g += (p - target) * per_side[None, :]
            g = tl.where(mask[None, :], g, 0.0)
            tl.store(begin + (side * BINS + bins)[:, None] * n_anchors + anchor[None, :], g, mask=inside)
    else:
        for side in tl.static_range(4):
            zero = tl.zeros([WIDTH, BLOCK], tl.float32)
            tl.store(begin + (side * BINS + bins)[:, None] * n_anchors + anchor[None, :], zero, mask=inside)


@triton.jit(do_not_specialize=["n", "n_anchors"])
def _list(
    slot_ptr, chosen_ptr, row_ptr, score_ptr, box_ptr, grid_ptr, stride_ptr, predicted_ptr, target_ptr, weight_ptr,
    out_stride_ptr, n, n_anchors, BLOCK: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_slot = slot < n
    index = tl.load(slot_ptr + slot, mask=is_slot, other=-1)
    mask = index >= 0
    mask = mask & (tl.load(chosen_ptr + index, mask=mask, other=0) == n - slot)
    row = tl.load(row_ptr + index, mask=mask, other=-1)
    mask = mask & (row >= 0)
    stride = tl.load(stride_ptr + index % n_anchors, mask=mask, other=1.0)
    for side in tl.static_range(4):
        unit = 0.0 if side < 2 else 1.0
        edge = tl.where(mask, _target(box_ptr, row, side, stride, mask), unit)
        tl.store(target_ptr + slot * 4 + side, edge, mask=is_slot)
        edge = tl.load(grid_ptr + index * 4 + side, mask=mask, other=unit)
        tl.store(predicted_ptr + slot * 4 + side, edge, mask=is_slot)
    tl.store(weight_ptr + slot, tl.load(score_ptr + index, mask=mask, other=0.0), mask=is_slot)
    tl.store(out_stride_ptr + slot, stride, mask=is_slot)

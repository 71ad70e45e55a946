# SPDX-License-Identifier: AGPL-3.0-or-later
"""Task-aligned assignment by kernels whose grids depend on shapes only.

Every gt of the batch is a row, in any order of images:

1. `describe_gts` of `gt_rows`: boxes in pixels, rectangles of candidates, and the first row of each image.
2. `_select`: the best k candidates of each row, and how many rows select an anchor.
3. `_contest`: for anchors that several rows select, the row with the largest overlap among all whose candidate it is.
4. `_resolve`: one row for each anchor, and each row's largest metric and overlap.
5. `_keep`: the best k remaining anchors of each row, for one-to-one heads.
6. `_normalise`: scores.

The result is that of the dense form: `torch.topk` of a row of zeros and metrics, which on a GPU breaks ties by the
lowest index, selects the best k of the candidates and of the first k anchors.
"""

from typing import NamedTuple, Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from yolo_lossplug.kernels.gt_rows import (
    N_HEADER,
    GtRows,
    KernelAnchors,
    aligned,
    anchor_of,
    is_candidate,
    metric_at,
    n_candidates,
    overlap_at,
)
from yolo_lossplug.kernels.launching import launch
from yolo_lossplug.kernels.rounding import MAX_INT32, bits_of

MIN_KEY, MAX_KEY = tl.constexpr(-(2**62)), tl.constexpr(2**63 - 1)
CANDIDATES_PER_ITERATION, ANCHORS_PER_PROGRAM = 128, 256
"""Candidates of a gt per iteration, one for each thread of its program, and anchors per program."""
# Triton specialises kernels for integers that are 1 or divisible by 16; `do_not_specialize` avoids a recompilation when
# a batch has such a number of gts, or images such a number of anchors.


class AssignerConfig(NamedTuple):
    """Settings of an assigner, which are Ultralytics' own by name, and what it measures.

    Attributes:
        overlap: Kind of overlap, one of `BoxKind`, whose `theta` is the exponent of the SIoU's shape cost.
        is_power_rounded: Whether score^alpha is rounded to the dtype of the scores.
    """

    topk: int
    topk2: int
    alpha: float
    beta: float
    eps: float
    overlap: int
    theta: float
    is_power_rounded: bool


class AnchorGts(NamedTuple):
    """Assignment of the anchors of all images.

    Attributes:
        row: Row (b·A,) of the anchor's gt, -1 without one, int32.
        label: Class (b·A,) of the gt, 0 without one, int32.
        score: Normalised metric (b·A,), 0 without a gt, float32.
        sums: Partial sums of the scores, float32.
        slots: Anchors (N·k,) among those of all images that the rows selected, -1 for none, int32.
        chosen: N·k − first slot (b·A,) that holds the anchor, 0 for none, int32.
        claims: Number of rows (b·A,) that select the anchor, int32; None if it is not counted.
    """

    row: Tensor
    label: Tensor
    score: Tensor
    sums: Tensor
    slots: Tensor
    chosen: Tensor
    claims: Optional[Tensor] = None


def assign_rows(gts: GtRows, scores: Tensor, grid: Tensor, anchors: KernelAnchors, config: AssignerConfig) -> AnchorGts:
    """Assign anchors to gts, by contiguous logits (b, classes, A), and predicted boxes (b·A, 4).

    These are x1 y1 x2 y2 in cells, float32, rounded as by Ultralytics.
    """
    n_images, n_classes, n_anchors = scores.shape
    n, total, device = len(gts.boxes), n_images * n_anchors, scores.device
    step = aligned(total)
    counts = torch.zeros(2 * step + 2 * n, dtype=torch.int32, device=device)
    claims, chosen, largest = counts[:total], counts[step : step + total], counts[2 * step :]
    slots = torch.empty(n * config.topk, dtype=torch.int32, device=device)
    row, label = torch.empty(2, step, dtype=torch.int32, device=device)[:, :total]
    metric, overlaps, score = torch.empty(3, step, device=device)[:, :total]
    is_kept = torch.zeros(total if config.topk2 != config.topk else 0, dtype=torch.int8, device=device)
    winners = torch.zeros(total, dtype=torch.int64, device=device)
    blocks = triton.cdiv(total, ANCHORS_PER_PROGRAM)
    sums = torch.empty(blocks, device=device)
    of_gts = {"LEVELS": len(anchors.levels), "BLOCK": CANDIDATES_PER_ITERATION}
    of_anchors = {**of_gts, "BLOCK": ANCHORS_PER_PROGRAM}
    sources = (gts.info, gts.boxes, anchors.levels, anchors.strides, scores, grid)
    overlap_of = {"OVERLAP": config.overlap, "THETA": config.theta}
    measure = {"ALPHA": config.alpha, "BETA": config.beta, "ROUND_POWER": config.is_power_rounded, **overlap_of}
    width = {"K": config.topk, "WIDTH": triton.next_power_of_2(config.topk)}
    if n:
        selecting = (*sources, claims, chosen, slots, n, n_classes, n_anchors)
        launch(_select, (n,), selecting, {**width, **measure, **of_gts})
        launch(_contest, (n,), (*sources, claims, winners, n_anchors), {**overlap_of, **of_gts})
    found = (gts.first, claims, chosen, winners, largest, row, metric, overlaps)
    keeping = {"K": config.topk, "KEEP": len(is_kept) > 0, **measure, **of_anchors}
    launch(_resolve, (blocks,), (*sources, *found, n, n_classes, n_anchors, total), keeping)
    if len(is_kept) and n:
        again = {"K": config.topk2, "WIDTH": triton.next_power_of_2(config.topk2), **of_gts}
        launch(_keep, (n,), (gts.info, anchors.levels, row, metric, overlaps, largest, is_kept, n, n_anchors), again)
    made = (gts.info, row, metric, largest, is_kept, label, score, sums, n, config.eps, total)
    launch(_normalise, (blocks,), made, {"KEEP": len(is_kept) > 0, **of_anchors})
    return AnchorGts(row, label, score, sums, slots, chosen, claims)


@triton.jit
def _reversed(index):
    """Reverse the order of indices; its own inverse."""
    return -index + MAX_INT32


@triton.jit
def _key(value, anchor):
    """Unique keys that order by value, in ties by the lowest anchor first."""
    return (bits_of(value) << 32) | _reversed(anchor).to(tl.int64)


@triton.jit
def _insert(best, key):
    """Replace the smallest of the best keys while there is a larger one in `key`."""
    smallest, largest = tl.min(best, 0), tl.max(key, 0)
    while largest > smallest:
        best = tl.where(best == smallest, largest, best)
        key = tl.where(key == largest, MIN_KEY, key)
        smallest, largest = tl.min(best, 0), tl.max(key, 0)
    return best


@triton.jit(do_not_specialize=["n", "n_classes", "n_anchors"])
def _select(
    info_ptr, box_ptr, level_ptr, stride_ptr, score_ptr, grid_ptr, claim_ptr, chosen_ptr, slot_ptr,
    n, n_classes, n_anchors, K: tl.constexpr, WIDTH: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr,
    OVERLAP: tl.constexpr, THETA: tl.constexpr, ROUND_POWER: tl.constexpr, LEVELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    info = info_ptr + row * (N_HEADER + 4 * LEVELS)
    image, label = tl.load(info), tl.load(info + 1)
    x1, y1 = tl.load(box_ptr + row * 4), tl.load(box_ptr + row * 4 + 1)
    x2, y2 = tl.load(box_ptr + row * 4 + 2), tl.load(box_ptr + row * 4 + 3)
    lane = tl.arange(0, WIDTH)
    is_lane, infos = lane < K, info + tl.zeros_like(lane)
    best = tl.where(is_lane, -1 - lane.to(tl.int64), MAX_KEY)  # none yet, each a key of its own
    count = n_candidates(info, LEVELS)
    for start in range(0, count, BLOCK):
        index = start + tl.arange(0, BLOCK)
        mask = index < count
        anchor = anchor_of(tl.where(mask, index, 0), info, level_ptr, LEVELS)
        u = overlap_at(x1, y1, x2, y2, image, anchor, mask, stride_ptr, score_ptr, grid_ptr, n_anchors, OVERLAP, THETA)
        value = metric_at(image, label, anchor, mask, u, score_ptr, n_classes, n_anchors, ALPHA, BETA, ROUND_POWER)
        best = _insert(best, tl.where(mask & (bits_of(value) > 0), _key(value, anchor), MIN_KEY))
    # Zeros fill up, from the first anchors that are not among the best already.
    taken = tl.where(is_lane & (best > 0), _reversed(best & 0xFFFFFFFF), -1)
    is_taken = tl.max((taken[:, None] == lane[None, :]).to(tl.int32), 0) > 0
    best = _insert(best, tl.where(is_lane & (is_taken == 0), _key(tl.zeros([WIDTH], tl.float32), lane), MIN_KEY))
    selected = tl.where(is_lane, _reversed(best & 0xFFFFFFFF), 0).to(tl.int32)
    is_selected = is_lane & ((best >> 32 > 0) | is_candidate(selected, infos, level_ptr, is_lane, LEVELS))
    selected += image * n_anchors
    tl.store(slot_ptr + row * K + lane, tl.where(is_selected, selected, -1), mask=is_lane)
    tl.atomic_add(claim_ptr + selected, 1, mask=is_selected, sem="relaxed")
    tl.atomic_max(chosen_ptr + selected, n * K - (row * K + lane), mask=is_selected, sem="relaxed")


@triton.jit(do_not_specialize=["n_anchors"])
def _contest(
    info_ptr, box_ptr, level_ptr, stride_ptr, score_ptr, grid_ptr, claim_ptr, winner_ptr, n_anchors,
    OVERLAP: tl.constexpr, THETA: tl.constexpr, LEVELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    info = info_ptr + row * (N_HEADER + 4 * LEVELS)
    image, count = tl.load(info), n_candidates(info, LEVELS)
    x1, y1 = tl.load(box_ptr + row * 4), tl.load(box_ptr + row * 4 + 1)
    x2, y2 = tl.load(box_ptr + row * 4 + 2), tl.load(box_ptr + row * 4 + 3)
    for start in range(0, count, BLOCK):
        index = start + tl.arange(0, BLOCK)
        mask = index < count
        anchor = anchor_of(tl.where(mask, index, 0), info, level_ptr, LEVELS)
        mask = mask & (tl.load(claim_ptr + image * n_anchors + anchor, mask=mask, other=0) > 1)
        if tl.max(mask.to(tl.int32), 0) > 0:
            overlaps = overlap_at(
                x1, y1, x2, y2, image, anchor, mask, stride_ptr, score_ptr, grid_ptr, n_anchors, OVERLAP, THETA
            )
            tl.atomic_max(winner_ptr + image * n_anchors + anchor, _key(overlaps, row), mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["n", "n_classes", "n_anchors", "total"])
def _resolve(
    info_ptr, box_ptr, level_ptr, stride_ptr, score_ptr, grid_ptr, first_ptr, claim_ptr, chosen_ptr, winner_ptr,
    largest_ptr, row_ptr, metric_ptr, overlap_ptr, n, n_classes, n_anchors, total, K: tl.constexpr, KEEP: tl.constexpr,
    ALPHA: tl.constexpr, BETA: tl.constexpr, OVERLAP: tl.constexpr, THETA: tl.constexpr, ROUND_POWER: tl.constexpr,
    LEVELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_valid = index < total
    claims = tl.load(claim_ptr + index, mask=is_valid, other=0)
    is_positive, owner = claims > 0, tl.zeros_like(index) - 1
    if tl.max(claims, 0) > 0:
        image, anchor = index // n_anchors, index % n_anchors
        slot = n * K - tl.load(chosen_ptr + index, mask=is_positive, other=1)
        key = tl.load(winner_ptr + index, mask=claims > 1, other=0)
        first = n - tl.load(first_ptr + image, mask=is_positive, other=1)
        # Without any overlap all gts tie, and the first of the image wins, wherever it is.
        winner = tl.where(key >> 32 > 0, _reversed(key & 0xFFFFFFFF).to(tl.int32), first)
        row = tl.where(claims > 1, winner, slot // K)
        info = info_ptr + row * (N_HEADER + 4 * LEVELS)
        mask = is_candidate(anchor, info, level_ptr, is_positive, LEVELS)
        x1 = tl.load(box_ptr + row * 4, mask=mask, other=0.0)
        y1 = tl.load(box_ptr + row * 4 + 1, mask=mask, other=0.0)
        x2 = tl.load(box_ptr + row * 4 + 2, mask=mask, other=0.0)
        y2 = tl.load(box_ptr + row * 4 + 3, mask=mask, other=0.0)
        u = overlap_at(x1, y1, x2, y2, image, anchor, mask, stride_ptr, score_ptr, grid_ptr, n_anchors, OVERLAP, THETA)
        label = tl.load(info + 1, mask=is_positive, other=0)
        value = metric_at(image, label, anchor, mask, u, score_ptr, n_classes, n_anchors, ALPHA, BETA, ROUND_POWER)
        u, value = tl.where(mask, u, 0.0), tl.where(mask, value, 0.0)
        owner = tl.where(is_positive, row, owner)
        tl.store(metric_ptr + index, value, mask=is_positive)
        tl.store(overlap_ptr + index, u, mask=is_positive)
        if not KEEP:
            tl.atomic_max(largest_ptr + row, bits_of(value).to(tl.int32), mask=is_positive, sem="relaxed")
            tl.atomic_max(largest_ptr + n + row, bits_of(u).to(tl.int32), mask=is_positive, sem="relaxed")
    tl.store(row_ptr + index, owner, mask=is_valid)


@triton.jit(do_not_specialize=["n", "n_anchors"])
def _keep(
    info_ptr, level_ptr, row_ptr, metric_ptr, overlap_ptr, largest_ptr, kept_ptr, n, n_anchors,
    K: tl.constexpr, WIDTH: tl.constexpr, LEVELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    info = info_ptr + row * (N_HEADER + 4 * LEVELS)
    begin = tl.load(info) * n_anchors
    lane = tl.arange(0, WIDTH)
    is_lane = lane < K
    is_mine = tl.load(row_ptr + begin + lane, mask=is_lane, other=-1) == row
    best = tl.load(metric_ptr + begin + lane, mask=is_mine, other=0.0)
    best = tl.where(is_lane, _key(best, lane), MAX_KEY)
    count = n_candidates(info, LEVELS)
    for start in range(0, count, BLOCK):
        index = start + tl.arange(0, BLOCK)
        mask = index < count
        anchor = anchor_of(tl.where(mask, index, 0), info, level_ptr, LEVELS)
        mask = mask & (anchor >= K) & (tl.load(row_ptr + begin + anchor, mask=mask, other=-1) == row)
        value = tl.load(metric_ptr + begin + anchor, mask=mask, other=0.0)
        best = _insert(best, tl.where(mask & (bits_of(value) > 0), _key(value, anchor), MIN_KEY))
    selected = begin + tl.where(is_lane, _reversed(best & 0xFFFFFFFF), 0).to(tl.int32)
    is_selected = is_lane & (tl.load(row_ptr + selected, mask=is_lane, other=-1) == row)
    overlaps = tl.load(overlap_ptr + selected, mask=is_selected, other=0.0)
    tl.store(kept_ptr + selected, tl.full(selected.shape, 1, tl.int8), mask=is_selected)
    tl.store(largest_ptr + row, tl.max(tl.where(is_selected, best >> 32, 0), 0).to(tl.int32))
    tl.store(largest_ptr + n + row, tl.max(tl.where(is_selected, bits_of(overlaps), 0), 0).to(tl.int32))


@triton.jit(do_not_specialize=["n", "total"])
def _normalise(
    info_ptr, row_ptr, metric_ptr, largest_ptr, kept_ptr, label_ptr, score_ptr, sum_ptr, n, eps, total,
    KEEP: tl.constexpr, LEVELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_valid = index < total
    row = tl.load(row_ptr + index, mask=is_valid, other=-1)
    if KEEP:
        is_kept = tl.load(kept_ptr + index, mask=is_valid, other=0) > 0
        row = tl.where(is_kept, row, -1)
        tl.store(row_ptr + index, row, mask=is_valid)
    is_positive = row >= 0
    metric = tl.load(metric_ptr + index, mask=is_positive, other=0.0)
    max_metric = tl.load(largest_ptr + row, mask=is_positive, other=0).to(tl.float32, bitcast=True)
    max_overlap = tl.load(largest_ptr + n + row, mask=is_positive, other=0).to(tl.float32, bitcast=True)
    score = tl.where(is_positive, tl.div_rn(metric * max_overlap, max_metric + eps), 0.0)
    label = tl.load(info_ptr + row * (N_HEADER + 4 * LEVELS) + 1, mask=is_positive, other=0)
    tl.store(score_ptr + index, score, mask=is_valid)
    tl.store(label_ptr + index, label, mask=is_valid)
    tl.store(sum_ptr + tl.program_id(0), tl.sum(score, 0))

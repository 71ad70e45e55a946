# SPDX-License-Identifier: AGPL-3.0-or-later
"""The class term and its gradient, each in one pass over the logits.

The target of an anchor is a class and a score; dense targets are never materialised. Formulas are those of
`yolo_lossplug.class_losses`.
"""

from typing import Any, NamedTuple, Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from yolo_lossplug.forms import ClassKernel, ClassKind
from yolo_lossplug.kernels.launching import launch
from yolo_lossplug.kernels.rounding import GUARD, fast_exp, fast_power, fast_reciprocal, log1p, log1p_of_any, rounded
from yolo_lossplug.sparse.huge_pages import empty_like

BCE, FOCAL = tl.constexpr(ClassKind.BCE), tl.constexpr(ClassKind.FOCAL)
QUALITY, VARIFOCAL = tl.constexpr(ClassKind.QUALITY), tl.constexpr(ClassKind.VARIFOCAL)
PADDING = tl.constexpr(-60000.0)
"""A logit whose loss at target 0 is 0, in half precision too."""
ELEMENTS_PER_PROGRAM, CLASSES_PER_PROGRAM = 2048, 16
"""Elements and classes per program: all are loaded before the first is used, which hides the latency of memory."""
WARPS = 8
"""Per program: a thread has 8 elements; with 16 or more, focal losses take more registers than fit."""


class ClassTargets(NamedTuple):
    """Targets of the class term for the anchors of all images.

    Attributes:
        label: Class (b·A,), int32.
        score: Target of that class (b·A,), 0 where there is none, float32.
        smoothing: ε: targets of anchors with a score become y·(1 − ε) + ε/2, those of their other classes ε/2.
        weights: Class weights (classes,), None for 1.
    """

    label: Tensor
    score: Tensor
    smoothing: float = 0.0
    weights: Optional[Tensor] = None


def class_sums(logits: Tensor, targets: ClassTargets, kernel: ClassKernel) -> Tensor:
    """Return partial sums of w·L(x, y), float32, of contiguous logits x (b, classes, A)."""
    grid, arguments, options = _launch(logits, targets, kernel)
    sums = torch.empty(grid[0] * grid[1] * grid[2], device=logits.device)
    launch(_forward, grid, (logits, *arguments, sums), options, is_exact=False, num_warps=WARPS)
    return sums


def class_gradient(logits: Tensor, targets: ClassTargets, kernel: ClassKernel, scale: Tensor) -> Tensor:
    """Return the gradient of Σ w·L with respect to the logits, multiplied by a scale ()."""
    grid, arguments, options = _launch(logits, targets, kernel)
    gradient = empty_like(logits)
    launch(_backward, grid, (logits, *arguments, scale, gradient), options, is_exact=False, num_warps=WARPS)
    return gradient


def _launch(
    logits: Tensor, targets: ClassTargets, kernel: ClassKernel
) -> tuple[tuple[int, int, int], tuple, dict[str, Any]]:
    """Return the grid, the arguments and the options of a launch."""
    n_images, n_classes, n_anchors = logits.shape
    width = min(CLASSES_PER_PROGRAM, triton.next_power_of_2(n_classes))
    block = min(ELEMENTS_PER_PROGRAM // width, 1024)
    weights = targets.score if targets.weights is None else targets.weights
    options = {
        "KIND": kernel.kind, "GAMMA": kernel.gamma, "ALPHA": kernel.alpha, "SMOOTH": targets.smoothing > 0,
        "WEIGHTED": targets.weights is not None, "BLOCK": block, "WIDTH": width,
    }  # fmt: skip
    grid = triton.cdiv(n_anchors, block), triton.cdiv(n_classes, width), n_images
    return grid, (targets.label, targets.score, weights, targets.smoothing, n_classes, n_anchors), options


@triton.jit
def _damping(base, GAMMA: tl.constexpr):
    """base^γ for base >= 0, and its derivative; 0 where that would be infinite."""
    if GAMMA == 0:
        return tl.zeros_like(base) + 1.0, tl.zeros_like(base)
    if GAMMA < 1:
        is_above = base > GUARD
        safe = tl.where(is_above, base, 1.0)
        value = tl.exp2(GAMMA * tl.log2(safe))
        return tl.where(is_above, value, 0.0), tl.where(is_above, GAMMA * value / safe, 0.0)
    return fast_power(base, GAMMA), GAMMA * fast_power(base, GAMMA - 1.0)


@triton.jit
def _background(x, KIND: tl.constexpr, GAMMA: tl.constexpr, ALPHA: tl.constexpr):
    """Losses of logits at target 0: weight·p^γ·softplus(x)."""
    e = fast_exp(-tl.abs(x))
    value = tl.maximum(x, 0.0) + log1p(e)
    if KIND != BCE and GAMMA != 0:
        r = fast_reciprocal(1.0 + e)
        weight, _ = _damping(tl.where(x >= 0, r, e * r), GAMMA)
        value *= weight
    if KIND == FOCAL and ALPHA >= 0:
        value *= 1.0 - ALPHA
    if KIND == VARIFOCAL:
        value *= ALPHA
    return value


@triton.jit
def _both(a, b):
    """(1 + a)·(1 + b) − 1 without cancellation."""
    return a + b + a * b


@triton.jit
def _terms(x, y, KIND: tl.constexpr, GAMMA: tl.constexpr, ALPHA: tl.constexpr):
    """Losses of logits and targets, and their derivatives with respect to the logits."""
    e = fast_exp(-tl.abs(x))
    r = fast_reciprocal(1.0 + e)
    p, q = tl.where(x >= 0, r, e * r), tl.where(x >= 0, e * r, r)  # q = 1 − p without cancellation
    bce = (1.0 - y) * x + tl.maximum(-x, 0.0) + log1p(e)
    value, grad = bce, p - y
    if KIND == FOCAL:
        weight, d_weight = _damping(y * q + (1.0 - y) * p, GAMMA)
        value, grad = weight * bce, d_weight * (1.0 - 2.0 * y) * p * q * bce + weight * grad
        if ALPHA >= 0:
            balance = ALPHA * y + (1.0 - ALPHA) * (1.0 - y)
            value, grad = balance * value, balance * grad
    elif KIND == QUALITY:
        gap = p - y
        weight, d_weight = _damping(tl.abs(gap), GAMMA)
        sign = tl.where(gap > 0, 1.0, tl.where(gap < 0, -1.0, 0.0))
        value, grad = weight * bce, d_weight * sign * p * q * bce + weight * grad
    elif KIND == VARIFOCAL:
        weight, d_weight = _damping(p, GAMMA)
        factor = tl.where(y > 0, y, ALPHA * weight)
        value, grad = factor * bce, tl.where(y > 0, 0.0, ALPHA * d_weight * p * q * bce) + factor * grad
    return value, grad


@triton.jit
def _indices(n_classes, n_anchors, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Classes (WIDTH,) and anchors (BLOCK,) of a program, indices of their logits, and a mask of the valid ones."""
    image, anchor = tl.program_id(2), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    classes = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    mask = (classes < n_classes)[:, None] & (anchor < n_anchors)[None, :]
    index = (image.to(tl.int64) * n_classes + classes)[:, None] * n_anchors + anchor[None, :]
    return image, classes, anchor, index, mask


@triton.jit
def _scores(label_ptr, score_ptr, logit_ptr, image, anchor, n_anchors):
    """Classes of anchors, and their targets rounded to the dtype of the logits, as by Ultralytics."""
    mask = anchor < n_anchors
    label = tl.load(label_ptr + image * n_anchors + anchor, mask=mask, other=0)
    return label, rounded(tl.load(score_ptr + image * n_anchors + anchor, mask=mask, other=0.0), logit_ptr)


@triton.jit
def _targets(label, score, classes, smoothing, logit_ptr, SMOOTH: tl.constexpr):
    """Targets (WIDTH, BLOCK) of all classes."""
    y = tl.where(label[None, :] == classes[:, None], score[None, :], 0.0)
    if SMOOTH:
        smooth = rounded(rounded(y * (1.0 - smoothing), logit_ptr) + smoothing * 0.5, logit_ptr)
        y = tl.where(score[None, :] > 0, smooth, y)
    return y


@triton.jit(do_not_specialize=["n_classes"])
def _forward(
    logit_ptr, label_ptr, score_ptr, weight_ptr, smoothing, n_classes, n_anchors, sum_ptr, KIND: tl.constexpr,
    GAMMA: tl.constexpr, ALPHA: tl.constexpr, SMOOTH: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    image, classes, anchor, index, mask = _indices(n_classes, n_anchors, BLOCK, WIDTH)
    x = tl.load(logit_ptr + index, mask=mask, other=PADDING).to(tl.float32)
    if (KIND == BCE and not SMOOTH) and not WEIGHTED:  # Σ ln(1 + e) as the logarithm of a product
        product = tl.reduce(fast_exp(-tl.abs(x)), 0, _both)
        total = tl.sum(tl.sum(tl.maximum(x, 0.0), 0) + log1p_of_any(product), 0)
    else:
        if SMOOTH:
            label, score = _scores(label_ptr, score_ptr, logit_ptr, image, anchor, n_anchors)
            value, _ = _terms(x, _targets(label, score, classes, smoothing, logit_ptr, SMOOTH), KIND, GAMMA, ALPHA)
            value = tl.where(mask, value, 0.0)  # padding has a smoothed target too
        else:
            value = _background(x, KIND, GAMMA, ALPHA)
        if WEIGHTED:
            value *= tl.load(weight_ptr + classes, mask=classes < n_classes, other=0.0)[:, None]
        total = tl.sum(tl.sum(value, 0), 0)
    if not SMOOTH:  # add the effect of the targets, in the first program of an anchor
        if tl.program_id(1) == 0:
            label, score = _scores(label_ptr, score_ptr, logit_ptr, image, anchor, n_anchors)
            is_positive = score > 0
            target_index = (image.to(tl.int64) * n_classes + label) * n_anchors + anchor
            logit = tl.load(logit_ptr + target_index, mask=is_positive, other=0.0).to(tl.float32)
            extra, _ = _terms(logit, score, KIND, GAMMA, ALPHA)
            at_zero, _ = _terms(logit, tl.zeros_like(score), KIND, GAMMA, ALPHA)
            extra -= at_zero
            if WEIGHTED:
                extra *= tl.load(weight_ptr + label, mask=is_positive, other=0.0)
            total += tl.sum(tl.where(score != 0, extra, 0.0), 0)  # != keeps NaN
    program = (image * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    tl.store(sum_ptr + program, total)


@triton.jit(do_not_specialize=["n_classes"])
def _backward(
    logit_ptr, label_ptr, score_ptr, weight_ptr, smoothing, n_classes, n_anchors, scale_ptr, out_ptr,
    KIND: tl.constexpr, GAMMA: tl.constexpr, ALPHA: tl.constexpr, SMOOTH: tl.constexpr, WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    image, classes, anchor, index, mask = _indices(n_classes, n_anchors, BLOCK, WIDTH)
    x = tl.load(logit_ptr + index, mask=mask, other=PADDING).to(tl.float32)
    label, score = _scores(label_ptr, score_ptr, logit_ptr, image, anchor, n_anchors)
    y = _targets(label, score, classes, smoothing, logit_ptr, SMOOTH)
    if KIND == BCE:
        grad = fast_reciprocal(1.0 + fast_exp(-x)) - y
    else:
        _, grad = _terms(x, y, KIND, GAMMA, ALPHA)
    if WEIGHTED:
        grad *= tl.load(weight_ptr + classes, mask=classes < n_classes, other=0.0)[:, None]
    tl.store(out_ptr + index, grad * tl.load(scale_ptr), mask=mask)

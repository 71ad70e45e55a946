# SPDX-License-Identifier: AGPL-3.0-or-later
"""The three terms of a step from the assignment, with one backward for both outputs of the head."""

from typing import Any, NamedTuple, Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from yolo_lossplug.forms import ClassKernel
from yolo_lossplug.kernels.assignment import AnchorGts
from yolo_lossplug.kernels.box_term import box_gradient, box_sums
from yolo_lossplug.kernels.class_term import ClassTargets, class_gradient, class_sums
from yolo_lossplug.kernels.decoding import BoxTermConfig
from yolo_lossplug.kernels.gt_rows import KernelAnchors
from yolo_lossplug.kernels.launching import launch

SUMS_PER_ITERATION = 8192
"""Of the one program that adds partial sums up: those of large batches in some rounds."""


class StepInputs(NamedTuple):
    """Inputs of the terms.

    Attributes:
        boxes: Boxes of gts (N, 4), x1 y1 x2 y2 in pixels.
        assigned: The assignment.
        grid: Predicted boxes (b·A, 4) in cells.
        anchors: The anchors.
        box_config: Settings of the box and distance terms.
        targets: Targets of the class term.
        class_kernel: The class loss; None if it is evaluated outside the kernels, and the class term here is 0.
        gains: Gains of the box, the class and the distance term.
        box_sum: Σ score·L () where the box loss is evaluated outside the kernels.
        box_grad: Gradient (N·k, 4) of `box_sum` by slot, None without gradients.
    """

    boxes: Tensor
    assigned: AnchorGts
    grid: Tensor
    anchors: KernelAnchors
    box_config: BoxTermConfig
    targets: ClassTargets
    class_kernel: Optional[ClassKernel]
    gains: tuple[float, float, float]
    box_sum: Optional[Tensor] = None
    box_grad: Optional[Tensor] = None


def step_losses(outputs: Tensor, scores: Tensor, step: StepInputs) -> tuple[Tensor, Tensor]:
    """Return terms (3,) from contiguous outputs of the head, and factors (3,), both float32.

    Terms are those of box, class and distance, times their gains and divided by the sum of the scores, not below 1;
    factors are these gains divided by it.
    """
    return _Losses.apply(outputs, scores, step)


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor, scores: Tensor, step: StepInputs) -> tuple[Tensor, Tensor]:
        box, dfl = box_sums(outputs, step.boxes, step.assigned, step.grid, step.anchors, step.box_config)
        if step.box_sum is not None:
            box = step.box_sum.float().reshape(1)
        cls = box[:0] if step.class_kernel is None else class_sums(scores, step.targets, step.class_kernel)
        terms, factors = (torch.empty(3, device=scores.device) for _ in range(2))
        sums = step.assigned.sums
        lengths = map(len, (sums, box, cls, dfl))
        arguments = (sums, box, cls, dfl, terms, factors, *lengths, *step.gains)
        launch(_finish, (1,), arguments, {"BLOCK": SUMS_PER_ITERATION}, is_exact=False, num_warps=16)
        ctx.save_for_backward(outputs, scores, factors)
        ctx.step = step
        ctx.mark_non_differentiable(factors)
        return terms, factors

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Optional[Tensor], Optional[Tensor], None]:
        outputs, scores, factors = ctx.saved_tensors
        step, scale = ctx.step, grad * factors
        box = cls = None
        if ctx.needs_input_grad[1] and step.class_kernel is not None:
            cls = class_gradient(scores, step.targets, step.class_kernel, scale[1])
        if ctx.needs_input_grad[0]:
            box = box_gradient(
                outputs, step.boxes, step.assigned, step.grid, step.anchors, step.box_config, (scale[0], scale[2]),
                step.box_grad,
            )  # fmt: skip
        return box, cls, None


@triton.jit
def _total(sum_ptr, length, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, length, BLOCK):
        index = start + tl.arange(0, BLOCK)
        total += tl.load(sum_ptr + index, mask=index < length, other=0.0)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["n_sums", "n_box", "n_cls", "n_dfl"])
def _finish(
    sum_ptr, box_ptr, cls_ptr, dfl_ptr, term_ptr, factor_ptr, n_sums, n_box, n_cls, n_dfl, box_gain, cls_gain, dfl_gain,
    BLOCK: tl.constexpr,
):  # fmt: skip
    score = _total(sum_ptr, n_sums, BLOCK)
    divisor = tl.where(score < 1.0, 1.0, score)  # NaN stays NaN
    box, cls, dfl = _total(box_ptr, n_box, BLOCK), _total(cls_ptr, n_cls, BLOCK), _total(dfl_ptr, n_dfl, BLOCK)
    tl.store(factor_ptr, box_gain / divisor)
    tl.store(factor_ptr + 1, cls_gain / divisor)
    tl.store(factor_ptr + 2, dfl_gain / divisor)
    tl.store(term_ptr, box / divisor * box_gain)
    tl.store(term_ptr + 1, cls / divisor * cls_gain)
    tl.store(term_ptr + 2, dfl / divisor * dfl_gain)

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Liu and Watanabe, InterpIoU: Rethinking Bounding Box Regression with Interpolation-Based IoU Optimization, 2025."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from yolo_lossplug.boxes import Pair
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import Option, box_loss

PAPER = Paper(
    "https://arxiv.org/abs/2507.12420",
    "Liu, Haoyuan and Watanabe, Hiroshi",
    "InterpIoU: Rethinking Bounding Box Regression with Interpolation-Based IoU Optimization",
    "arXiv",
    2025,
)
UNSURE = "Source uncertain: the authors published no code, and third-party versions disagree about the coefficient."


@box_loss(
    "interp-iou",
    aliases=("interpiou",),
    formula="(1 − IoU(p, t)) + (1 − IoU(q, t)), q = (1 − α)·p + α·t",
    latex=(r"L = 1 - \text{IoU}(p, t) + 1 - \text{IoU}(q, t)", r"q = (1 - \alpha)\,p + \alpha\,t"),
    paper=PAPER,
    note=UNSURE,
)
def interp_iou(
    pred: Tensor,
    target: Tensor,
    *,
    interp_alpha: Annotated[
        float, Option("position of the interpolated box between prediction and target", above=0, below=1)
    ] = 0.98,
) -> Tensor:
    """InterpIoU = (1 − IoU(p, t)) + (1 − IoU(q, t)) with q = (1 − α)·p + α·t, in [0, 2].

    Near α = 1 the interpolated box overlaps the target, and so pulls boxes that do not. Nothing is detached.
    """
    between = (1 - interp_alpha) * pred + interp_alpha * target
    return 2 - Pair(pred, target).iou - Pair(between, target).iou


@box_loss(
    "d-interp-iou",
    aliases=("d-interpiou", "dinterpiou"),
    formula="interp-iou with α = clamp(1 − sg(IoU), low, high)",
    latex=(
        r"L = 1 - \text{IoU}(p, t) + 1 - \text{IoU}(q, t)",
        r"q = (1 - \alpha)\,p + \alpha\,t",
        r"\alpha = \min(\max(1 - \text{sg}(\text{IoU}),\, \alpha_{\text{low}}),\, \alpha_{\text{high}})",
    ),
    paper=PAPER,
    note=UNSURE,
    increasing=("interp_low", "interp_high"),
)
def d_interp_iou(
    pred: Tensor,
    target: Tensor,
    *,
    interp_low: Annotated[float, Option("smallest α", above=0, below=1)] = 0.6,
    interp_high: Annotated[float, Option("largest α", above=0, below=1)] = 0.99,
) -> Tensor:
    """Dynamic InterpIoU = (1 − IoU(p, t)) + (1 − IoU(q, t)), q = (1 − α)·p + α·t, α = clamp(1 − sg(IoU), low, high).

    α is detached; the loss is in [0, 2].
    """
    iou = Pair(pred, target).iou
    alpha = (1 - iou.detach()).clamp(interp_low, interp_high).unsqueeze(-1)
    between = torch.lerp(pred, target, alpha)
    return 2 - iou - Pair(between, target).iou

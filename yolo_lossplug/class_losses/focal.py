# SPDX-License-Identifier: AGPL-3.0-or-later
"""Lin et al., Focal Loss for Dense Object Detection, ICCV 2017."""

from __future__ import annotations

from typing import Annotated, Optional

from torch import Tensor

from yolo_lossplug.boxes import power
from yolo_lossplug.class_losses.bce import bce
from yolo_lossplug.forms import Background, ClassKernel, ClassKind
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import Option, class_loss

PAPER = Paper(
    "https://arxiv.org/abs/1708.02002",
    "Lin, Tsung-Yi and Goyal, Priya and Girshick, Ross and He, Kaiming and Dollár, Piotr",
    "Focal Loss for Dense Object Detection",
    "ICCV",
    2017,
    booktitle="Proceedings of the IEEE International Conference on Computer Vision (ICCV)",
    pages="2999--3007",
    doi="10.1109/ICCV.2017.324",
)

Gamma = Annotated[float, Option("exponent that damps easy elements; 0 damps none", at_least=0, formerly="fl_gamma")]


@class_loss(
    "focal",
    aliases=("focal-loss",),
    formula="α_t·(1 − p_t)^γ·BCE",
    latex=(
        r"L = \alpha_t\,(1 - p_t)^{\gamma} \cdot \text{BCE}",
        r"p_t = y\,p + (1 - y)(1 - p)",
        r"\alpha_t = \alpha\,y + (1 - \alpha)(1 - y)",
    ),
    paper=PAPER,
    note="On the soft targets of the assigner its minimum is not at p = y; qfl is the calibrated form. "
    "The sum shrinks by one or two orders: raise the gain 'cls'.",
    background=lambda cls_focal_gamma, cls_focal_alpha: Background(
        1 if cls_focal_alpha is None else 1 - cls_focal_alpha, cls_focal_gamma
    ),
    kernel=lambda cls_focal_gamma, cls_focal_alpha: ClassKernel(
        ClassKind.FOCAL, cls_focal_gamma, -1.0 if cls_focal_alpha is None else cls_focal_alpha
    ),
)
def focal(
    logits: Tensor,
    targets: Tensor,
    *,
    cls_focal_gamma: Gamma = 2.0,
    cls_focal_alpha: Annotated[
        Optional[float], Option("weight of positives, null for none", at_least=0, at_most=1)
    ] = 0.25,
) -> Tensor:
    """Focal = α_t·(1 − p_t)^γ·BCE with p_t = y·p + (1 − y)(1 − p), α_t = α·y + (1 − α)(1 − y), in [0, ∞): Eq. 5.

    On soft targets the minimum over p lies beyond y (γ = 2, y = 0.75: at p = 0.923). α_t = 1 for an alpha of None.
    The modulating factor is differentiated.
    """
    missed = targets * (-logits).sigmoid() + (1 - targets) * logits.sigmoid()  # 1 − p_t without cancellation
    loss = power(missed, cls_focal_gamma) * bce(logits, targets)
    if cls_focal_alpha is None:
        return loss
    return (cls_focal_alpha * targets + (1 - cls_focal_alpha) * (1 - targets)) * loss

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Zhang et al., VarifocalNet: An IoU-aware Dense Object Detector, CVPR 2021."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from yolo_lossplug.boxes import power
from yolo_lossplug.class_losses.bce import bce
from yolo_lossplug.forms import Background, ClassKernel, ClassKind
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import Option, class_loss

PAPER = Paper(
    "https://arxiv.org/abs/2008.13367",
    "Zhang, Haoyang and Wang, Ying and Dayoub, Feras and Sünderhauf, Niko",
    "VarifocalNet: An IoU-aware Dense Object Detector",
    "CVPR",
    2021,
    booktitle="Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)",
    pages="8514--8523",
    doi="10.1109/CVPR46437.2021.00841",
)


@class_loss(
    "varifocal",
    aliases=("vfl", "vari-focal", "varifocal-loss"),
    formula="y·BCE where y > 0, α·p^γ·BCE where y = 0",
    latex=r"L = \begin{cases} y \cdot \text{BCE} & y > 0 \\ \alpha\,p^{\gamma} \cdot \text{BCE} & y = 0 "
    r"\end{cases}",
    paper=PAPER,
    note="Positives are weighted by their target and not damped. The sum shrinks: raise the gain 'cls'. The code of "
    "RT-DETR's authors does not differentiate the weight of negatives: cls_vfl_detach=1.",
    background=lambda cls_vfl_gamma, cls_vfl_alpha, cls_vfl_detach: Background(
        cls_vfl_alpha, cls_vfl_gamma, bool(cls_vfl_detach)
    ),
    kernel=lambda cls_vfl_gamma, cls_vfl_alpha, cls_vfl_detach: (
        None if cls_vfl_detach else ClassKernel(ClassKind.VARIFOCAL, cls_vfl_gamma, cls_vfl_alpha)
    ),
)
def varifocal(
    logits: Tensor,
    targets: Tensor,
    *,
    cls_vfl_gamma: Annotated[float, Option("exponent that damps easy negatives; 0 damps none", at_least=0)] = 2.0,
    cls_vfl_alpha: Annotated[float, Option("weight of negatives", at_least=0)] = 0.75,
    cls_vfl_detach: Annotated[
        int, Option("1 holds the weight of negatives constant, as RT-DETR's authors do", at_least=0, at_most=1)
    ] = 0,
) -> Tensor:
    """Varifocal = y·BCE where y > 0, α·p^γ·BCE where y = 0, in [0, ∞): Eq. 2.

    The weight of negatives is differentiated, as in the authors' code and in Ultralytics, or with `cls_vfl_detach`
    constant, as in the code of RT-DETR's authors: gradients of negatives are 1 + γ·(1 − p)·(−ln(1 − p))/p times smaller
    then, which is 1 + γ at p = 0 and 1 at p = 1.
    """
    scores = (logits.detach() if cls_vfl_detach else logits).sigmoid()
    weight = torch.where(targets > 0, targets, cls_vfl_alpha * power(scores, cls_vfl_gamma))
    return weight * bce(logits, targets)

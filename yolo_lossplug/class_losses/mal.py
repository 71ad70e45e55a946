# SPDX-License-Identifier: AGPL-3.0-or-later
"""Huang et al., DEIM: DETR with Improved Matching for Fast Convergence, CVPR 2025."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from yolo_lossplug.boxes import power
from yolo_lossplug.class_losses.bce import bce
from yolo_lossplug.forms import Background
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import Option, class_loss

PAPER = Paper(
    "https://arxiv.org/abs/2412.04234",
    "Huang, Shihua and Lu, Zhichao and Cun, Xiaodong and Yu, Yongjun and Zhou, Xiao and Shen, Xi",
    "DEIM: DETR with Improved Matching for Fast Convergence",
    "CVPR",
    2025,
    booktitle="Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)",
)


@class_loss(
    "mal",
    aliases=("matchability-aware", "matchability-aware-loss"),
    formula="BCE with the target y^γ where y > 0, sg(p)^γ·BCE where y = 0",
    latex=r"L = \begin{cases} -y^{\gamma} \ln p - (1 - y^{\gamma}) \ln(1 - p) & y > 0 \\ "
    r"-\text{sg}(p)^{\gamma} \ln(1 - p) & y = 0 \end{cases}",
    paper=PAPER,
    note="Made for DETR, whose targets are IoUs; here they are the assigner's scores. Smallest at p = y^γ, so scores "
    "come out lower than the targets. A positive is never damped, however small its target. The sum shrinks: raise the "
    "gain 'cls'.",
    background=lambda cls_mal_gamma: Background(1, cls_mal_gamma, is_detached=True),
)
def mal(
    logits: Tensor,
    targets: Tensor,
    *,
    cls_mal_gamma: Annotated[
        float, Option("exponent that lowers targets and damps easy negatives; 0 makes targets hard", at_least=0)
    ] = 1.5,
) -> Tensor:
    """MAL = −y^γ·ln p − (1 − y^γ)·ln(1 − p) where y > 0, −sg(p)^γ·ln(1 − p) where y = 0, in [0, ∞).

    The weight of negatives is detached.
    """
    is_positive = targets > 0
    lowered = torch.where(is_positive, power(targets, cls_mal_gamma), targets)
    return torch.where(is_positive, 1, power(logits.detach().sigmoid(), cls_mal_gamma)) * bce(logits, lowered)

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Li et al., Generalized Focal Loss, NeurIPS 2020."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from yolo_lossplug.boxes import power
from yolo_lossplug.class_losses.bce import bce
from yolo_lossplug.forms import Background, ClassKernel, ClassKind
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import Option, class_loss

PAPER = Paper(
    "https://arxiv.org/abs/2006.04388",
    "Li, Xiang and Wang, Wenhai and Wu, Lijun and Chen, Shuo and Hu, Xiaolin and Li, Jun and Tang, Jinhui "
    "and Yang, Jian",
    "Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for Dense Object Detection",
    "NeurIPS",
    2020,
    booktitle="Advances in Neural Information Processing Systems",
    volume="33",
    pages="21002--21012",
)


@class_loss(
    "qfl",
    aliases=("quality-focal", "quality-focal-loss"),
    formula="|y − p|^β·BCE",
    latex=r"L = \left|y - p\right|^{\beta} \cdot \text{BCE}",
    paper=PAPER,
    note="The focal form for soft targets: smallest, and 0, at p = y. The sum shrinks: raise the gain 'cls'.",
    background=lambda cls_qfl_beta: Background(1, cls_qfl_beta),
    kernel=lambda cls_qfl_beta: ClassKernel(ClassKind.QUALITY, cls_qfl_beta),
)
def qfl(
    logits: Tensor,
    targets: Tensor,
    *,
    cls_qfl_beta: Annotated[float, Option("exponent that damps well-scored elements; 0 damps none", at_least=0)] = 2.0,
) -> Tensor:
    """Quality focal = |y − p|^β·BCE, in [0, ∞): Eq. 2.

    The modulating factor is differentiated.
    """
    return power((targets - logits.sigmoid()).abs(), cls_qfl_beta) * bce(logits, targets)

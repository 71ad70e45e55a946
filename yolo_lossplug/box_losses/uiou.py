# SPDX-License-Identifier: AGPL-3.0-or-later
"""Luo et al., Unified-IoU: For High-Quality Object Detection, 2024."""

from __future__ import annotations

from typing import Annotated, Optional

from torch import Tensor

from yolo_lossplug.box_losses.diou import ciou
from yolo_lossplug.boxes import Pair
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import Option, box_loss
from yolo_lossplug.state import Scope, scope_or_new

PAPER = Paper(
    "https://arxiv.org/abs/2408.06636",
    "Luo, Xiangjie and Cai, Zhihao and Shao, Bo and Wang, Yingxun",
    "Unified-IoU: For High-Quality Object Detection",
    "arXiv",
    2024,
)


@box_loss(
    "uiou",
    aliases=("unified-iou",),
    formula="ciou of both boxes scaled by r about their centres, r from 2 to 0.5 over the epochs",
    latex=(
        r"L = L_{\text{CIoU}}(p_r, t_r)",
        r"r = r_{\text{start}} + (r_{\text{end}} - r_{\text{start}})\,\frac{\text{epoch}}{\text{epochs}}",
    ),
    paper=PAPER,
    note="Needs the epoch of the run. Our reading: the linear schedule, without the weights that the paper adds.",
)
def uiou(
    pred: Tensor,
    target: Tensor,
    *,
    state: Optional[Scope] = None,
    uiou_start: Annotated[float, Option("factor of the sides in the first epoch", above=0)] = 2.0,
    uiou_end: Annotated[float, Option("factor of the sides after the last epoch", above=0)] = 0.5,
) -> Tensor:
    """UIoU = CIoU loss of both boxes scaled by r about their own centres, in [0, 2.5), r linear in the epochs.

    Enlarged boxes overlap earlier and tell apart less: first the far boxes count, at the end the exact ones.
    A call without `state` is at the first epoch. The trade-off α of CIoU is detached.
    """
    ratio = uiou_start + (uiou_end - uiou_start) * scope_or_new(state).progress
    scaled = Pair(pred, target).scaled(ratio)
    return sum(ciou(scaled), 1 - scaled.iou)

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ridnik et al., Asymmetric Loss For Multi-Label Classification, ICCV 2021."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from yolo_lossplug.boxes import EPS, power
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import Option, class_loss

PAPER = Paper(
    "https://arxiv.org/abs/2009.14119",
    "Ridnik, Tal and Ben-Baruch, Emanuel and Zamir, Nadav and Noy, Asaf and Friedman, Itamar and Protter, Matan "
    "and Zelnik-Manor, Lihi",
    "Asymmetric Loss For Multi-Label Classification",
    "ICCV",
    2021,
    booktitle="Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)",
    pages="82--91",
    doi="10.1109/ICCV48922.2021.00015",
)


@class_loss(
    "asl",
    aliases=("asymmetric", "asymmetric-loss"),
    formula="−y·(1 − p)^γ₊·ln p − (1 − y)·p_m^γ₋·ln(1 − p_m), p_m = max(p − m, 0)",
    latex=(r"L = -y\,(1 - p)^{\gamma_+} \ln p - (1 - y)\,p_m^{\gamma_-} \ln(1 - p_m)", r"p_m = \max(p - m,\, 0)"),
    paper=PAPER,
    note="Made for hard labels; a soft target is a mixture of the two terms. Negatives below the clip cost nothing.",
)
def asl(
    logits: Tensor,
    targets: Tensor,
    *,
    cls_asl_gamma_pos: Annotated[float, Option("exponent that damps easy positives", at_least=0)] = 1.0,
    cls_asl_gamma_neg: Annotated[float, Option("exponent that damps easy negatives", at_least=0)] = 4.0,
    cls_asl_clip: Annotated[float, Option("score m below which a negative costs nothing", at_least=0, below=1)] = 0.05,
) -> Tensor:
    """ASL = −y·(1 − p)^γ₊·ln p − (1 − y)·p_m^γ₋·ln(1 − p_m) with p_m = max(p − m, 0), in [0, ∞).

    The weights are differentiated.
    """
    shifted = (logits.sigmoid() - cls_asl_clip).clamp(min=0)
    # With m = 0 the logarithm of a saturated score is taken from the logit, with m > 0 it is at least ln m.
    missed = F.softplus(logits) if cls_asl_clip == 0 else -(1 - shifted).clamp(min=EPS).log()
    positive = power((-logits).sigmoid(), cls_asl_gamma_pos) * F.softplus(-logits)
    return targets * positive + (1 - targets) * power(shifted, cls_asl_gamma_neg) * missed

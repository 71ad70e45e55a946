# SPDX-License-Identifier: AGPL-3.0-or-later
"""Losses over mutually exclusive classes: those of the classify task."""

from __future__ import annotations

from torch import Tensor

from yolo_lossplug.boxes import power
from yolo_lossplug.class_losses.focal import PAPER as FOCAL
from yolo_lossplug.class_losses.focal import Gamma
from yolo_lossplug.class_losses.poly import PAPER as POLY
from yolo_lossplug.class_losses.poly import Epsilon
from yolo_lossplug.registry import softmax_loss


@softmax_loss(
    "ce",
    aliases=("cross-entropy",),
    formula="−Σ t·ln p, p = softmax",
    latex=r"L = -\sum_k t_k \ln p_k, \quad p = \text{softmax}(\text{logits})",
    note="What Ultralytics trains with.",
)
def ce(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy = −Σ over classes of t·ln p with p = softmax(logits), in [0, ∞).

    Smallest at p = t.
    """
    return -targets * logits.log_softmax(-1)


@softmax_loss(
    "focal",
    aliases=("focal-loss",),
    formula="−Σ t·(1 − p)^γ·ln p, p = softmax",
    latex=r"L = -\sum_k t_k\,(1 - p_k)^{\gamma} \ln p_k, \quad p = \text{softmax}(\text{logits})",
    paper=FOCAL,
    note="Damps images that are classified well.",
)
def softmax_focal(logits: Tensor, targets: Tensor, *, cls_focal_gamma: Gamma = 2.0) -> Tensor:
    """Focal = −Σ over classes of t·(1 − p)^γ·ln p with p = softmax(logits), in [0, ∞).

    The modulating factor is differentiated.
    """
    logarithm = logits.log_softmax(-1)
    return -targets * power(1 - logarithm.exp(), cls_focal_gamma) * logarithm


@softmax_loss(
    "poly",
    aliases=("polyloss", "poly-loss", "poly1", "poly-1"),
    formula="Σ t·(−ln p + ε·(1 − p)), p = softmax",
    latex=r"L = \sum_k t_k \left(-\ln p_k + \varepsilon\,(1 - p_k)\right), \quad p = \text{softmax}(\text{logits})",
    paper=POLY,
    note="Poly-1 of the cross-entropy.",
)
def softmax_poly(logits: Tensor, targets: Tensor, *, cls_poly_epsilon: Epsilon = 1.0) -> Tensor:
    """Poly-1 = Σ over classes of t·(−ln p + ε·(1 − p)) with p = softmax(logits), in [0, ∞).

    Nothing is detached.
    """
    logarithm = logits.log_softmax(-1)
    return targets * (cls_poly_epsilon * (1 - logarithm.exp()) - logarithm)

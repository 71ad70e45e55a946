# SPDX-License-Identifier: AGPL-3.0-or-later
"""Leng et al., PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions, ICLR 2022."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from yolo_lossplug.class_losses.bce import bce
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import Option, class_loss

PAPER = Paper(
    "https://arxiv.org/abs/2204.12511",
    "Leng, Zhaoqi and Tan, Mingxing and Liu, Chenxi and Cubuk, Ekin Dogus and Shi, Jay and Cheng, Shuyang "
    "and Anguelov, Dragomir",
    "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions",
    "ICLR",
    2022,
    booktitle="International Conference on Learning Representations",
)

Epsilon = Annotated[float, Option("weight of the first polynomial; 0 is none", at_least=-1)]


@class_loss(
    "poly",
    aliases=("polyloss", "poly-loss", "poly1", "poly-1"),
    formula="BCE + ε·(1 − p_t)",
    latex=(r"L = \text{BCE} + \varepsilon\,(1 - p_t)", r"p_t = y\,p + (1 - y)(1 - p)"),
    paper=PAPER,
    note="Poly-1 of the binary cross-entropy. The paper's value for detection is −1.",
)
def poly(logits: Tensor, targets: Tensor, *, cls_poly_epsilon: Epsilon = 1.0) -> Tensor:
    """Poly-1 = BCE + ε·(1 − p_t) with p_t = y·p + (1 − y)(1 − p), in [0, ∞).

    Nothing is detached.
    """
    missed = targets * (-logits).sigmoid() + (1 - targets) * logits.sigmoid()
    return bce(logits, targets) + cls_poly_epsilon * missed

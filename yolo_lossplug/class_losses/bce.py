# SPDX-License-Identifier: AGPL-3.0-or-later
"""Binary cross-entropy, what Ultralytics trains with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from yolo_lossplug.forms import Background, ClassKernel, ClassKind
from yolo_lossplug.registry import class_loss


@class_loss(
    "bce",
    aliases=("binary-cross-entropy",),
    formula="−y·ln p − (1 − y)·ln(1 − p)",
    latex=(r"\text{BCE} = -y \ln p - (1 - y) \ln(1 - p)", r"p = \frac{1}{1 + e^{-\text{logit}}}"),
    background=lambda: Background(1, 0),
    kernel=lambda: ClassKernel(ClassKind.BCE),
)
def bce(logits: Tensor, targets: Tensor) -> Tensor:
    """BCE = −y·ln p − (1 − y)·ln(1 − p) with p = sigmoid(logit), in [0, ∞).

    Smallest at p = y.
    """
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Li, Liu and Wang, Gradient Harmonized Single-stage Detector, AAAI 2019."""

from __future__ import annotations

from typing import Annotated, Optional

import torch
from torch import Tensor

from yolo_lossplug import state as states
from yolo_lossplug.class_losses.bce import bce
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import Option, class_loss

PAPER = Paper(
    "https://arxiv.org/abs/1811.05181",
    "Li, Buyu and Liu, Yu and Wang, Xiaogang",
    "Gradient Harmonized Single-stage Detector",
    "AAAI",
    2019,
    booktitle="Proceedings of the AAAI Conference on Artificial Intelligence",
    volume="33",
    number="01",
    pages="8577--8584",
    doi="10.1609/aaai.v33i01.33018577",
)


@class_loss(
    "ghm",
    formula="N/(R·n)·BCE, R the number of elements with a like |p − y|, n of bins in use",
    paper=PAPER,
    note="Has a state. Made for hard labels, and for a mean over all elements: here they are summed, so lower the gain "
    "'cls' by the number of anchors and classes per assigned one, two to four orders.",
)
def ghm(
    logits: Tensor,
    targets: Tensor,
    *,
    state: Optional[states.Scope] = None,
    cls_ghm_bins: Annotated[
        int, Option("bins of the gradient length, each a pass over all elements", at_least=1, at_most=100)
    ] = 10,
    cls_ghm_momentum: Annotated[float, Option("weight of the steps before in the counts", at_least=0, below=1)] = 0.75,
) -> Tensor:
    """GHM-C = w·BCE, w = N/(R·n): R the smoothed count of the element's bin of |p − y|, n the number of bins in use.

    Args:
        logits: Scores before the sigmoid, any shape.
        targets: y in [0, 1], same shape.
        state: What the run remembers, the counts among it.
        cls_ghm_bins: Number of bins.
        cls_ghm_momentum: Weight of the counts before this step.

    Returns:
        Loss per element, same shape. The weights are detached; the sum of N elements is that of the paper times N.
    """
    remembered = states.of(state)
    gradient = (logits.detach().sigmoid() - targets).abs()
    bins = (gradient * cls_ghm_bins).long().clamp(max=cls_ghm_bins - 1)
    counts = torch.stack([(bins == i).sum() for i in range(cls_ghm_bins)]).to(gradient.dtype)
    old = remembered.get("counts", torch.zeros_like(counts)).to(counts.dtype)
    if remembered.is_training:
        counts = states.reduce(counts)
        old = torch.where(counts > 0, cls_ghm_momentum * old + (1 - cls_ghm_momentum) * counts, old)
        remembered.put("counts", old)
    density = torch.where(old > 0, old, counts).clamp(min=1e-6)
    weight = counts.sum() / (density * (counts > 0).sum().clamp(min=1))
    return weight[bins] * bce(logits, targets)

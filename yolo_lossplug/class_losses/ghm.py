# SPDX-License-Identifier: AGPL-3.0-or-later
"""Li, Liu and Wang, Gradient Harmonized Single-stage Detector, AAAI 2019."""

from __future__ import annotations

from typing import Annotated, Optional

import torch
from torch import Tensor

from yolo_lossplug.class_losses.bce import bce
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import Option, class_loss
from yolo_lossplug.state import Scope, reduce, scope_or_new

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
    aliases=("ghmc", "ghm-c"),
    formula="N/(R·n)·BCE, R the number of elements with a like |p − y|, n of bins in use",
    latex=r"L = \frac{N}{R\,n} \cdot \text{BCE}",
    paper=PAPER,
    note="Has a state. Made for hard labels, and for a mean over all elements, which are summed here: the gain 'cls' "
    "that gives the paper's mean is the sum of the targets over the number of anchors times classes, about 1e-4 with "
    "80 classes and 3e-3 with 3, where stock takes 0.5.",
)
def ghm(
    logits: Tensor,
    targets: Tensor,
    *,
    state: Optional[Scope] = None,
    cls_ghm_bins: Annotated[
        int, Option("bins of the gradient length, each a pass over all elements", at_least=1, at_most=100)
    ] = 10,
    cls_ghm_momentum: Annotated[float, Option("weight of the steps before in the shares", at_least=0, below=1)] = 0.75,
) -> Tensor:
    """GHM-C = w·BCE, w = 1/(r·n): r the smoothed share R/N of its bin of |p − y|, n the number of bins in use.

    The weights are detached; the sum of N elements is that of the paper times N.
    """
    remembered = scope_or_new(state)
    gradient = (logits.detach().sigmoid() - targets).abs()
    bins = (gradient * cls_ghm_bins).long().clamp(max=cls_ghm_bins - 1)
    counts = torch.stack([(bins == i).sum() for i in range(cls_ghm_bins)]).to(gradient.dtype)
    if remembered.is_training:
        counts = reduce(counts)
    shares = counts / counts.sum().clamp(min=1)  # and not counts, so that batches of another size weigh the same
    old = remembered.get("shares", torch.zeros_like(shares)).to(shares.dtype)
    if remembered.is_training:
        old = torch.where(shares > 0, cls_ghm_momentum * old + (1 - cls_ghm_momentum) * shares, old)
        remembered.put("shares", old)
    density = torch.where(old > 0, old, shares) * (shares > 0).sum()
    weight = torch.where(density > 0, 1 / density.clamp(min=torch.finfo(density.dtype).tiny), 0)
    return weight[bins] * bce(logits, targets)

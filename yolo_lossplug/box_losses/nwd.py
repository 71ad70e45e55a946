# SPDX-License-Identifier: AGPL-3.0-or-later
"""Wang et al., A Normalized Gaussian Wasserstein Distance for Tiny Object Detection, 2021."""

from __future__ import annotations

from typing import Annotated, Optional

import torch
from torch import Tensor

from yolo_lossplug.boxes import Pair, power
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import Option, box_loss

PAPER = Paper(
    "https://arxiv.org/abs/2110.13389",
    "Wang, Jinwang and Xu, Chang and Yang, Wen and Yu, Lei",
    "A Normalized Gaussian Wasserstein Distance for Tiny Object Detection",
    "arXiv",
    2021,
)


@box_loss(
    "nwd",
    formula="1 − exp(−D/C), D² = ρ² + ((w − W)² + (h − H)²)/4",
    latex=("L = 1 - e^{-D/C}", r"D^2 = \rho^2 + \frac{(w - W)^2 + (h - H)^2}{4}"),
    paper=PAPER,
    note="For tiny objects. The gradient of boxes further than a few C apart vanishes.",
)
def nwd(
    pred: Tensor,
    target: Tensor,
    *,
    stride: Optional[Tensor],
    nwd_constant: Annotated[float, Option("C in pixels, about the mean size of the objects", above=0)] = 12.8,
) -> Tensor:
    """NWD loss = 1 − exp(−D/C), in [0, 1): D the Wasserstein distance of the Gaussians of the two boxes, in pixels.

    Nothing is detached; the gradient is 0 at identical boxes.
    """
    pair = Pair(pred, target)
    squared = pair.offset.square().sum(-1) + (pair.size - pair.target_size).square().sum(-1) / 4
    distance = power(squared, 0.5)
    if stride is not None:
        distance = distance * stride.squeeze(-1)
    return 1 - torch.exp(-distance / nwd_constant)

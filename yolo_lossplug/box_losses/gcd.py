# SPDX-License-Identifier: AGPL-3.0-or-later
"""Guan et al., Gaussian Combined Distance: A Generic Metric for Object Detection, 2025."""

from __future__ import annotations

import torch
from torch import Tensor

from yolo_lossplug.boxes import MIN_SIDE, Pair, power
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import box_loss

PAPER = Paper(
    "https://arxiv.org/abs/2510.27649",
    "Guan, Ziqian and Fu, Xieyi and Huang, Pengjun and Zhang, Hengyuan and Du, Hubin and Liu, Yongtao "
    "and Wang, Yinglin and Ma, Qang",
    "Gaussian Combined Distance: A Generic Metric for Object Detection",
    "arXiv",
    2025,
)


@box_loss(
    "gcd",
    aliases=("gaussian-combined-distance",),
    formula="1 − exp(−D), D² = ½·Σ over both axes and both boxes of (Δ/s)² + ¼((w − W)/s)², s the side of that box",
    latex=(
        "L = 1 - e^{-D}",
        r"D^2 = \frac{1}{2}\left[A(w, h) + A(W, H)\right]",
        r"A(a, b) = \frac{d_x^2}{a^2} + \frac{d_y^2}{b^2} + \frac{(w - W)^2}{4a^2} + \frac{(h - H)^2}{4b^2}",
    ),
    paper=PAPER,
    note="For small objects; has no unit, as the sides of both boxes are the scale. The gradient of boxes several "
    "sides apart vanishes, also where only the prediction is that small.",
)
def gcd(pred: Tensor, target: Tensor) -> Tensor:
    """GCD loss = 1 − exp(−D), in [0, 1).

    D² = ½·[(Δx/w)² + (Δy/h)² + (Δx/W)² + (Δy/H)² + ¼·(((w − W)/w)² + ((h − H)/h)² + ((w − W)/W)² + ((h − H)/H)²)],
    Δx and Δy the offset of the centres. Nothing is detached; the gradient is 0 at identical boxes.
    """
    pair = Pair(pred, target)  # shorter sides than the minimum, and inverted ones, count as that long
    size, target_size = pair.size.clamp(min=MIN_SIDE), pair.target_size.clamp(min=MIN_SIDE)
    sides = torch.cat((size, target_size), -1)
    offsets = pair.offset.repeat(1, 2) / sides
    differences = (size - target_size).repeat(1, 2) / sides
    squared = (offsets.square() + differences.square() / 4).sum(-1) / 2
    return 1 - torch.exp(-power(squared, 0.5))

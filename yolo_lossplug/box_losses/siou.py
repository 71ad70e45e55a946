# SPDX-License-Identifier: AGPL-3.0-or-later
"""Gevorgyan, SIoU Loss: More Powerful Learning for Bounding Box Regression, 2022."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from yolo_lossplug.boxes import Pair, power, ratio, relative_difference
from yolo_lossplug.forms import BoxKernel, BoxKind
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import Option, overlap_loss

PAPER = Paper(
    "https://arxiv.org/abs/2205.12740",
    "Gevorgyan, Zhora",
    "SIoU Loss: More Powerful Learning for Bounding Box Regression",
    "arXiv",
    2022,
)


@overlap_loss(
    "siou",
    aliases=("scylla-iou",),
    formula="1 − IoU + Δ/2 + Ω/2",
    latex=(
        r"L = 1 - \text{IoU} + \frac{\Delta + \Omega}{2}",
        (
            r"\Delta = 2 - e^{-\gamma\,(d_x / c_w)^2} - e^{-\gamma\,(d_y / c_h)^2}, \quad \gamma = 2 - "
            r"\frac{2 \left|d_x\right| \left|d_y\right|}{\rho^2}"
        ),
        (
            r"\Omega = \left(1 - e^{-\left|w - W\right| / \max(w, W)}\right)^{\theta} + \left(1 - e^{-\left|h "
            r"- H\right| / \max(h, H)}\right)^{\theta}"
        ),
    ),
    paper=PAPER,
    note="The angle term couples the axes; the gradient jumps where the centres are aligned.",
    kernel=lambda siou_theta: BoxKernel(BoxKind.SIOU, siou_theta),
)
def siou(
    pair: Pair,
    *,
    siou_theta: Annotated[float, Option("exponent of the shape cost; the paper uses 2 to 6", at_least=1)] = 4.0,
) -> tuple[Tensor, ...]:
    """SIoU loss = 1 − IoU + (Δ + Ω)/2, in [0, 2): angle-aware distance cost Δ and shape cost Ω.

    Λ = 2·|dx|·|dy|/ρ² = sin(2·arcsin(min(|dx|, |dy|)/ρ)), γ = 2 − Λ,
    Δ = Σ over axes of 1 − exp(−γ·(d/c)²), Ω = Σ over axes of (1 − exp(−|w − W|/max(w, W)))^θ. Nothing is
    detached.
    """
    offset = pair.offset.abs()
    angle = 2 * ratio(offset[:, 0] * offset[:, 1], offset.square().sum(-1))
    gamma = (2 - angle).unsqueeze(-1)
    distance = (1 - torch.exp(-gamma * ratio(pair.offset.square(), pair.hull_size.square()))).sum(-1)

    shape = power(1 - torch.exp(-relative_difference(pair.size, pair.target_size)), siou_theta).sum(-1)
    return distance / 2, shape / 2

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Liu et al., Powerful-IoU, Neural Networks 170 (2024) 276-284."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from yolo_lossplug.boxes import MIN_SIDE, Pair
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import Option, box_loss, overlap_loss

PAPER = Paper(
    "https://doi.org/10.1016/j.neunet.2023.11.041",
    "Liu, Can and Wang, Kaige and Li, Qing and Zhao, Fazhan and Zhao, Kun and Ma, Hongtu",
    "Powerful-IoU: More straightforward and faster bounding box regression loss with a nonmonotonic focusing mechanism",
    "Neural Networks 170",
    2024,
    journal="Neural Networks",
    volume="170",
    pages="276--284",
    doi="10.1016/j.neunet.2023.11.041",
)


@overlap_loss(
    "piou",
    aliases=("piou-v1", "piouv1", "piou1", "powerful-iou"),
    formula="1 − IoU + 1 − exp(−P²)",
    latex=(
        r"L = 1 - \text{IoU} + 1 - e^{-P^2}",
        (
            r"P = \frac{1}{4}\left(\frac{\left|x_1 - a_1\right| + \left|x_2 - a_2\right|}{W} + "
            r"\frac{\left|y_1 - b_1\right| + \left|y_2 - b_2\right|}{H}\right)"
        ),
    ),
    paper=PAPER,
    note="The penalty is measured in target sizes, so it does not grow when the prediction is enlarged.",
)
def piou(pair: Pair) -> tuple[Tensor, ...]:
    """PIoU loss = 1 − IoU + 1 − exp(−P²), in [0, 2].

    P = ((|x1 − a1| + |x2 − a2|)/W + (|y1 − b1| + |y2 − b2|)/H)/4 with W, H the size of the target. Nothing is
    detached.
    """
    return (1 - torch.exp(-edge_distance(pair).square()),)


@box_loss(
    "piou-v2",
    aliases=("piouv2", "piou2", "powerful-iou-v2", "powerful-iouv2"),
    formula="3x·exp(−x²)·piou, x = λ·exp(−P)",
    latex=(r"L = \text{sg}(3x\,e^{-x^2}) \cdot (1 - \text{IoU} + 1 - e^{-P^2})", r"x = \lambda\,e^{-P}"),
    paper=PAPER,
    note="The attention 3x·exp(−x²) is detached: differentiated, as in the authors' code, it pushes far boxes away.",
)
def piou_v2(
    pred: Tensor,
    target: Tensor,
    *,
    piou_lambda: Annotated[float, Option("which quality of boxes gets the most attention", above=0)] = 1.3,
) -> Tensor:
    """PIoU v2 = sg(3x·exp(−x²))·(1 − IoU + 1 − exp(−P²)) with x = λ·exp(−P), in [0, 2.6).

    The attention is a constant of the gradient. In the authors' code it is not, and then the loss of a box without
    overlap falls with its distance from P = 0.943 on.
    """
    pair = Pair(pred, target)
    x = piou_lambda * torch.exp(-edge_distance(pair).detach())
    return 3 * x * torch.exp(-x.square()) * (1 - pair.iou + sum(piou(pair)))


def edge_distance(pair: Pair) -> Tensor:
    """Return the mean distance of the four edges in units of the target's size (N,)."""
    edges = (pair.pred - pair.target).abs()
    return ((edges[:, :2] + edges[:, 2:]) / pair.target_size.clamp(min=MIN_SIDE)).sum(-1) / 4

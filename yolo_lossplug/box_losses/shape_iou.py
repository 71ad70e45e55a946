# SPDX-License-Identifier: AGPL-3.0-or-later
"""Zhang and Zhang, Shape-IoU: More Accurate Metric considering Bounding Box Shape and Scale, 2023."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from yolo_lossplug.boxes import Pair, power, ratio, relative_difference
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import Option, overlap_loss

PAPER = Paper(
    "https://arxiv.org/abs/2312.17663",
    "Zhang, Hao and Zhang, Shuaijie",
    "Shape-IoU: More Accurate Metric considering Bounding Box Shape and Scale",
    "arXiv",
    2023,
)


@overlap_loss(
    "shape-iou",
    aliases=("shapeiou",),
    formula="1 − IoU + hh·dx²/c² + ww·dy²/c² + Ω/2",
    latex=(
        r"L = 1 - \text{IoU} + \frac{h_s\,d_x^2 + w_s\,d_y^2}{c^2} + \frac{\Omega}{2}",
        r"w_s = \frac{2W^s}{W^s + H^s}, \quad h_s = \frac{2H^s}{W^s + H^s}",
        (
            r"\Omega = \left(1 - e^{-h_s \left|w - W\right| / \max(w, W)}\right)^4 + \left(1 - e^{-w_s "
            r"\left|h - H\right| / \max(h, H)}\right)^4"
        ),
    ),
    paper=PAPER,
    note="With shape_scale=0 the shape of the target has no influence; the authors choose it for each dataset.",
)
def shape_iou(
    pair: Pair,
    *,
    shape_scale: Annotated[float, Option("influence of the target's shape; 0 for none", at_least=0)] = 0.0,
) -> tuple[Tensor, ...]:
    """Shape-IoU loss = 1 − IoU + hh·dx²/c² + ww·dy²/c² + Ω/2.

    ww = 2W^s/(W^s + H^s) and hh = 2H^s/(W^s + H^s) of the target; they weigh the other axis on purpose.
    Ω = (1 − exp(−hh·|w − W|/max(w, W)))⁴ + (1 − exp(−ww·|h − H|/max(h, H)))⁴. The penalties are the distance and half
    the shape cost. Nothing is detached.
    """
    larger = pair.target_size.amax(-1, keepdim=True)
    powers = power(ratio(pair.target_size, larger.expand_as(pair.target_size)), shape_scale)  # W^s itself may overflow
    crossed = ratio(2 * powers, powers.sum(-1, keepdim=True)).flip(-1)
    distance = ratio((crossed * pair.offset.square()).sum(-1), pair.hull_size.square().sum(-1))
    shape = (1 - torch.exp(-crossed * relative_difference(pair.size, pair.target_size))).pow(4).sum(-1)
    return distance, shape / 2

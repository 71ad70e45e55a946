# SPDX-License-Identifier: AGPL-3.0-or-later
"""Zheng et al., Distance-IoU Loss: Faster and Better Learning for Bounding Box Regression, AAAI 2020."""

from __future__ import annotations

import math

from torch import Tensor

from yolo_lossplug.boxes import Pair, aspect_angle, ratio
from yolo_lossplug.forms import BoxKernel, BoxKind
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import overlap_loss

PAPER = Paper(
    "https://arxiv.org/abs/1911.08287",
    "Zheng, Zhaohui and Wang, Ping and Liu, Wei and Li, Jinze and Ye, Rongguang and Ren, Dongwei",
    "Distance-IoU Loss: Faster and Better Learning for Bounding Box Regression",
    "AAAI",
    2020,
    booktitle="Proceedings of the AAAI Conference on Artificial Intelligence",
    volume="34",
    number="07",
    pages="12993--13000",
    doi="10.1609/aaai.v34i07.6999",
)


@overlap_loss(
    "diou",
    aliases=("distance-iou",),
    formula="1 − IoU + ρ²/c²",
    latex=r"L = 1 - \text{IoU} + \frac{\rho^2}{c^2}",
    paper=PAPER,
    kernel=lambda: BoxKernel(BoxKind.DIOU),
)
def diou(pair: Pair) -> tuple[Tensor, ...]:
    """DIoU loss = 1 − IoU + ρ²/c², in [0, 2): ρ the distance of the centres, c the enclosing diagonal, Eq. 7.

    Nothing is detached, c² included.
    """
    return (pair.centre_distance,)


@overlap_loss(
    "ciou",
    aliases=("complete-iou",),
    formula="1 − IoU + ρ²/c² + sg(α)·v",
    latex=(
        r"L = 1 - \text{IoU} + \frac{\rho^2}{c^2} + \text{sg}(\alpha)\,v",
        r"v = \frac{4}{\pi^2}\left(\arctan\frac{W}{H} - \arctan\frac{w}{h}\right)^2",
        r"\alpha = \frac{v}{1 - \text{IoU} + v}",
    ),
    paper=PAPER,
    note="What Ultralytics trains with. The aspect term vanishes for boxes of equal aspect but different size.",
)
def ciou(pair: Pair) -> tuple[Tensor, ...]:
    """CIoU loss = 1 − IoU + ρ²/c² + α·v, in [0, 2.5), Eq. 8 to 11, in the AAAI form: α has no gate at IoU 0.5.

    v = 4/π² · (arctan(W/H) − arctan(w/h))² and α = v / (1 − IoU + v), which is detached. The penalties are the
    distance of the centres and the weighted difference of aspect.
    """
    v = (4 / math.pi**2) * (aspect_angle(pair.target_size) - aspect_angle(pair.size)).square()
    alpha = ratio(v, 1 - pair.iou + v).detach()
    return pair.centre_distance, alpha * v

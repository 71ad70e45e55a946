# SPDX-License-Identifier: AGPL-3.0-or-later
"""Rezatofighi et al., Generalized Intersection over Union, CVPR 2019."""

from __future__ import annotations

from torch import Tensor

from yolo_lossplug.boxes import Pair, ratio
from yolo_lossplug.forms import BoxKernel, BoxKind
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import overlap_loss

PAPER = Paper(
    "https://arxiv.org/abs/1902.09630",
    "Rezatofighi, Hamid and Tsoi, Nathan and Gwak, JunYoung and Sadeghian, Amir and Reid, Ian and Savarese, Silvio",
    "Generalized Intersection over Union: A Metric and A Loss for Bounding Box Regression",
    "CVPR",
    2019,
    booktitle="Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)",
    pages="658--666",
    doi="10.1109/CVPR.2019.00075",
)


@overlap_loss(
    "giou",
    aliases=("generalized-iou",),
    formula="1 − IoU + (C − U)/C",
    latex=r"L = 1 - \text{IoU} + \frac{C - U}{C}",
    paper=PAPER,
    note="Equals iou where one box lies inside the other; slow on boxes far apart.",
    kernel=lambda: BoxKernel(BoxKind.GIOU),
)
def giou(pair: Pair) -> tuple[Tensor, ...]:
    """GIoU loss = 1 − IoU + (C − U)/C, in [0, 2), with U the union and C the area of the enclosing box: Algorithm 2.

    Nothing is detached.
    """
    return (ratio(pair.hull_area - pair.union, pair.hull_area),)

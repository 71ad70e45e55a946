# SPDX-License-Identifier: AGPL-3.0-or-later
"""Rezatofighi et al., Generalized Intersection over Union, CVPR 2019."""

from __future__ import annotations

from torch import Tensor

from yolo_lossplug.boxes import Pair, ratio
from yolo_lossplug.registry import overlap_loss


@overlap_loss(
    "giou",
    formula="1 − IoU + (C − U)/C",
    paper="https://arxiv.org/abs/1902.09630",
    year=2019,
    note="Equals iou where one box lies inside the other; slow on boxes far apart.",
)
def giou(pair: Pair) -> tuple[Tensor, ...]:
    """GIoU loss = 1 − IoU + (C − U)/C, in [0, 2), with U the union and C the area of the enclosing box: Algorithm 2.

    Args:
        pair: Predicted and target boxes.

    Returns:
        One penalty (N,). Nothing is detached.
    """
    return (ratio(pair.hull_area - pair.union, pair.hull_area),)

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Zheng et al., Distance-IoU Loss, AAAI 2020: non-maximum suppression by DIoU."""

from __future__ import annotations

import torch
from torch import Tensor

from yolo_lossplug.boxes import Pair


def diou_nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Keep the best box, drop every other one whose IoU − ρ²/c² with it exceeds the threshold, and so on.

    Args:
        boxes: Boxes (N, 4), x1 y1 x2 y2, any unit; those of different classes lie apart.
        scores: Their scores (N,).
        threshold: Largest IoU − ρ²/c² of two boxes that are both kept, in [0, 1].

    Returns:
        Indices of the kept boxes, best first (K,).
    """
    order = scores.argsort(descending=True)
    boxes, kept = boxes.float(), []
    while order.numel():
        best, order = order[:1], order[1:]
        kept.append(best)
        pair = Pair(boxes[best].expand(len(order), 4), boxes[order])
        order = order[pair.iou - pair.centre_distance <= threshold]
    return torch.cat(kept) if kept else order

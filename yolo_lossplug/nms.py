# SPDX-License-Identifier: AGPL-3.0-or-later
"""Zheng et al., Distance-IoU Loss, AAAI 2020: non-maximum suppression by DIoU."""

from __future__ import annotations

import torch
from torch import Tensor

from yolo_lossplug.boxes import ratio

BLOCK = 256
"""Boxes that are decided upon together: large enough for few steps, small enough for a small matrix."""


def diou_nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Keep the best box, drop every other one whose IoU − ρ²/c² with it exceeds the threshold, and so on.

    Args:
        boxes: Boxes (N, 4), x1 y1 x2 y2, any unit; those of different classes lie apart.
        scores: Their scores (N,).
        threshold: Largest IoU − ρ²/c² of two boxes that are both kept, in [0, 1].

    Returns:
        Indices of the kept boxes, best first (K,).
    """
    order, boxes = scores.argsort(descending=True), boxes.float()
    kept = [order[:0]]
    while order.numel():
        block, order = order[:BLOCK], order[BLOCK:]
        block = block[_survivors(pairwise_diou(boxes[block], boxes[block]) > threshold)]
        order = order[~(pairwise_diou(boxes[block], boxes[order]) > threshold).any(0)]
        kept.append(block)
    return torch.cat(kept)


def pairwise_diou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return IoU − ρ²/c² of every box (N, 4) with every other (M, 4): (N, M), in [-1, 1]."""
    (x1, y1, x2, y2), (a1, b1, a2, b2) = (column.unbind(-1) for column in (boxes.unsqueeze(1), others.unsqueeze(0)))
    inter = (torch.minimum(x2, a2) - torch.maximum(x1, a1)).relu_()
    inter *= (torch.minimum(y2, b2) - torch.maximum(y1, b1)).relu_()
    union = (x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - inter
    distance = (x1 + x2 - a1 - a2).square_().add_((y1 + y2 - b1 - b2).square_()).div_(4)
    diagonal = (torch.maximum(x2, a2) - torch.minimum(x1, a1)).square_()
    diagonal += (torch.maximum(y2, b2) - torch.minimum(y1, b1)).square_()
    return ratio(inter, union) - ratio(distance, diagonal)


def _survivors(drops: Tensor) -> Tensor:
    """Return which of some boxes (B,), best first, remain, if each that remains drops those that its row names."""
    rows, alive = drops.cpu().numpy(), torch.ones(len(drops), dtype=torch.bool)
    flags = alive.numpy()
    for i in range(len(rows)):
        if flags[i]:
            flags[i + 1 :] &= ~rows[i, i + 1 :]
    return alive.to(drops.device)

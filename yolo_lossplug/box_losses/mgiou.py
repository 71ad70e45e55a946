# SPDX-License-Identifier: AGPL-3.0-or-later
"""Le et al., Marginalized Generalized IoU, 2025: a loss of the obb task."""

from __future__ import annotations

import torch
from torch import Tensor

from yolo_lossplug.box_losses.rotated import MIN_ROTATED_SIDE
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import rotated_box_loss

PAPER = Paper(
    "https://arxiv.org/abs/2504.16443",
    "Le, Duy-Tho and Pham, Trung and Cai, Jianfei and Rezatofighi, Hamid",
    "Marginalized Generalized IoU (MGIoU): A Unified Objective Function for Optimizing Any Convex Parametric Shapes",
    "arXiv",
    2025,
)


@rotated_box_loss(
    "mgiou",
    aliases=("mg-iou", "marginalized-giou"),
    formula="(1 − mean GIoU of the projections on the edge normals of both boxes)/2",
    latex=(
        r"L = \frac{1}{2}\left(1 - \frac{1}{4}\sum_{i=1}^{4} g_i\right)",
        r"g = \frac{I}{U} - \frac{\text{hull} - U}{\text{hull}}",
        "U = l_p + l_t - I",
    ),
    paper=PAPER,
    note="Measures edges instead of Gaussians: the angle of a square counts too. It is no overlap of areas: a shift "
    "along one edge shows on half of the axes. The loss is smaller than ProbIoU's, so a larger gain 'box' may be "
    "needed. Its derivative by the angle jumps where edges are parallel.",
)
def mgiou(pred: Tensor, target: Tensor) -> Tensor:
    """MGIoU loss = (1 − mean g)/2, in [0, 1), over four axes, the edge normals of both boxes.

    On an axis, boxes are intervals with an overlap I, a union U of their lengths less I, and a hull:
    g = I/U − (hull − U)/hull, which is d/hull, d the overlap where there is one, and minus the gap where there is
    none. Nothing is detached; by the angle, the gradient is 0 where edges are exactly parallel.
    """
    half, target_half = (boxes[:, 2:4].clamp(min=MIN_ROTATED_SIDE) / 2 for boxes in (pred, target))
    turn, offset = pred[:, 4:] - target[:, 4:], pred[:, :2] - target[:, :2]
    reach = torch.cat((half, _reach(half, turn)), -1)  # on the predicted box's axes, then on the target's
    target_reach = torch.cat((_reach(target_half, turn), target_half), -1)
    distance = torch.cat([_along(offset, boxes[:, 4:]) for boxes in (pred, target)], -1).abs()
    shorter, longer = 2 * torch.minimum(reach, target_reach), 2 * torch.maximum(reach, target_reach)
    sides = reach + target_reach
    g = torch.minimum(sides - distance, shorter) / torch.maximum(sides + distance, longer)
    return (1 - g.mean(-1)) / 2


def _reach(half: Tensor, turn: Tensor) -> Tensor:
    """Return how far boxes with half sides (N, 2) reach along both axes of a box turned by an angle (N, 1)."""
    return half * torch.cos(turn).abs() + half.flip(-1) * torch.sin(turn).abs()


def _along(vector: Tensor, angle: Tensor) -> Tensor:
    """Return vectors (N, 2) in the axes of boxes of an angle (N, 1)."""
    (x, y), cos, sin = vector.split(1, -1), torch.cos(angle), torch.sin(angle)
    return torch.cat((x * cos + y * sin, y * cos - x * sin), -1)

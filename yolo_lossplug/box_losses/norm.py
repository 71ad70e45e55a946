# SPDX-License-Identifier: AGPL-3.0-or-later
"""Distances of coordinates. They grow with the size of the boxes; in training the unit is the level's grid cell."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from yolo_lossplug.registry import Option, box_loss

NOTE = "Not scale-invariant: counts a large box's error for more than a small one's, and knows nothing of overlap."


@box_loss("l1", formula="mean |p − t| over x1, y1, x2, y2", note=NOTE)
def l1(pred: Tensor, target: Tensor) -> Tensor:
    """L1 = mean over the four coordinates of |p − t|, in [0, ∞).

    Args:
        pred: Predicted boxes (N, 4), x1 y1 x2 y2.
        target: Target boxes (N, 4), same unit.

    Returns:
        Loss per pair (N,), in box units. Nothing is detached.

    >>> import torch
    >>> l1(torch.tensor([[1.0, 1, 3, 3]]), torch.tensor([[0.0, 0, 4, 6]]))
    tensor([1.5000])
    """
    return F.l1_loss(pred, target, reduction="none").mean(-1)


@box_loss("l2", formula="mean (p − t)² over x1, y1, x2, y2", note=NOTE)
def l2(pred: Tensor, target: Tensor) -> Tensor:
    """L2 = mean over the four coordinates of (p − t)², in [0, ∞); also known as MSE.

    Args:
        pred: Predicted boxes (N, 4), x1 y1 x2 y2.
        target: Target boxes (N, 4), same unit.

    Returns:
        Loss per pair (N,), in squared box units. Nothing is detached.

    >>> import torch
    >>> l2(torch.tensor([[1.0, 1, 3, 3]]), torch.tensor([[0.0, 0, 4, 6]]))
    tensor([3.])
    """
    return F.mse_loss(pred, target, reduction="none").mean(-1)


@box_loss(
    "smooth-l1",
    formula="mean of d²/2β where d = |p − t| < β, else d − β/2",
    paper="https://arxiv.org/abs/1504.08083",
    year=2015,
    note=NOTE,
)
def smooth_l1(
    pred: Tensor,
    target: Tensor,
    *,
    smooth_l1_beta: Annotated[float, Option("distance in grid cells where the square turns linear", above=0)] = 1.0,
) -> Tensor:
    """Smooth L1 = mean over the four coordinates of d²/2β where d = |p − t| < β, else d − β/2, in [0, ∞).

    Girshick, Fast R-CNN, ICCV 2015, Eq. 3 (there with β = 1).

    Args:
        pred: Predicted boxes (N, 4), x1 y1 x2 y2.
        target: Target boxes (N, 4), same unit.
        smooth_l1_beta: β, in box units.

    Returns:
        Loss per pair (N,), in box units. Nothing is detached.

    >>> import torch
    >>> smooth_l1(torch.tensor([[1.0, 1, 3, 3]]), torch.tensor([[0.0, 0, 3, 6]]))
    tensor([0.8750])
    """
    return F.smooth_l1_loss(pred, target, beta=smooth_l1_beta, reduction="none").mean(-1)

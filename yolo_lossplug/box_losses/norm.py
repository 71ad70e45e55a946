# SPDX-License-Identifier: AGPL-3.0-or-later
"""Distances of coordinates, which grow with the size of the boxes.

In training they are measured in cells of 8 pixels on every pyramid level, so that an error of as many pixels costs the
same on all of them. In a call without strides they are measured in the unit of the boxes.
"""

from __future__ import annotations

from typing import Annotated, Optional

import torch.nn.functional as F
from torch import Tensor

from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import Option, box_loss

PAPER = Paper(
    "https://arxiv.org/abs/1504.08083",
    "Girshick, Ross",
    "Fast R-CNN",
    "ICCV",
    2015,
    booktitle="Proceedings of the IEEE International Conference on Computer Vision (ICCV)",
    pages="1440--1448",
    doi="10.1109/ICCV.2015.169",
)
CELL = 8
"""Side in pixels of the cell that distances are measured in: that of the finest level of most models."""

UNIT_NOTE = "Not scale-invariant: counts a large box's error for more than a small one's, and knows nothing of overlap."


@box_loss(
    "l1",
    aliases=("mae",),
    formula="mean |p − t| over x1, y1, x2, y2",
    latex=r"L = \frac{1}{4}\sum_{i=1}^{4} \left|p_i - t_i\right|",
    note=UNIT_NOTE,
)
def l1(pred: Tensor, target: Tensor, *, stride: Optional[Tensor] = None) -> Tensor:
    """L1 = mean over the four coordinates of |p − t|, in [0, ∞).

    Measured in cells; nothing is detached.

    >>> import torch
    >>> l1(torch.tensor([[1.0, 1, 3, 3]]), torch.tensor([[0.0, 0, 4, 6]]))
    tensor([1.5000])
    """
    return F.l1_loss(*_in_cells(pred, target, stride), reduction="none").mean(-1)


@box_loss(
    "l2",
    aliases=("mse",),
    formula="mean (p − t)² over x1, y1, x2, y2",
    latex=r"L = \frac{1}{4}\sum_{i=1}^{4} (p_i - t_i)^2",
    note=UNIT_NOTE,
)
def l2(pred: Tensor, target: Tensor, *, stride: Optional[Tensor] = None) -> Tensor:
    """L2 = mean over the four coordinates of (p − t)², in [0, ∞); also known as MSE.

    Measured in squared cells; nothing is detached.

    >>> import torch
    >>> l2(torch.tensor([[1.0, 1, 3, 3]]), torch.tensor([[0.0, 0, 4, 6]]))
    tensor([3.])
    """
    return F.mse_loss(*_in_cells(pred, target, stride), reduction="none").mean(-1)


@box_loss(
    "smooth-l1",
    aliases=("smoothl1",),
    formula="mean of d²/2β where d = |p − t| < β, else d − β/2",
    latex=(
        r"L = \frac{1}{4}\sum_{i=1}^{4} f(\left|p_i - t_i\right|)",
        r"f(d) = \begin{cases} \frac{d^2}{2\beta} & d < \beta \\ d - \frac{\beta}{2} & d \ge \beta \end{cases}",
    ),
    paper=PAPER,
    note=UNIT_NOTE,
)
def smooth_l1(
    pred: Tensor,
    target: Tensor,
    *,
    stride: Optional[Tensor] = None,
    smooth_l1_beta: Annotated[
        float, Option("distance in cells of 8 pixels where the square turns linear", above=0)
    ] = 1.0,
) -> Tensor:
    """Smooth L1 = mean over the four coordinates of d²/2β where d = |p − t| < β, else d − β/2, in [0, ∞).

    Eq. 3 of the paper, there with β = 1. Measured in cells; nothing is detached.

    >>> import torch
    >>> smooth_l1(torch.tensor([[1.0, 1, 3, 3]]), torch.tensor([[0.0, 0, 3, 6]]))
    tensor([0.8750])
    """
    return F.smooth_l1_loss(*_in_cells(pred, target, stride), beta=smooth_l1_beta, reduction="none").mean(-1)


def _in_cells(pred: Tensor, target: Tensor, stride: Optional[Tensor]) -> tuple[Tensor, Tensor]:
    return (pred, target) if stride is None else (pred * (stride / CELL), target * (stride / CELL))

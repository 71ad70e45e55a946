# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ma and Xu, MPDIoU: A Loss for Efficient and Accurate Bounding Box Regression, 2023."""

from __future__ import annotations

from typing import Optional

from torch import Tensor

from yolo_lossplug.boxes import Pair
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import overlap_loss

PAPER = Paper(
    "https://arxiv.org/abs/2307.07662",
    "Ma, Siliang and Xu, Yong",
    "MPDIoU: A Loss for Efficient and Accurate Bounding Box Regression",
    "arXiv",
    2023,
)
DEFAULT_IMGSZ = 640
"""Side of the image in pixels where a call by hand gives none: Ultralytics' own default."""


@overlap_loss(
    "mpdiou",
    aliases=("mpd-iou", "mpd"),
    formula="1 − IoU + d₁²/(w² + h²) + d₂²/(w² + h²), w and h of the image",
    latex=(
        r"L = 1 - \text{IoU} + \frac{d_1^2 + d_2^2}{w_{\text{image}}^2 + h_{\text{image}}^2}",
        "d_1^2 = (x_1 - a_1)^2 + (y_1 - b_1)^2",
        "d_2^2 = (x_2 - a_2)^2 + (y_2 - b_2)^2",
    ),
    paper=PAPER,
    note="The penalties of small boxes in a large image are tiny: close to plain iou there.",
)
def mpdiou(pair: Pair, *, stride: Optional[Tensor], imgsz: Optional[Tensor]) -> tuple[Tensor, ...]:
    """MPDIoU loss = 1 − IoU + (d₁² + d₂²)/(w² + h²), in [0, 3) inside the image.

    d₁ and d₂ are the distances of the top left and of the bottom right corners, w and h the sides of the network
    input, all in pixels; without `imgsz` the image counts as 640 x 640. Nothing is detached.
    """
    squares = (pair.pred - pair.target).square()
    if stride is not None:
        squares = squares * stride.square()
    diagonal = 2 * DEFAULT_IMGSZ**2 if imgsz is None else imgsz.square().sum()
    return squares[:, :2].sum(-1) / diagonal, squares[:, 2:].sum(-1) / diagonal

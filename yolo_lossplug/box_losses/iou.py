# SPDX-License-Identifier: AGPL-3.0-or-later
"""Intersection over union alone, linear and logarithmic."""

from __future__ import annotations

from torch import Tensor

from yolo_lossplug.boxes import Pair
from yolo_lossplug.forms import BoxKernel, BoxKind
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import box_loss, overlap_loss

PAPER = Paper(
    "https://arxiv.org/abs/1608.01471",
    "Yu, Jiahui and Jiang, Yuning and Wang, Zhangyang and Cao, Zhimin and Huang, Thomas",
    "UnitBox: An Advanced Object Detection Network",
    "ACM MM",
    2016,
    booktitle="Proceedings of the 24th ACM International Conference on Multimedia",
    pages="516--520",
    doi="10.1145/2964284.2967274",
)
MIN_IOU = 1e-6
"""Floor of the IoU under the logarithm: a pair without overlap costs −ln 1e-6 = 13.8155."""


@overlap_loss(
    "iou",
    formula="1 − IoU",
    latex=(r"L = 1 - \text{IoU}", r"\text{IoU} = \frac{\left|P \cap T\right|}{\left|P \cup T\right|}"),
    paper=PAPER,
    note="No gradient for boxes that do not overlap.",
    kernel=lambda: BoxKernel(BoxKind.IOU),
)
def iou(pair: Pair) -> tuple[Tensor, ...]:
    """IoU loss = 1 − IoU, in [0, 1]: the linear form of the loss of Yu et al., UnitBox, ACM MM 2016.

    Nothing is detached.
    """
    return ()


@box_loss(
    "log-iou",
    aliases=("logiou",),
    formula="−ln IoU",
    latex=r"L = -\ln \max(\text{IoU},\, 10^{-6})",
    paper=PAPER,
    note="No gradient for boxes that do not overlap.",
)
def log_iou(pred: Tensor, target: Tensor) -> Tensor:
    """Log IoU = −ln max(IoU, 1e-6), in [0, 13.8155]: Yu et al., UnitBox, ACM MM 2016.

    Nothing is detached; the gradient is 0 below the floor.

    >>> import torch
    >>> log_iou(torch.tensor([[1.0, 1, 3, 3]]), torch.tensor([[0.0, 0, 4, 4]]))  # −ln(4/16)
    tensor([1.3863])
    """
    return -Pair(pred, target).iou.clamp(min=MIN_IOU).log()

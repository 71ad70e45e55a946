# SPDX-License-Identifier: AGPL-3.0-or-later
"""Wang and Zhang, Single-Shot Two-Pronged Detector with Rectified IoU Loss, ACM MM 2020."""

from __future__ import annotations

import math
from functools import cache
from typing import Annotated

import torch
from torch import Tensor

from yolo_lossplug.boxes import Pair
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import Option, box_loss

PAPER = Paper(
    "https://arxiv.org/abs/2008.03511",
    "Wang, Keyang and Zhang, Lei",
    "Single-Shot Two-Pronged Detector with Rectified IoU Loss",
    "ACM MM",
    2020,
    booktitle="Proceedings of the 28th ACM International Conference on Multimedia",
)


@box_loss(
    "riou",
    formula="a(1 − u²)/2 + b(1 − u) − k·ln((c − u)/(c − 1)), u = IoU",
    latex=(
        r"L = \frac{a}{2}(1 - u^2) + b\,(1 - u) - k \ln\frac{c - u}{c - 1}, \quad u = \text{IoU}",
        r"-\frac{dL}{du} = a\,u + b - \frac{k}{c - u}",
    ),
    paper=PAPER,
    note="Our reconstruction: the paper gives the shape of the gradient, its constants could not be obtained.",
)
def riou(
    pred: Tensor,
    target: Tensor,
    *,
    riou_beta: Annotated[float, Option("IoU of the largest gradient", above=0.5, below=1)] = 0.95,
) -> Tensor:
    """Rectified IoU = a(1 − u²)/2 + b(1 − u) − k·ln((c − u)/(c − 1)) with u = IoU, in [0, 1]. A reconstruction.

    Its gradient −dL/du = a·u + b − k/(c − u) is a hyperbola that rises from 0 at u = 0 to its maximum at u = β and
    falls to 0 at u = 1, so that pairs of high IoU are emphasised, and those of low IoU damped. That much is from the
    paper; that L(0) = 1, L(1) = 0 and that the gradient is 0 at u = 0 are our choices, which fix the four
    constants. Nothing is detached; no gradient for boxes that do not overlap.

    >>> riou(torch.tensor([[0.0, 0, 2, 1]]), torch.tensor([[0.0, 0, 2, 2]]))  # u = 1/2
    tensor([0.7441])
    """
    a, b, gap, k = hyperbola(riou_beta)
    u = Pair(pred, target).iou
    # The terms are large and cancel where beta is near 1/2. One kind of device has no float64.
    exact = u if u.device.type == "mps" else u.double()
    loss = a * (1 - exact.square()) / 2 + b * (1 - exact) - k * torch.log1p((1 - exact) / gap)
    return loss.to(u.dtype)


@cache
def hyperbola(beta: float) -> tuple[float, float, float, float]:
    """Return a, b, c − 1, k of −dL/du = a·u + b − k/(c − u), largest at u = beta and 0 at u = 0 and u = 1."""
    delta = 1 - beta
    s = delta * beta / (beta - delta)  # distance of the pole c from beta for which the gradient is 0 at u = 0
    gap = delta**2 / (beta - delta)  # c − 1 = s − delta, without the cancellation
    a = 1 / (beta**2 / (beta - delta) - 1 / 2 - s**2 * math.log1p(1 / gap))
    k = a * s**2
    return a, k / gap - a, gap, k

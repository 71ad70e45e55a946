# SPDX-License-Identifier: AGPL-3.0-or-later
"""Yu et al., YOLO-FaceV2: A Scale and Occlusion Aware Face Detector, 2022."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from yolo_lossplug.class_losses.bce import bce
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import class_loss
from yolo_lossplug.state import Scope, reduce, scope_or_new

PAPER = Paper(
    "https://arxiv.org/abs/2208.02019",
    "Yu, Ziping and Huang, Hongbo and Chen, Weijun and Su, Yongxin and Liu, Yahui and Wang, Xiuying",
    "YOLO-FaceV2: A Scale and Occlusion Aware Face Detector",
    "arXiv",
    2022,
)
MIN_TARGET_MEAN, BAND = 0.2, 0.1
DECAY, WARM_UP = 0.999, 2000


@class_loss(
    "slide",
    aliases=("slide-loss", "slideloss"),
    formula="f(y)·BCE, f = 1 below μ − 0.1, e^(1 − μ) below μ, else e^(1 − y); μ the mean target of assigned anchors",
    latex=(
        r"L = f(y) \cdot \text{BCE}",
        (
            r"f(y) = \begin{cases} 1 & y \le \mu - 0.1 \\ e^{1 - \mu} & \mu - 0.1 < y < \mu \\ e^{1 - y} & y "
            r"\ge \mu \end{cases}"
        ),
    ),
    paper=PAPER,
    note="Raises elements whose target lies near the mean, the hard ones.",
)
def slide(logits: Tensor, targets: Tensor) -> Tensor:
    """Slide = f(y)·BCE, in [0, ∞): f raises targets from just below their mean μ on, most next to it.

    μ is the mean of the targets above 0, and at least 0.2.
    """
    total, count = _assigned(targets)
    return weights(targets, total / count.clamp(min=1)) * bce(logits, targets)


@class_loss(
    "ema-slide",
    aliases=("emaslide", "ema-slide-loss", "emaslideloss"),
    formula="slide with μ a moving average over the steps",
    latex=(
        r"L = f(y) \cdot \text{BCE}, \quad f \text{ as of slide}",
        r"\mu \gets d\,\mu + (1 - d)\,\overline{y}, \quad d = 0.999\,(1 - e^{-n/2000})",
    ),
    note="Community practice, no paper behind it. Has a state; μ starts at 1.",
)
def ema_slide(logits: Tensor, targets: Tensor, *, state: Optional[Scope] = None) -> Tensor:
    """EMA-Slide = slide with μ ← d·μ + (1 − d)·mean, d = 0.999·(1 − e^(−n/2000)) at step n, μ = 1 at the start."""
    remembered = scope_or_new(state)
    total, count = _assigned(targets)
    mean, steps = remembered.get("target", total.new_ones(())), remembered.get("steps", total.new_zeros(()))
    if remembered.is_training:
        total, count = reduce(torch.stack((total, count))).unbind()
        seen = (count > 0).to(steps.dtype)
        steps = steps + seen
        decay = 1 - (1 - DECAY * (1 - torch.exp(-steps / WARM_UP))) * seen  # no object, no step
        mean = decay * mean + (1 - decay) * total / count.clamp(min=1)
        remembered.put("target", mean)
        remembered.put("steps", steps)
    return weights(targets, mean) * bce(logits, targets)


def weights(targets: Tensor, mean: Tensor) -> Tensor:
    """Return f(y), same shape; the authors' corrected form, which is continuous at μ."""
    mean = mean.to(targets.dtype).clamp(min=MIN_TARGET_MEAN)
    near = torch.where(targets < mean, torch.exp(1 - mean), torch.exp(1 - targets))
    return torch.where(targets <= mean - BAND, torch.ones_like(targets), near)


def _assigned(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum and number of the targets above 0."""
    return targets.sum(), (targets > 0).sum().to(targets.dtype)

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tong et al., Wise-IoU: Bounding Box Regression Loss with Dynamic Focusing Mechanism, 2023."""

from __future__ import annotations

from typing import Annotated, Optional

import torch
from torch import Tensor

from yolo_lossplug.box_losses.algebra import Terms
from yolo_lossplug.box_losses.modifiers import WEIGHT, weigh
from yolo_lossplug.boxes import Pair, ratio
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import Option, box_loss, modifier
from yolo_lossplug.state import Scope, scope_or_new

PAPER = Paper(
    "https://arxiv.org/abs/2301.10051",
    "Tong, Zanjia and Chen, Yuhang and Xu, Zewei and Yu, Rong",
    "Wise-IoU: Bounding Box Regression Loss with Dynamic Focusing Mechanism",
    "arXiv",
    2023,
)
MIN_MEAN = 1e-4
"""Floor of the running mean that outliers are measured by: a run of perfect boxes must not divide by 0."""

Momentum = Annotated[float, Option("weight of a step in the running mean of 1 − IoU", above=0, at_most=1)]
Alpha = Annotated[float, Option("α of the focusing factor, which grows as α^δ", above=1, at_most=10)]
Delta = Annotated[float, Option("δ, the outlier degree whose factor is 1; it grows as α^δ", above=0, at_most=10)]


@box_loss(
    "wiou",
    aliases=("wiou-v1", "wiouv1", "wiou1", "wise-iou-v1", "wise-iouv1"),
    formula="exp(ρ²/sg(c²))·(1 − IoU)",
    latex=r"L = e^{\rho^2 / \text{sg}(c^2)} \cdot (1 - \text{IoU})",
    paper=PAPER,
    note="Version 1, without focusing.",
)
def wiou(pred: Tensor, target: Tensor) -> Tensor:
    """Wise-IoU v1 = exp(ρ²/c²)·(1 − IoU), in [0, e); c² is detached, so that the enclosing box does not grow."""
    return _attended(Pair(pred, target))


@box_loss(
    "wiou-v2",
    aliases=("wiouv2", "wiou2", "wise-iou-v2", "wise-iouv2"),
    formula="(sg(1 − IoU)/m)^γ·wiou, m a running mean of 1 − IoU",
    latex=r"L = \beta^{\gamma} \cdot L_{\text{wiou}}, \quad \beta = \frac{\text{sg}(1 - \text{IoU})}{m}",
    paper=PAPER,
    note="Has a state: its scale depends on the history of the run.",
)
def wiou_v2(
    pred: Tensor,
    target: Tensor,
    *,
    state: Optional[Scope] = None,
    wiou_gamma: Annotated[float, Option("exponent of the outlier degree; 0 is version 1", at_least=0)] = 0.5,
    wiou_momentum: Momentum = 0.01,
) -> Tensor:
    """Wise-IoU v2 = (sg(1 − IoU)/m)^γ·v1 with m the running mean of 1 − IoU, 1 at the start."""
    pair = Pair(pred, target)
    return outlier_degree(pair, state, wiou_momentum).pow(wiou_gamma) * _attended(pair)


@box_loss(
    "wiou-v3",
    aliases=("wiouv3", "wiou3", "wise-iou-v3", "wise-iouv3"),
    formula="β/(δ·α^(β − δ))·wiou, β = sg(1 − IoU)/m, m a running mean of 1 − IoU",
    latex=r"L = \frac{\beta}{\delta\,\alpha^{\beta - \delta}} \cdot L_{\text{wiou}}, \quad \beta = "
    r"\frac{\text{sg}(1 - \text{IoU})}{m}",
    paper=PAPER,
    note="Has a state: its scale depends on the history of the run.",
)
def wiou_v3(
    pred: Tensor,
    target: Tensor,
    *,
    state: Optional[Scope] = None,
    wiou_alpha: Alpha = 1.9,
    wiou_delta: Delta = 3.0,
    wiou_momentum: Momentum = 0.01,
) -> Tensor:
    """Wise-IoU v3 = r·v1 with r = β/(δ·α^(β − δ)) and β = sg(1 − IoU)/m, m the running mean of 1 − IoU."""
    pair = Pair(pred, target)
    return focusing(outlier_degree(pair, state, wiou_momentum), wiou_alpha, wiou_delta) * _attended(pair)


@modifier(
    "wise",
    stage=WEIGHT,
    formula="weight = β/(δ·α^(β − δ)), β = sg(1 − IoU)/m, m a running mean of 1 − IoU",
    latex=r"L \to \frac{\beta}{\delta\,\alpha^{\beta - \delta}} \cdot L, \quad \beta = \frac{\text{sg}(1 - "
    r"\text{IoU})}{m}",
    paper=PAPER,
    note="The focusing factor of wiou-v3 on another loss. Has a state.",
)
def wise(
    terms: Terms,
    *,
    state: Optional[Scope] = None,
    wiou_alpha: Alpha = 1.9,
    wiou_delta: Delta = 3.0,
    wiou_momentum: Momentum = 0.01,
) -> Terms:
    """Weight each pair by the focusing factor of Wise-IoU v3, which damps outliers and boxes that fit already."""
    return weigh(terms, focusing(outlier_degree(terms.pair, state, wiou_momentum), wiou_alpha, wiou_delta))


def outlier_degree(pair: Pair, state: Optional[Scope], momentum: float) -> Tensor:
    """Return β = sg(1 − IoU)/m (N,), and count the pairs for the next m."""
    loss = 1 - pair.iou.detach()
    mean = scope_or_new(state).running_mean("iou_loss", loss, momentum, initial=1.0)
    return loss / mean.to(loss.dtype).clamp(min=MIN_MEAN)


def focusing(beta: Tensor, alpha: float, delta: float) -> Tensor:
    """Return r = β/(δ·α^(β − δ)) (N,): 1 at β = δ, largest at β = 1/ln α."""
    return beta / (delta * alpha ** (beta - delta))


def _attended(pair: Pair) -> Tensor:
    diagonal = pair.hull_size.square().sum(-1).detach()
    return torch.exp(ratio(pair.offset.square().sum(-1), diagonal)) * (1 - pair.iou)

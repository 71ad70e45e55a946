# SPDX-License-Identifier: AGPL-3.0-or-later
"""Prefixes that change an overlap loss."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from yolo_lossplug.box_losses.algebra import Terms
from yolo_lossplug.box_losses.eiou import PAPER as FOCAL
from yolo_lossplug.boxes import power
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import Option, modifier

INNER = Paper(
    "https://arxiv.org/abs/2311.02877",
    "Zhang, Hao and Xu, Cong and Zhang, Shuaijie",
    "Inner-IoU: More Effective Intersection over Union Loss with Auxiliary Bounding Box",
    "arXiv",
    2023,
)
FOCALER = Paper(
    "https://arxiv.org/abs/2401.10525",
    "Zhang, Hao and Zhang, Shuaijie",
    "Focaler-IoU: More Focused Intersection over Union Loss",
    "arXiv",
    2024,
)
ALPHA = Paper(
    "https://arxiv.org/abs/2110.13675",
    "He, Jiabo and Erfani, Sarah and Ma, Xingjun and Bailey, James and Chi, Ying and Hua, Xian-Sheng",
    "Alpha-IoU: A Family of Power Intersection over Union Losses for Bounding Box Regression",
    "NeurIPS",
    2021,
    booktitle="Advances in Neural Information Processing Systems",
    volume="34",
    pages="20230--20242",
)
MEASURE, REMAP, RAISE, WEIGHT = range(4)
"""Stages: the overlap is measured, remapped and raised, then the sum of the terms is weighted."""

AlphaPower = Annotated[
    float, Option("exponent of the overlap and of each penalty; 1 changes nothing", above=0, at_most=20)
]
FocalGamma = Annotated[float, Option("exponent of the overlap in the weight; 0 changes nothing", at_least=0)]


@modifier(
    "inner",
    stage=MEASURE,
    formula="u → IoU of both boxes scaled by r about their centres",
    latex=(r"u \to \text{IoU}(p_r, t_r)", r"p_r = (x,\, y,\, r\,w,\, r\,h), \quad t_r = (X,\, Y,\, r\,W,\, r\,H)"),
    paper=INNER,
    note="r < 1 for data of high IoU, r > 1 for low; boxes that overlap may not when they are scaled down.",
)
def inner(
    terms: Terms, *, inner_ratio: Annotated[float, Option("factor of the sides; 1 changes nothing", above=0)] = 0.7
) -> Terms:
    """Measure the overlap on boxes scaled about their own centres; the penalties stay those of the boxes.

    The authors use r from 0.5 to 1.5.
    """
    return terms._replace(overlap=terms.pair.scaled(inner_ratio).iou)


@modifier(
    "focaler",
    stage=REMAP,
    formula="u → clip((u − d)/(e − d), 0, 1)",
    latex=r"u \to \min\left(\max\left(\frac{u - d}{e - d},\, 0\right),\, 1\right)",
    paper=FOCALER,
    note="No gradient of the overlap outside (d, e): with e = 0.95 a box stops improving there.",
    increasing=("focaler_d", "focaler_u"),
)
def focaler(
    terms: Terms,
    *,
    focaler_d: Annotated[float, Option("overlap d that counts as 0", at_least=0, below=1)] = 0.0,
    focaler_u: Annotated[float, Option("overlap e that counts as 1", above=0, at_most=1)] = 0.95,
) -> Terms:
    """Map the overlap linearly from [d, e] to [0, 1]."""
    return terms._replace(overlap=((terms.overlap - focaler_d) / (focaler_u - focaler_d)).clamp(0, 1))


@modifier(
    "alpha",
    stage=RAISE,
    formula="u → u^α, each penalty → penalty^α",
    latex=(r"u \to u^{\alpha}", r"P_i \to P_i^{\alpha} \quad \text{for each penalty}"),
    paper=ALPHA,
    note="α > 1 raises the weight of pairs of high IoU.",
    bases=("iou", "giou", "diou", "ciou", "eiou"),
)
def alpha_iou(terms: Terms, *, alpha_power: AlphaPower = 3.0) -> Terms:
    """Raise the overlap and each penalty to the power α.

    CIoU's own trade-off is that of the IoU before the power, and is raised with its v, as in the authors' code.
    """
    return terms._replace(
        overlap=power(terms.overlap, alpha_power),
        penalties=tuple(power(penalty, alpha_power) for penalty in terms.penalties),
    )


@modifier(
    "focal",
    stage=WEIGHT,
    formula="weight = sg(IoU^γ)",
    latex=r"L \to \text{sg}(\text{IoU}^{\gamma}) \cdot L",
    paper=FOCAL,
    note="Boxes that do not overlap their target get loss 0 and gradient 0.",
)
def focal_iou(terms: Terms, *, focal_gamma: FocalGamma = 0.5) -> Terms:
    """Weight each pair by its detached IoU to the power γ."""
    return weigh(terms, terms.pair.iou.detach().pow(focal_gamma))


def weigh(terms: Terms, weight: Tensor) -> Terms:
    """Return the terms with another factor (N,) of their sum."""
    return terms._replace(weight=weight if terms.weight is None else terms.weight * weight)

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Prefixes that change an overlap loss."""

from __future__ import annotations

from typing import Annotated

from yolo_lossplug.box_losses.algebra import Terms
from yolo_lossplug.boxes import power
from yolo_lossplug.registry import Option, modifier

RAISE, WEIGHT = 1, 2
"""Stages: the terms are raised before their sum is weighted."""


@modifier(
    "alpha",
    stage=RAISE,
    formula="u → u^α, each penalty → penalty^α",
    paper="https://arxiv.org/abs/2110.13675",
    year=2021,
    note="α > 1 raises the weight of pairs of high IoU.",
    bases=("iou", "giou", "diou", "ciou", "eiou"),
)
def alpha(
    terms: Terms,
    *,
    alpha_power: Annotated[
        float, Option("exponent of the overlap and of each penalty; 1 changes nothing", above=0)
    ] = 3.0,
) -> Terms:
    """Raise the overlap and each penalty to the power α.

    He et al., Alpha-IoU: A Family of Power IoU Losses for Bounding Box Regression, NeurIPS 2021. CIoU's own
    trade-off is that of the IoU before the power, and is raised together with its v, as in the authors' code.

    Args:
        terms: The terms of a loss.
        alpha_power: α.

    Returns:
        The terms, raised.
    """
    return terms._replace(
        overlap=power(terms.overlap, alpha_power),
        penalties=tuple(power(penalty, alpha_power) for penalty in terms.penalties),
    )


@modifier(
    "focal",
    stage=WEIGHT,
    formula="weight = sg(IoU^γ)",
    paper="https://arxiv.org/abs/2101.08158",
    year=2022,
    note="Boxes that do not overlap their target get loss 0 and gradient 0.",
)
def focal(
    terms: Terms,
    *,
    focal_gamma: Annotated[float, Option("exponent of the IoU in the weight; 0 changes nothing", at_least=0)] = 0.5,
) -> Terms:
    """Weight each pair by its detached IoU to the power γ.

    Zhang et al., Focal and Efficient IOU Loss for Accurate Bounding Box Regression, Neurocomputing 2022.

    Args:
        terms: The terms of a loss.
        focal_gamma: γ.

    Returns:
        The terms, weighted.
    """
    weight = terms.pair.iou.detach().pow(focal_gamma)
    return terms._replace(weight=weight if terms.weight is None else terms.weight * weight)

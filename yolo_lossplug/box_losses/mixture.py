# SPDX-License-Identifier: AGPL-3.0-or-later
"""a·L₁ + (1 − a)·L₂: two box losses at once, ``loss=ciou+nwd loss_mix=0.7``."""

from __future__ import annotations

from typing import Any, Optional

from torch import Tensor

from yolo_lossplug.box_losses.algebra import Part
from yolo_lossplug.boxes import Pair
from yolo_lossplug.option import Option
from yolo_lossplug.state import Scope

SHARE = Option("share of the first of two losses, as in loss=ciou+nwd", above=0, below=1)
DEFAULT_SHARE = 0.5
FORMULA = "NAME+NAME: L = loss_mix·L₁ + (1 − loss_mix)·L₂"
MIXTURE_NOTE = (
    "The gradients of both losses differ in scale, so that the share of a loss is not its influence: compare several "
    "values of loss_mix. No mixture is known to be better than its parts on all data."
)
PAIR = "pair"
"""What a part that shares geometry wants of the context: both boxes as a `Pair`."""


def mix(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Return share·first + (1 − share)·second.

    Args:
        first: The first loss of each pair (N,).
        second: The second loss of each pair (N,).
        share: Share of the first, above 0 and below 1.

    Returns:
        One loss per pair (N,), between the two. Its gradient is the same mixture of both gradients.

    >>> import torch
    >>> mix(torch.tensor([1.0]), torch.tensor([0.5]), 0.25)
    tensor([0.6250])
    """
    return share * first + (1 - share) * second


def mixture_of(
    pred: Tensor, target: Tensor, first: Part, second: Part, share: float, state: Optional[Scope] = None, **context: Any
) -> Tensor:
    """Return the mixture of two box losses.

    Args:
        pred: Predicted boxes (N, 4), or (N, 5) for rotated ones, any unit.
        target: Target boxes of the same shape and unit.
        first: Gives a loss (N,) of both; one that wants a ``pair`` shares its geometry with the other.
        second: The other loss.
        share: Share of the first, above 0 and below 1.
        state: What both remember; each has its own numbers.
        **context: What the losses want besides.

    Returns:
        One loss per pair (N,).
    """
    shared = {**context, PAIR: Pair(pred, target)} if PAIR in first.wants | second.wants else context
    parts = {"first": first, "second": second}
    losses = [part({**shared, "state": state and state.scoped(name)}, pred, target) for name, part in parts.items()]
    return mix(losses[0], losses[1], share)

# SPDX-License-Identifier: AGPL-3.0-or-later
"""L = weight · (1 − u + Σ penalties): the form that every IoU-type loss shares, and that modifiers act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple, Optional

from torch import Tensor

from yolo_lossplug.boxes import Pair


class Terms(NamedTuple):
    """The parts of one overlap loss, before they are put together.

    Attributes:
        pair: The boxes, as passed in.
        overlap: u (N,), in [0, 1]; the IoU until a modifier changes it.
        penalties: What is added to 1 − u, each (N,) and >= 0.
        weight: Factor of the sum (N,), or None for 1.
    """

    pair: Pair
    overlap: Tensor
    penalties: tuple[Tensor, ...]
    weight: Optional[Tensor] = None


class Part(NamedTuple):
    """A base, a modifier or a whole loss with its options bound.

    Attributes:
        function: Takes a pair, terms, or predicted and target boxes.
        wants: Which of the context it takes besides.
    """

    function: Callable[..., Any]
    wants: frozenset[str] = frozenset()

    def __call__(self, context: Mapping[str, Any], *inputs: Any) -> Any:
        """Return the penalties of a pair, changed terms, or the loss of boxes."""
        return self.function(*inputs, **{key: context[key] for key in self.wants})


def overlap_loss_of(
    pred: Tensor,
    target: Tensor,
    *,
    base: Part,
    modifiers: Sequence[Part] = (),
    pair: Optional[Pair] = None,
    **context: Any,
) -> Tensor:
    """Return weight · (1 − u + Σ penalties) of each pair.

    Args:
        pred: Predicted boxes (N, 4), x1 y1 x2 y2, any unit.
        target: Target boxes (N, 4) in the same unit.
        base: Gives the penalties of a pair.
        modifiers: Change the terms, in this order.
        pair: Both boxes with the geometry that another loss has computed of them; None to compute it here.
        **context: What the base and the modifiers want besides.

    Returns:
        One loss per pair (N,), >= 0.
    """
    pair = Pair(pred, target) if pair is None else pair
    terms = Terms(pair, pair.iou, base(context, pair))
    for modify in modifiers:
        terms = modify(context, terms)
    loss = sum(terms.penalties, 1 - terms.overlap)
    return loss if terms.weight is None else terms.weight * loss

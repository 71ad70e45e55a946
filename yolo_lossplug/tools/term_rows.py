# SPDX-License-Identifier: AGPL-3.0-or-later
"""A term of the loss as `lossplug verify` shows it: its values, and its scale beside a default run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional

MAX_ERROR = 1e-3
"""Relative. The host's BCE loses up to 2e-4 of a sum over many logits far below 0; a wrong formula is off by more."""


@dataclass(frozen=True)
class Scale:
    """The scale of a term beside that of a default run, which has the stock loss and the default gains.

    Attributes:
        key: Ultralytics' key of the gain; None where there is none, as for the classify task and RT-DETR.
        gain: Gain of this run; 1 without a key.
        default: Value of the term in a default run.
        default_grad: L2 norm of its gradient with respect to the head's outputs in a default run.
        ours: Value in this run.
        ours_grad: Norm of the gradient in this run.
    """

    key: Optional[str]
    gain: float
    default: float
    default_grad: float
    ours: float
    ours_grad: float

    @property
    def value_ratio(self) -> float:
        """Value as a multiple of that of a default run; NaN if that is 0."""
        return quotient(self.ours, self.default)

    @property
    def grad_ratio(self) -> float:
        """Norm of the gradient as a multiple of that of a default run; NaN if that is 0."""
        return quotient(self.ours_grad, self.default_grad)

    @property
    def gain_for_value(self) -> float:
        """Gain with which the value would be that of a default run; NaN without a key."""
        return quotient(self.gain, self.value_ratio) if self.key else math.nan

    @property
    def gain_for_grad(self) -> float:
        """Gain with which the norm of the gradient would be that of a default run; NaN without a key."""
        return quotient(self.gain, self.grad_ratio) if self.key else math.nan


@dataclass(frozen=True)
class Row:
    """One term of one branch of a criterion.

    Attributes:
        branch: ``main``, or one of an end-to-end head.
        term: ``box``, ``class``, ``dfl`` or ``l1``, or the name of a term that is the host's own.
        stock: Value in stock Ultralytics, with the gain of this run.
        ours: Value with the keys that are verified.
        expected: Value of the registered function, called directly in float64; of a term that is the host's own, what
            its own step gives with our keys.
        scale: The same beside a default run; None for a term that is the host's own.
    """

    branch: str
    term: str
    stock: float
    ours: float
    expected: float
    scale: Optional[Scale] = None

    @property
    def error(self) -> float:
        """Relative difference of ours from what is expected."""
        return abs(self.ours - self.expected) / max(abs(self.expected), 1e-9)

    @property
    def agrees(self) -> bool:
        """Whether ours is as expected, within rounding; never if one of them is not finite."""
        return self.error <= MAX_ERROR

    @property
    def verdict(self) -> str:
        """What ours is, in words."""
        if not self.agrees:
            return "NOT WHAT WAS ASKED FOR"
        return "as expected" if self.scale else "the host's own"


def quotient(value: float, other: float) -> float:
    """Return a quotient, NaN for division by 0."""
    return value / other if other else math.nan

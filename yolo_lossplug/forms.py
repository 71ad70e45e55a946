# SPDX-License-Identifier: AGPL-3.0-or-later
"""Losses as engines evaluate them without calling their functions: what a loss declares for that at its decorator."""

from __future__ import annotations

from typing import NamedTuple


class Background(NamedTuple):
    """An elementwise class loss at target 0, where nearly all elements are: weight·p^exponent·softplus(x), p = σ(x).

    Attributes:
        weight: Factor.
        exponent: Exponent of p.
        is_detached: Whether the gradient does not go through p^exponent.
    """

    weight: float
    exponent: float
    is_detached: bool = False


class BoxKind:
    """Box losses and overlaps that the Triton kernels have; the first is Ultralytics' own CIoU."""

    STOCK, IOU, GIOU, DIOU, EIOU, SIOU = range(6)


class BoxKernel(NamedTuple):
    """A box loss as the Triton kernels evaluate it.

    Attributes:
        kind: One of `BoxKind`.
        theta: Exponent of the shape cost of SIoU.
    """

    kind: int
    theta: float = 0.0


class ClassKind:
    """Class losses that the Triton kernels have."""

    BCE, FOCAL, QUALITY, VARIFOCAL = range(4)


class ClassKernel(NamedTuple):
    """A class loss as the Triton kernels evaluate it.

    Attributes:
        kind: One of `ClassKind`.
        gamma: Exponent of the factor that damps.
        alpha: Weight of positives (focal), of negatives (varifocal); negative for none.
    """

    kind: int
    gamma: float = 0.0
    alpha: float = -1.0

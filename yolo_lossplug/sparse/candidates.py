# SPDX-License-Identifier: AGPL-3.0-or-later
"""How many candidate anchors an object of a size has on average."""

from __future__ import annotations

from collections.abc import Iterable

STRIDES = (8, 16, 32)
HOST_MIN_SIDE = 16.0
"""The floor of a side in Ultralytics 8.4.190 with these strides, in pixels."""
SIDES = (8, 16, 20, 22, 24, 32, 48, 64)
"""Sides of square objects in the tables, in pixels."""


def mean_candidates(
    width: float, height: float, min_side: float = HOST_MIN_SIDE, strides: Iterable[float] = STRIDES
) -> float:
    """Return the mean number of anchors whose centre lies in an object, over its positions in the image.

    Args:
        width: Width in pixels, >= 0.
        height: Height in pixels, >= 0.
        min_side: Floor of a side in pixels, 0 for none.
        strides: Strides of the levels.

    >>> [mean_candidates(side, side) for side in (16, 24)]
    [5.25, 11.8125]
    """
    area = max(width, min_side) * max(height, min_side)
    return sum(area / stride**2 for stride in strides)


def candidate_rows() -> list[tuple[str, str, str]]:
    """Return side, and mean number of candidates with the floor of 8.4.190 and with twice that, of square objects."""
    means = ((side, mean_candidates(side, side), mean_candidates(side, side, 2 * HOST_MIN_SIDE)) for side in SIDES)
    return [(f"{side}×{side}", f"{host:.2f}", f"{raised:.2f}") for side, host, raised in means]

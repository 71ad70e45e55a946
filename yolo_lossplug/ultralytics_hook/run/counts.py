# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an assignment gives to the objects: how many anchors, by size of the object, and how well these fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

SIZES = ("small", "medium", "large")
LIMITS = (32.0**2, 96.0**2)
"""Areas in pixels from which an object is medium, and large: those of COCO's evaluation."""
SUMS = ("objects", "unassigned", "positives", "overlap")
"""What is summed for each size: objects, those without any anchor, anchors, and their overlaps."""


def precision(device: torch.device) -> torch.dtype:
    """Return the type of sums: in float32 a long epoch would lose single anchors, but some devices know no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def no_sums(device: torch.device) -> Tensor:
    """Return the sums (sizes, sums) of nothing."""
    return torch.zeros(len(SIZES), len(SUMS), dtype=precision(device), device=device)


def tally(areas: Tensor, is_object: Tensor, place: Tensor, is_positive: Tensor, overlap: Tensor) -> Tensor:
    """Return the sums (sizes, sums) of an assignment. No value is read, so that a GPU need not be waited for.

    Args:
        areas: Areas in pixels (G,) of the places for objects of all images.
        is_object: Whether there is an object in a place (G,).
        place: Place (P,) of the object of each anchor; any place for an anchor without object.
        is_positive: Whether an anchor has an object (P,), every conflict resolved.
        overlap: Overlap of an anchor's box with that of its object (P,).
    """
    dtype, n_places = precision(areas.device), len(areas)
    is_taken = torch.zeros(n_places + 1, dtype=torch.bool, device=areas.device)
    is_taken.index_fill_(0, place.masked_fill(~is_positive, n_places), True)  # the last place is that of no object
    size = (areas >= LIMITS[0]).long() + (areas >= LIMITS[1]).long()
    each = torch.arange(len(SIZES), device=areas.device).unsqueeze(1)
    objects, positives = is_object & (size == each), is_positive & (size[place] == each)
    counts = [mask.sum(1).to(dtype) for mask in (objects, objects & ~is_taken[:-1], positives)]
    overlaps = overlap.to(dtype).masked_fill(~positives, 0).sum(1)  # no product, for the overlap may be no number
    return torch.stack((*counts, overlaps), 1)


def summary(sums: Sequence[Sequence[float]]) -> dict[str, Optional[float]]:
    """Return what is reported of sums (sizes, sums): ratios of everything to everything, None where that is nothing."""
    objects, unassigned, positives, overlap = (sum(column) for column in zip(*sums))
    values = {
        "objects": objects,
        "unassigned_share": _ratio(unassigned, objects),
        "positives_per_object": _ratio(positives, objects),
        "mean_iou": _ratio(overlap, positives),
    }
    for size, (objects, _, positives, _) in zip(SIZES, sums):
        values[f"objects_{size}"] = objects
        values[f"positives_per_object_{size}"] = _ratio(positives, objects)
    return values


def _ratio(numerator: float, denominator: float) -> Optional[float]:
    return numerator / denominator if denominator else None


COLUMNS = tuple(summary([[0.0] * len(SUMS)] * len(SIZES)))
"""Names of what is reported."""

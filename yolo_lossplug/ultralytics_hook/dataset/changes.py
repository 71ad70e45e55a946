# SPDX-License-Identifier: AGPL-3.0-or-later
"""What objects get from an assigner with another number, on the same predictions: the assigner alone runs again."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.ultralytics_hook.assigner import is_rotated, set_topk
from yolo_lossplug.ultralytics_hook.min_side import floor_of, rotated_floor_of, set_min_side

Change = tuple[str, float]
"""A key, and a value of it."""


class Outcome(NamedTuple):
    """Objects with an anchor, anchors that two or more objects select, and all that objects select."""

    covered: int
    conflicts: int
    selected: int

    @property
    def conflict_share(self) -> float:
        """Share of the selected anchors that two or more objects select."""
        return self.conflicts / max(1, self.selected)

    def plus(self, other: Outcome) -> Outcome:
        """Return the sum of both."""
        return Outcome(*(one + more for one, more in zip(self, other)))


class Listener:
    """What two methods of an assigner answer while this is open.

    Attributes:
        candidates: Candidates (n, A).
        wanted: Selected anchors (n, A), before conflicts are resolved.
        anchor: Best candidate (n,) of each object.
    """

    METHODS = ("select_candidates_in_gts", "get_pos_mask")

    def __init__(self, assigner: Any) -> None:
        self.assigner = assigner

    def __enter__(self) -> Listener:
        inside, chosen = (getattr(self.assigner, name) for name in self.METHODS)

        def select_candidates_in_gts(*args: Any, **kwargs: Any) -> Tensor:
            mask = inside(*args, **kwargs)
            self.candidates = mask[0].bool()
            return mask

        def get_pos_mask(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
            mask, metric, overlap = chosen(*args, **kwargs)
            self.wanted, self.anchor = mask[0].bool(), overlap[0].argmax(-1)
            return mask, metric, overlap

        for method in (select_candidates_in_gts, get_pos_mask):
            object.__setattr__(self.assigner, method.__name__, method)
        return self

    def __exit__(self, *_: Any) -> None:
        for name in self.METHODS:
            object.__delattr__(self.assigner, name)


def changed_assigners(assigner: Any) -> dict[Change, Any]:
    """Return copies of an assigner: with twice and half as many anchors per object, and twice the floor under sides."""
    found: dict[Change, Any] = {}
    for topk in (2 * assigner.topk, assigner.topk // 2):
        if topk:
            found["tal_topk", topk] = copy.copy(assigner)
            set_topk(found["tal_topk", topk], topk)
    _, floor = (rotated_floor_of if is_rotated(assigner) else floor_of)(assigner)
    other = copy.copy(assigner)
    try:
        set_min_side(other, 2 * floor)
    except LossPlugError:  # this release has no such floor
        return found
    return {**found, ("tal_min_side", 2 * floor): other} if floor else found


def outcomes(
    others: Mapping[Change, Any], inputs: tuple[Tensor, ...], extra: Mapping[str, Any], is_gt: Tensor
) -> dict[Change, Outcome]:
    """Return what the objects of one image get from assigners with these arguments; `is_gt` are the slots with one."""
    found = {}
    for change, assigner in others.items():
        with Listener(assigner) as heard:
            *_, foreground, slot = assigner(*inputs, **extra)[:5]
        covered = torch.unique(slot[foreground.bool()].long()).numel()
        claims = heard.wanted[is_gt].sum(0)
        found[change] = Outcome(covered, int((claims > 1).sum()), int((claims > 0).sum()))
    return found

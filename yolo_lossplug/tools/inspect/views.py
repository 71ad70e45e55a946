# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `lossplug inspect` collects of a dataset at one imgsz, with or without a model's assignment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Optional

import numpy as np

from yolo_lossplug.boxes import SIZES
from yolo_lossplug.tools.inspect.counts import share, size_shares, sizes_of
from yolo_lossplug.tools.inspect.facts import Shares
from yolo_lossplug.ultralytics_hook.dataset.assignments import AssignedObjects
from yolo_lossplug.ultralytics_hook.dataset.changes import Change, Outcome
from yolo_lossplug.ultralytics_hook.dataset.labels import Labels

FEW = 4
"""Candidates below which an object counts as one with few."""
TINY = 16.0
"""Side in pixels of the network's input below which an object counts as tiny."""
KEPT = 8
"""Images whose assignment is kept for pictures, for each reason."""


class BranchAssignment:
    """What each object of the labels gets in one branch of a model.

    Attributes:
        positives: Anchors (G,); 0 for objects that the criterion drops.
        best_iou: IoU (G,) of the best candidate's prediction; NaN without one.
        score: Score (G,) of the object's class there; NaN without one.
        overlap: Sum (G,) of the IoU of the assigned anchors' predictions.
        conflicts: How many selected anchors two or more objects select, in each image (n,).
        selected: How many anchors objects select in each image (n,), before conflicts are resolved.
        others: What all objects get with other numbers of the assigner.
        kept: Images for pictures, by index.

    Args:
        labels: The labels.
        wanted: Images to keep besides those with most conflicts and most objects without an anchor.
    """

    def __init__(self, labels: Labels, wanted: Sequence[int]) -> None:
        n, count = len(labels.files), len(labels.cls)
        self.wanted, self.first = wanted, np.searchsorted(labels.image, np.arange(n))
        self.positives = np.zeros(count, np.int64)
        self.conflicts, self.selected = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.best_iou, self.score, self.overlap = (np.full(count, value) for value in (np.nan, np.nan, 0.0))
        self.others, self.kept = dict[Change, Outcome](), dict[int, AssignedObjects]()

    @property
    def shares(self) -> Shares:
        """Share of objects without an anchor, and of selected anchors that two objects or more select."""
        return Shares(share(self.positives == 0), float(self.conflicts.sum() / max(1, self.selected.sum())))

    def add(self, seen: AssignedObjects) -> None:
        """Add the objects of one image."""
        rows = self.first[seen.image] + seen.row
        self.positives[rows], self.overlap[rows] = seen.positives, seen.overlap
        self.best_iou[rows], self.score[rows] = seen.best_iou, seen.score
        _, self.conflicts[seen.image], self.selected[seen.image] = seen.outcome
        for change, outcome in seen.others.items():
            self.others[change] = self.others.get(change, Outcome(0, 0, 0)).plus(outcome)
        of_image, of_selected = (np.asarray(mask.any(axis=0))[None] for mask in (seen.candidates, seen.wanted))
        self.kept[seen.image] = seen._replace(candidates=of_image, wanted=of_selected)  # all that pictures need
        if len(self.kept) > len(self.wanted) + 4 * KEPT:
            by_conflicts = sorted(sorted(self.kept), key=lambda image: -self.conflicts[image])
            by_missing = sorted(sorted(self.kept), key=lambda image: -(self.kept[image].positives == 0).sum())
            best = {*by_conflicts[:KEPT], *by_missing[:KEPT], *self.wanted}
            self.kept = {image: seen for image, seen in sorted(self.kept.items()) if image in best}


@dataclass
class View:
    """A dataset at one imgsz.

    Attributes:
        imgsz: Side of the network's input in pixels.
        boxes: Boxes (G, 4 or 5) in pixels of the input.
        candidates: Candidates (G, L) of each object by level.
        total_p2: Candidates (G,) with a level of stride 4 in addition.
        assigned: By branch; empty without a model.
    """

    imgsz: int
    boxes: np.ndarray
    candidates: np.ndarray
    total_p2: np.ndarray
    assigned: dict[str, BranchAssignment] = field(default_factory=dict)

    @property
    def total(self) -> np.ndarray:
        """Candidates of each object (G,)."""
        return np.asarray(self.candidates.sum(1))

    @property
    def areas(self) -> np.ndarray:
        """Areas (G,) in pixels of the input, as the report of a training measures them."""
        sides = self.boxes[:, 2:4] if self.boxes.shape[1] == 5 else self.boxes[:, 2:] - self.boxes[:, :2]
        return sides[:, 0] * sides[:, 1]

    @property
    def sides(self) -> np.ndarray:
        """Root of the areas (G,)."""
        return np.sqrt(self.areas.clip(0))

    @property
    def shares(self) -> dict[str, float]:
        """Shares of objects by the names that `Facts` has for them."""
        return {
            "few": share(self.total < FEW),
            "few_p2": share(self.total_p2 < FEW),
            "none": share(self.total == 0),
            "tiny": share(self.sides < TINY),
            "small_input": size_shares(self.areas)[0],
            "mean_side": float(self.sides.mean()) if len(self.areas) else 0.0,
        }

    @property
    def main(self) -> Optional[BranchAssignment]:
        """The assignment of the branch with most anchors; None without a model."""
        return self.assigned.get(self.main_name)

    @property
    def main_name(self) -> str:
        """Name of the branch with most anchors; empty without a model."""
        return max(self.assigned, key=lambda name: self.assigned[name].positives.sum(), default="")

    def sums(self, branch: BranchAssignment) -> np.ndarray:
        """Return sums by size (sizes, 4): objects, those without an anchor, anchors, and their overlap."""
        columns = (None, branch.positives == 0, branch.positives, branch.overlap)
        return np.stack([np.bincount(sizes_of(self.areas), values, len(SIZES)) for values in columns], 1)


def object_rows(labels: Labels, views: Sequence[View], strides: Sequence[float]) -> Iterator[list[Any]]:
    """Yield the lines of objects.csv, its header first: one for each object, imgsz and branch."""
    yield [
        *("imgsz", "image", "class", "name", "width", "height", "side", "size"),
        *(f"candidates_stride{stride:g}" for stride in strides),
        *("candidates", "branch", "positives", "best_iou", "score"),
    ]
    files = [labels.files[image] for image in labels.image]
    names = [labels.names.get(cls, str(cls)) for cls in labels.cls.tolist()]
    width, height = labels.sides.astype(float).round(1).T.tolist()
    for view in views:
        size, side = np.array(SIZES)[sizes_of(view.areas)].tolist(), view.sides.astype(float).round(2).tolist()
        left = (repeat(view.imgsz), files, labels.cls.tolist(), names, width, height, side, size)
        counted = (*view.candidates.T.tolist(), view.total.tolist())
        branches: dict[str, Optional[BranchAssignment]] = {**view.assigned} or {"": None}
        for name, branch in branches.items():
            yield from map(list, zip(*left, *counted, repeat(name), *_columns(branch, len(files))))


def _columns(branch: Optional[BranchAssignment], count: int) -> list[list[Any]]:
    if branch is None:
        return [[""] * count] * 3
    numbers = (np.round(values, 4).astype(object) for values in (branch.best_iou, branch.score))
    return [branch.positives.tolist(), *(np.where(values != values, "", values).tolist() for values in numbers)]

# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `lossplug inspect` collects of a dataset: one view for each imgsz, with or without a model's assignment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

import numpy as np

from yolo_lossplug.selection.select import Selection
from yolo_lossplug.tools.inspect.counts import sizes_of
from yolo_lossplug.ultralytics_hook.dataset import assignments
from yolo_lossplug.ultralytics_hook.dataset.assignments import AssignedObjects, Model
from yolo_lossplug.ultralytics_hook.dataset.candidates import count_candidates, make_assigner
from yolo_lossplug.ultralytics_hook.dataset.labels import Labels

STRIDES = (8.0, 16.0, 32.0)
"""Strides of most models, of those without another one."""
P2 = 4.0
KEPT = 8
"""Images whose assignment is kept for pictures, for each reason."""


@dataclass
class Assigned:
    """What each object of the labels gets in one branch.

    Attributes:
        positives: Anchors (G,); 0 for objects that the criterion drops.
        best_iou: IoU (G,) of the best candidate's prediction; NaN without one.
        score: Score (G,) of the object's class there; NaN without one.
        overlap: Sum (G,) of the IoU of the assigned anchors' predictions.
        wanted: Selected anchors, before conflicts are resolved, of all images.
        conflicts: How many of these two or more objects select, in each image (n,).
        kept: Images for pictures, by index.
    """

    positives: np.ndarray
    best_iou: np.ndarray
    score: np.ndarray
    overlap: np.ndarray
    conflicts: np.ndarray
    wanted: int = 0
    kept: dict[int, AssignedObjects] = field(default_factory=dict)

    @property
    def conflict_share(self) -> float:
        """Share of selected anchors that two objects or more select."""
        return float(self.conflicts.sum() / self.wanted) if self.wanted else 0.0


@dataclass
class View:
    """A dataset at one imgsz.

    Attributes:
        imgsz: Side of the network's input in pixels.
        strides: Strides of the levels.
        boxes: Boxes (G, 4 or 5) in pixels of the input.
        candidates: Candidates (G, L) of each object by level.
        total_p2: Candidates (G,) with a level of stride 4 in addition.
        assigned: By branch; empty without a model.
    """

    imgsz: int
    strides: tuple[float, ...]
    boxes: np.ndarray
    candidates: np.ndarray
    total_p2: np.ndarray
    assigned: dict[str, Assigned] = field(default_factory=dict)

    @property
    def total(self) -> np.ndarray:
        """Candidates (G,) of each object."""
        return self.candidates.sum(1)

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
    def main(self) -> Optional[Assigned]:
        """The assignment of the branch with most anchors; None without a model."""
        return max(self.assigned.values(), key=lambda one: one.positives.sum(), default=None)


def view(labels: Labels, imgsz: int, selection: Selection, model: Optional[Model]) -> View:
    """Return a dataset at one imgsz, from labels alone.

    Args:
        labels: The labels.
        imgsz: Side of the network's input in pixels.
        selection: Selected numbers of the assigner.
        model: The model whose strides and assigner count; None for the usual ones.
    """
    strides = model.strides if model else STRIDES
    assigner = model.assigner() if model else make_assigner(labels.task, strides, selection)
    boxes = labels.at(imgsz)
    return View(
        imgsz,
        strides,
        boxes,
        count_candidates(boxes, imgsz, strides, assigner),
        _with_p2(boxes, imgsz, labels, selection),
    )


def _with_p2(boxes: np.ndarray, imgsz: int, labels: Labels, selection: Selection) -> np.ndarray:
    strides = (P2, *STRIDES)
    total: np.ndarray = count_candidates(boxes, imgsz, strides, make_assigner(labels.task, strides, selection)).sum(1)
    return total


def assign(
    shown: View, labels: Labels, model: Model, args: dict[str, Any], batch: int, wanted: Sequence[int], tick: Callable
) -> None:
    """Add what a model's assigner makes of the objects to a view.

    Args:
        shown: The view.
        labels: The labels.
        model: The model.
        args: ``data``, ``split`` and ``fraction``.
        batch: Images in a batch.
        wanted: Images to keep for pictures besides those with most conflicts and most objects without an anchor.
        tick: Called with the number of images that are done.
    """
    first = np.searchsorted(labels.image, np.arange(len(labels.files)))
    for seen in assignments.assigned(model, args, shown.imgsz, batch):
        for one in seen:
            _add(shown.assigned.setdefault(one.branch, _nothing(labels)), one, first[one.image], wanted)
        tick(batch)


def _nothing(labels: Labels) -> Assigned:
    count, nan = len(labels.cls), np.full(len(labels.cls), np.nan)
    return Assigned(np.zeros(count, np.int64), nan, nan.copy(), np.zeros(count), np.zeros(len(labels.files), np.int64))


def _add(total: Assigned, one: AssignedObjects, first: int, wanted: Sequence[int]) -> None:
    rows = first + one.row
    total.positives[rows], total.overlap[rows] = one.positives, one.overlap
    total.best_iou[rows], total.score[rows] = one.best_iou, one.score
    total.conflicts[one.image] = one.conflicts
    total.wanted += int(one.wanted.any(0).sum())
    candidates, wanted_ = (np.asarray(mask.any(axis=0))[None] for mask in (one.candidates, one.wanted))
    total.kept[one.image] = one._replace(candidates=candidates, wanted=wanted_)  # all that pictures need
    _forget(total, wanted)


def _forget(total: Assigned, wanted: Sequence[int]) -> None:
    """Keep the images that are wanted, and the first of each order."""
    if len(total.kept) <= len(wanted) + 4 * KEPT:
        return
    orders = (lambda one: -total.conflicts[one.image], lambda one: -int((one.positives == 0).sum()))
    best = {one.image for order in orders for one in sorted(total.kept.values(), key=order)[:KEPT]}
    total.kept = {image: one for image, one in total.kept.items() if image in best or image in wanted}


def report_values(shown: View, one: Assigned) -> dict[str, float]:
    """Return the sums of an assignment by size: ``objects``, ``unassigned``, ``positives``, ``overlap`` (sizes,)."""
    size = sizes_of(shown.areas)
    columns = {
        "objects": np.ones(len(size)),
        "unassigned": one.positives == 0,
        "positives": one.positives,
        "overlap": one.overlap,
    }
    return {name: np.bincount(size, weights=values, minlength=3).tolist() for name, values in columns.items()}


def object_rows(labels: Labels, shown: Sequence[View]) -> Iterator[list[Any]]:
    """Yield the lines of objects.csv, its header first: one for each object, imgsz and branch."""
    strides = shown[0].strides
    yield [
        *("imgsz", "image", "class", "name", "width", "height", "side", "size"),
        *(f"candidates_stride{stride:g}" for stride in strides),
        *("candidates", "branch", "positives", "best_iou", "score"),
    ]
    names = [labels.names.get(i, str(i)) for i in range(int(labels.cls.max()) + 1)]
    files = np.array(labels.files)[labels.image].tolist()
    sides = labels.sides.astype(float).round(1).tolist()
    for one in shown:
        size, side = (
            np.array(("small", "medium", "large"))[sizes_of(one.areas)].tolist(),
            one.sides.astype(float).round(2).tolist(),
        )
        branches: dict[str, Optional[Assigned]] = {**one.assigned} or {"": None}
        for branch, got in branches.items():
            extra = _columns(got, len(files))
            rows = zip(
                files, labels.cls.tolist(), sides, side, size, one.candidates.tolist(), one.total.tolist(), extra
            )
            for file, cls, (width, height), root, word, levels, total, (positives, iou, score) in rows:
                yield [
                    *(one.imgsz, file, cls, names[cls], width, height, root, word, *levels, total),
                    *(branch, positives, iou, score),
                ]


def _columns(got: Optional[Assigned], count: int) -> Iterator[tuple[Any, ...]]:
    if got is None:
        return iter([("", "", "")] * count)
    numbers = (["" if np.isnan(v) else round(v, 4) for v in column.tolist()] for column in (got.best_iou, got.score))
    return zip(got.positives.tolist(), *numbers)

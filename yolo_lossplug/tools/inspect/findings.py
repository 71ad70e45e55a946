# SPDX-License-Identifier: AGPL-3.0-or-later
"""All that `lossplug inspect` knows of a dataset, and the facts that its advice goes by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch

from yolo_lossplug.selection.select import Selection
from yolo_lossplug.tools.inspect import counts as numbers
from yolo_lossplug.tools.inspect.advice import FEW, LONG, RARE, TINY, Facts
from yolo_lossplug.tools.inspect.views import STRIDES, View
from yolo_lossplug.ultralytics_hook.dataset import cost
from yolo_lossplug.ultralytics_hook.dataset.assignments import Model
from yolo_lossplug.ultralytics_hook.dataset.candidates import make_assigner
from yolo_lossplug.ultralytics_hook.dataset.cost import Cost
from yolo_lossplug.ultralytics_hook.dataset.labels import Labels

SUFFIXES = {"segment": "-seg", "pose": "-pose", "obb": "-obb"}
TIMED_IMAGES = 4
HARMLESS = ("exact duplicates", f"{100 * numbers.FULL_IMAGE:.0f} % of the image")
"""Beginnings of faults that cost a training nothing, or may be right."""


@dataclass
class Findings:
    """What is known of a dataset.

    Attributes:
        args: Arguments as given.
        labels: The labels.
        counts: Objects of each image (n,).
        views: The dataset at each imgsz.
        pairs: Counts of pairs of objects.
        batch: Images in a batch.
        selection: Numbers of the assigner.
        model: The model, None without one.
    """

    args: dict[str, Any]
    labels: Labels
    counts: np.ndarray
    views: list[View]
    pairs: numbers.PairCounts
    batch: int
    selection: Selection
    model: Optional[Model] = None

    @property
    def topk(self) -> int:
        """Anchors that the assigner selects for an object at most."""
        return int(self.model.assigner().topk) if self.model else self.selection.tal_topk

    def assigner(self) -> Any:
        """Return the assigner that candidates are counted with."""
        return self.model.assigner() if self.model else make_assigner(self.labels.task, STRIDES, self.selection)

    @cached_property
    def faults(self) -> dict[str, int]:
        """Labels by fault, and the images that the loader leaves out."""
        read = self.labels
        of_labels = numbers.faults(read.boxes, read.sides, read.shapes[read.image], self.pairs, read.removed)
        return {**of_labels, "images that the loader leaves out": len(read.ignored)}

    @cached_property
    def classes(self) -> tuple[np.ndarray, np.ndarray]:
        """Objects, and images with any, of each class."""
        return numbers.class_counts(self.labels.cls, self.labels.image, max(self.labels.names, default=0) + 1)

    @cached_property
    def costs(self) -> list[Cost]:
        """Need of a loss step at the first imgsz: of a typical batch, and of the most crowded one."""
        first = self.views[0]
        anchors = sum(int(first.imgsz // stride) ** 2 for stride in first.strides)
        per_image = np.bincount(self.labels.image, weights=first.total, minlength=len(self.counts))
        images = min(self.batch, len(self.counts))
        typical = cost.memory(images, numbers.typical_maximum(self.counts, images), anchors, per_image.mean() * images)
        order = np.argsort(-self.counts, kind="stable")[:images]
        crowded = cost.memory(images, int(self.counts.max()), anchors, float(per_image[order].sum()))
        if self.labels.task == "obb":
            return [typical, crowded]
        return [self._timed(typical, typical.most), self._timed(crowded, crowded.most)]

    def _timed(self, need: Cost, most: int) -> Cost:
        """Return a cost with the time of a batch of a few images, one of which has that many objects."""
        nearest = int(np.abs(self.counts - most).argmin())
        others = np.random.default_rng(0).integers(0, len(self.counts), TIMED_IMAGES - 1).tolist()
        images = [nearest, *others]
        rows = [np.flatnonzero(self.labels.image == image) for image in images]
        index = np.concatenate(rows)
        first = self.views[0]
        boxes = first.boxes[index] / first.imgsz
        batch = {
            "batch_idx": torch.from_numpy(np.repeat(np.arange(len(rows)), [len(row) for row in rows])).float(),
            "cls": torch.from_numpy(self.labels.cls[index]).float().unsqueeze(1),
            "bboxes": torch.from_numpy(
                np.concatenate(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1)
            ),
        }
        return cost.timed(need, batch, len(rows), first.imgsz, first.strides, len(self.classes[0]))

    @cached_property
    def facts(self) -> Facts:
        """What the rules of the advice read."""
        objects, _ = self.classes
        rare = numbers.rare_classes(objects, RARE)
        ours = self.views[0].main
        small = numbers.sizes_of(self.views[0].areas) == 0
        missing = None if ours is None else ours.positives == 0
        return Facts(
            data=Path(str(self.args["data"])).name
            if not Path(str(self.args["data"])).is_file()
            else str(self.args["data"]),
            model=str(self.args.get("model") or f"yolov8n{SUFFIXES.get(self.labels.task, '')}.yaml"),
            task=self.labels.task,
            imgsz=tuple(view.imgsz for view in self.views),
            n_objects=len(self.labels.cls),
            few=tuple(numbers.share(view.total < FEW) for view in self.views),
            few_p2=tuple(numbers.share(view.total_p2 < FEW) for view in self.views),
            none=tuple(numbers.share(view.total == 0) for view in self.views),
            tiny=tuple(numbers.share(view.sides < TINY) for view in self.views),
            small_input=tuple(numbers.size_shares(view.areas)[0] for view in self.views),
            small_original=numbers.size_shares(self.labels.sides.prod(1))[0],
            long=numbers.share(numbers.elongated(self.labels.sides) >= LONG),
            crowded=numbers.share(self.pairs.is_crowded),
            rare=[self.labels.names.get(int(i), str(i)) for i in rare],
            rare_share=float(objects[rare].sum() / objects.sum()),
            imbalance=numbers.imbalance(objects),
            faults={kind: count for kind, count in self.faults.items() if count and not kind.startswith(HARMLESS)},
            dense_bytes=self.costs[0].dense,
            without=None if missing is None else numbers.share(missing),
            without_small=None if missing is None or not small.any() else numbers.share(missing[small]),
            conflicts=None if ours is None else ours.conflict_share,
            end_to_end=len(self.views[0].assigned) > 1,
        )


def reasons(found: Findings, view: View) -> dict[str, np.ndarray]:
    """Return why an image may be worth a look: a score of each image (n,) by reason, 0 or less for none."""
    image, n = found.labels.image, len(found.counts)

    def per_image(values: np.ndarray) -> np.ndarray:
        return np.bincount(image, weights=values, minlength=n)

    scores: dict[str, np.ndarray] = {}
    if view.main is not None:
        scores["objects without an anchor"] = per_image(view.main.positives == 0)
        scores["anchors that two objects want"] = view.main.conflicts.astype(float)
    smallest = np.full(n, np.inf)
    np.minimum.at(smallest, image, view.sides)
    scores.update(
        {
            "objects without a candidate": per_image(view.total == 0),
            f"objects with fewer than {found.topk} candidates": per_image(view.total < found.topk),
            "overlapping objects of a class": per_image(found.pairs.is_crowded),
            "most objects": np.where(found.counts == found.counts.max(), found.counts, 0.0),
            "smallest object": np.where(smallest == smallest.min(), 1 / np.maximum(smallest, 1e-3), 0.0),
            "an image like most": np.where(
                found.counts > 0, 1 / (1 + np.abs(found.counts - np.median(found.counts))), 0.0
            ),
        }
    )
    return scores

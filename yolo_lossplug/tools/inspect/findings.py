# SPDX-License-Identifier: AGPL-3.0-or-later
"""All that `lossplug inspect` finds out about a dataset, and the facts that its advice goes by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch

from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.select import select
from yolo_lossplug.tools.inspect import counts as numbers
from yolo_lossplug.tools.inspect.views import BranchAssignment, View
from yolo_lossplug.ultralytics_hook.console import progress
from yolo_lossplug.ultralytics_hook.dataset import assignments, cost
from yolo_lossplug.ultralytics_hook.dataset.assignments import Model
from yolo_lossplug.ultralytics_hook.dataset.candidates import count_candidates, make_assigner, overlap_of
from yolo_lossplug.ultralytics_hook.dataset.cost import Cost
from yolo_lossplug.ultralytics_hook.dataset.labels import Labels, described
from yolo_lossplug.ultralytics_hook.dataset.labels import read as read_labels

STRIDES, P2 = (8.0, 16.0, 32.0), 4.0
"""Strides of most models, used without model=, and the stride of a P2 head."""
LONG = 4.0
"""Ratio of the sides from which an object counts as elongated."""
RARE = 20.0
"""Ratio to the largest class from which a class counts as rare."""
SUFFIXES = {"segment": "-seg", "pose": "-pose", "obb": "-obb"}
N_PICTURES = 6
HARMLESS = ("exact duplicates", f"{100 * numbers.FULL_IMAGE:.0f} % of the image")
"""Beginnings of faults that cost a training nothing, or may be right."""


@dataclass(frozen=True)
class InspectPlan:
    """What is inspected.

    Attributes:
        args: Arguments as given.
        imgsz: Sizes of the network's input.
        batch: Images in a batch.
        numbers: Keys of the assigner among the arguments.
    """

    args: dict[str, Any]
    imgsz: tuple[int, ...]
    batch: int
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """What the rules of the advice read. Shares are of objects, in [0, 1]; those by imgsz have one for each imgsz.

    Attributes:
        data: Dataset as the user has named it.
        model: Model for the comparisons.
        task: The task.
        imgsz: The sizes of the input that were inspected.
        n_objects: Number of objects.
        few: Share with fewer than `FEW` candidates.
        few_p2: The same with a level of stride 4 in addition.
        none: Share without any candidate.
        tiny: Share with a side (root of the area) below `TINY` pixels of the input.
        small_input: Share of small objects in pixels of the input.
        small_original: The same in pixels of the image.
        long: Share with sides in a ratio of `LONG` or more.
        crowded: Share in a pair of one class that overlaps above 0.7.
        rare: Names of classes with objects, but fewer than 1/`RARE` of the largest.
        rare_share: Share of objects of these classes.
        imbalance: Objects of the largest class over those of the smallest.
        faults: Labels with faults that a training suffers from, and images that the loader leaves out, by kind.
        dense_bytes: Memory of stock's assigner in a typical batch.
        without: Share without an anchor in the assignment of the model; None without a model.
        without_small: The same of small objects.
        conflicts: Share of selected anchors that two objects select; None without a model.
        end_to_end: Whether the model has a branch without NMS.
    """

    data: str
    model: str
    task: str
    imgsz: tuple[int, ...]
    n_objects: int
    few: tuple[float, ...]
    few_p2: tuple[float, ...]
    none: tuple[float, ...]
    tiny: tuple[float, ...] = (0.0,)
    small_input: tuple[float, ...] = (0.0,)
    small_original: float = 0.0
    long: float = 0.0
    crowded: float = 0.0
    rare: Sequence[str] = ()
    rare_share: float = 0.0
    imbalance: float = 1.0
    faults: Mapping[str, int] = field(default_factory=dict)
    dense_bytes: int = 0
    without: Optional[float] = None
    without_small: Optional[float] = None
    conflicts: Optional[float] = None
    end_to_end: bool = False


class Findings:
    """What is known of a dataset; each part is found out when it is first asked for.

    Args:
        plan: What is inspected.

    Raises:
        LossPlugError: If data or model cannot be read, from whatever asks for them first.
    """

    def __init__(self, plan: InspectPlan) -> None:
        self.plan = plan

    @cached_property
    def model(self) -> Optional[Model]:
        """The model, None without one."""
        args = self.plan.args
        return assignments.load(args, described(args)[0]) if args.get("model") else None

    @cached_property
    def labels(self) -> Labels:
        """The labels."""
        task = self.model.task if self.model else None
        read = read_labels(self.plan.args, task)
        if task not in (None, read.task):
            model = self.plan.args["model"]
            raise LossPlugError(f"model={model} is for task={task}, but task={read.task} was given.")
        return read

    @cached_property
    def strides(self) -> tuple[float, ...]:
        """Strides of the levels."""
        return self.model.strides if self.model else STRIDES

    @cached_property
    def assigner(self) -> Any:
        """The assigner that candidates are counted with."""
        return self.model.assigner() if self.model else self._assigner(STRIDES)

    def _assigner(self, strides: tuple[float, ...]) -> Any:
        task = self.labels.task
        return make_assigner(task, strides, select({**self.plan.numbers, "task": task}))

    @property
    def topk(self) -> int:
        """Anchors that the assigner selects for an object at most."""
        return int(self.assigner.topk)

    @cached_property
    def views(self) -> list[View]:
        """The dataset at each imgsz."""
        views, strides_p2 = [], (P2, *STRIDES)
        with_p2 = self._assigner(strides_p2)
        with closing(progress(len(self.plan.imgsz), "candidates")) as bar:
            for imgsz in self.plan.imgsz:
                boxes = self.labels.at(imgsz)
                total_p2 = count_candidates(boxes, imgsz, strides_p2, with_p2).sum(1)
                views.append(View(imgsz, boxes, count_candidates(boxes, imgsz, self.strides, self.assigner), total_p2))
                bar.update(1)
        if self.model:
            chosen = [image for image, _ in numbers.telling(self.reasons(views[0]), N_PICTURES)]
            for view in views:
                self._assign(view, self.model, chosen)
        return views

    def _assign(self, view: View, model: Model, chosen: list[int]) -> None:
        """Add what the model's assigner gives to the objects to a view; chosen images are kept for pictures."""
        with closing(progress(len(self.counts), f"assignment at {view.imgsz}")) as bar:
            for batch in assignments.assigned(model, self.plan.args, view.imgsz, self.plan.batch):
                for seen in batch:
                    view.assigned.setdefault(seen.branch, BranchAssignment(self.labels, chosen)).add(seen)
                bar.update(self.plan.batch)

    @cached_property
    def counts(self) -> np.ndarray:
        """Objects of each image (n,)."""
        return np.bincount(self.labels.image, minlength=len(self.labels.files))

    @cached_property
    def pairs(self) -> numbers.PairCounts:
        """Counts of pairs of objects."""
        boxes = self.labels.at(max(self.plan.imgsz))
        return numbers.count_pairs(self.counts, self.labels.cls, overlap_of(boxes))

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
        first, images = self.views[0], min(self.plan.batch, len(self.counts))
        anchors = sum(int(first.imgsz // stride) ** 2 for stride in self.strides)
        per_image = self._per_image(first.total)
        crowded = np.argsort(-self.counts, kind="stable")[:images]
        needs = [
            cost.memory(images, numbers.typical_maximum(self.counts, images), anchors, per_image.mean() * images),
            cost.memory(images, int(self.counts.max()), anchors, float(per_image[crowded].sum())),
        ]
        return needs if self.labels.task == "obb" else [self._timed(need) for need in needs]

    def _timed(self, need: Cost) -> Cost:
        """Return a cost with the time of a batch of a few images, one of which is about as crowded."""
        nearest = int(np.abs(self.counts - need.most).argmin())
        others = np.random.default_rng(0).integers(0, len(self.counts), 3).tolist()
        rows = [np.flatnonzero(self.labels.image == image) for image in (nearest, *others)]
        index, first = np.concatenate(rows), self.views[0]
        low, high = np.split(first.boxes[index] / first.imgsz, 2, axis=1)
        batch = {
            "batch_idx": torch.arange(len(rows)).repeat_interleave(torch.tensor([*map(len, rows)])).float(),
            "cls": torch.from_numpy(self.labels.cls[index]).float().unsqueeze(1),
            "bboxes": torch.from_numpy(np.concatenate(((low + high) / 2, high - low), 1)),
        }
        return cost.timed(need, batch, len(rows), first.imgsz, self.strides, len(self.classes[0]))

    def _per_image(self, values: np.ndarray) -> np.ndarray:
        """Return the sum (n,) of values of objects (G,) over each image."""
        return np.bincount(self.labels.image, weights=values, minlength=len(self.counts))

    @cached_property
    def facts(self) -> Facts:
        """What the rules of the advice read."""
        objects, shares = self.classes[0], [view.shares for view in self.views]
        by_imgsz: dict[str, Any] = {key: tuple(of_view[key] for of_view in shares) for key in shares[0]}
        rare = numbers.rare_classes(objects, RARE)
        data = Path(str(self.plan.args["data"]))
        return Facts(
            data=str(self.plan.args["data"]) if data.is_file() else data.name,
            model=str(self.plan.args.get("model") or f"yolov8n{SUFFIXES.get(self.labels.task, '')}.yaml"),
            task=self.labels.task,
            imgsz=self.plan.imgsz,
            n_objects=len(self.labels.cls),
            **by_imgsz,
            small_original=numbers.size_shares(self.labels.sides.prod(1))[0],
            long=numbers.share(numbers.elongated(self.labels.sides) >= LONG),
            crowded=numbers.share(self.pairs.is_crowded),
            rare=[self.labels.names.get(int(i), str(i)) for i in rare],
            rare_share=float(objects[rare].sum() / objects.sum()),
            imbalance=numbers.imbalance(objects),
            faults={kind: count for kind, count in self.faults.items() if count and not kind.startswith(HARMLESS)},
            dense_bytes=self.costs[0].dense,
            **self._facts_of_assignment(),
        )

    def _facts_of_assignment(self) -> dict[str, Any]:
        first = self.views[0]
        if first.main is None:
            return {}
        missing, is_small = first.main.positives == 0, numbers.sizes_of(first.areas) == 0
        return {
            "without": numbers.share(missing),
            "without_small": numbers.share(missing[is_small]) if is_small.any() else None,
            "conflicts": first.main.conflict_share,
            "end_to_end": len(first.assigned) > 1,
        }

    def reasons(self, view: View) -> dict[str, np.ndarray]:
        """Return why an image may be worth a look: a score of each image (n,) by reason, 0 or less for none."""
        counts, smallest = self.counts, np.full(len(self.counts), np.inf)
        np.minimum.at(smallest, self.labels.image, view.sides)
        scores = {
            "objects without a candidate": self._per_image(view.total == 0),
            f"objects with fewer than {self.topk} candidates": self._per_image(view.total < self.topk),
            "overlapping objects of a class": self._per_image(self.pairs.is_crowded),
            "most objects": np.where(counts == counts.max(), counts, 0.0),
            "smallest object": np.where(smallest == smallest.min(), 1 / np.maximum(smallest, 1e-3), 0.0),
            "a typical image": np.where(counts > 0, 1 / (1 + np.abs(counts - np.median(counts))), 0.0),
        }
        if view.main is None:
            return scores
        without = self._per_image(view.main.positives == 0)
        first = {"objects without an anchor": without, "anchors claimed by two objects": view.main.conflicts}
        is_kept = np.isin(np.arange(len(counts)), [*view.main.kept])
        return {reason: np.where(is_kept, values, 0.0) for reason, values in {**first, **scores}.items()}

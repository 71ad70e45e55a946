# SPDX-License-Identifier: AGPL-3.0-or-later
"""All that `lossplug inspect` finds out about a dataset."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch

from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.regions import looks_like_region
from yolo_lossplug.selection.select import select
from yolo_lossplug.tools.inspect import counts as numbers
from yolo_lossplug.tools.inspect.facts import CONTESTED, LONG, MISSED, RARE, SQUARE, Facts, Shares, Tried, larger, pace
from yolo_lossplug.tools.inspect.views import BranchAssignment, View
from yolo_lossplug.ultralytics_hook.console import progress
from yolo_lossplug.ultralytics_hook.dataset import assignments, cost
from yolo_lossplug.ultralytics_hook.dataset.assignments import Model
from yolo_lossplug.ultralytics_hook.dataset.candidates import count_candidates, make_assigner, overlap_of
from yolo_lossplug.ultralytics_hook.dataset.changes import Outcome
from yolo_lossplug.ultralytics_hook.dataset.cost import Cost
from yolo_lossplug.ultralytics_hook.dataset.labels import Labels, described
from yolo_lossplug.ultralytics_hook.dataset.labels import read as read_labels

STRIDES, P2 = (8.0, 16.0, 32.0), 4.0
"""Strides of most models, used without model=, and the stride of a P2 head."""
SUFFIXES = {"segment": "-seg", "pose": "-pose", "obb": "-obb"}
KEPT = ("fraction", "batch", "device")
"""Arguments beside data, model, imgsz and numbers of the assigner that a comparison takes over."""
N_PICTURES = 6
MAX_TRIED = 100
"""Images that another imgsz is tried on."""
HARMLESS = ("exact duplicates", "objects without a visible keypoint", f"{100 * numbers.FULL_IMAGE:.0f} % of the image")
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

    @property
    def is_untrained(self) -> bool:
        """Whether the model has random weights."""
        return self.model is not None and not self.model.is_trained

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
                self._assign(view, self.model, chosen, is_changed=view is views[0])
        return views

    def _assign(self, view: View, model: Model, chosen: list[int], is_changed: bool) -> None:
        """Add what the model's assigner gives to the objects to a view; chosen images are kept for pictures."""
        args, imgsz, batch_size = self.plan.args, view.imgsz, self.plan.batch
        with closing(progress(len(self.counts), f"assignment at {imgsz}")) as bar:
            for batch in assignments.assigned(model, args, imgsz, batch_size, is_changed=is_changed):
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
        if read.task == "pose":
            hidden = read.visible == 0
            of_labels[f"{'all ' if hidden.all() else ''}objects without a visible keypoint"] = int(hidden.sum())
        return {**of_labels, "images that the loader leaves out": len(read.ignored)}

    @cached_property
    def classes(self) -> tuple[np.ndarray, np.ndarray]:
        """Objects, and images with any, of each class."""
        return numbers.class_counts(self.labels.cls, self.labels.image, max(self.labels.names, default=0) + 1)

    @cached_property
    def absent(self) -> dict[str, list[str]]:
        """Names of classes that an entry of several lacks, by the end of its path."""
        read = self.labels
        if not read.entries:
            return {}
        objects = np.zeros((len(read.entries), max(read.names) + 1), int)
        np.add.at(objects, (read.entry[read.image], read.cls), 1)
        is_absent = numbers.absent_classes(objects, np.bincount(read.entry, minlength=len(objects)))
        named = (("/".join(Path(entry).parts[-2:]), row) for entry, row in zip(read.entries, is_absent))
        return {entry: [read.names[cls] for cls in np.flatnonzero(row).tolist()] for entry, row in named if row.any()}

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
        return [self._timed(need) for need in needs]

    def _timed(self, need: Cost) -> Cost:
        """Return a cost with the time of a batch of one to four images, one of which is about as crowded."""
        nearest = int(np.abs(self.counts - need.most).argmin())
        others = np.random.default_rng(0).integers(0, len(self.counts), 3).tolist()
        few = max(1, cost.MAX_TIMED // max(1, need.most * need.anchors))
        rows = [np.flatnonzero(self.labels.image == image) for image in (nearest, *others)[:few]]
        index, first = np.concatenate(rows), self.views[0]
        boxes, is_rotated = first.boxes[index], self.labels.task == "obb"
        low, high = np.split(boxes[:, :4] / first.imgsz, 2, axis=1)
        shares = (low, high, boxes[:, 4:]) if is_rotated else ((low + high) / 2, high - low)
        batch = {
            "batch_idx": torch.arange(len(rows)).repeat_interleave(torch.tensor([*map(len, rows)])).float(),
            "cls": torch.from_numpy(self.labels.cls[index]).float().unsqueeze(1),
            "bboxes": torch.from_numpy(np.concatenate(shares, 1)),
            "resized_shape": [[first.imgsz, first.imgsz]] * len(rows),
        }
        return cost.timed(need, batch, len(rows), first.imgsz, self.strides, len(self.classes[0]))

    def _per_image(self, values: np.ndarray) -> np.ndarray:
        """Return the sum (n,) of values of objects (G,) over each image."""
        return np.bincount(self.labels.image, weights=values, minlength=len(self.counts))

    @cached_property
    def facts(self) -> Facts:
        """What the rules of the advice read."""
        shares = [view.shares for view in self.views]
        by_imgsz: dict[str, Any] = {key: tuple(of_view[key] for of_view in shares) for key in shares[0]}
        ratios = numbers.elongated(self.labels.sides)
        args, data = self.plan.args, Path(str(self.plan.args["data"]))
        model = str(args.get("model") or f"yolov8n{SUFFIXES.get(self.labels.task, '')}.yaml")
        return Facts(
            data=str(args["data"]) if data.is_file() else data.name,
            model=model,
            task=self.labels.task,
            imgsz=self.plan.imgsz,
            n_objects=len(self.labels.cls),
            **by_imgsz,
            small_original=numbers.size_shares(self.labels.sides.prod(1))[0],
            long=numbers.share(ratios >= LONG),
            square=numbers.share(ratios <= SQUARE),
            crowded=numbers.share(self.pairs.is_crowded),
            absent=self.absent,
            **self._facts_of_classes(),
            faults={kind: count for kind, count in self.faults.items() if count and not kind.startswith(HARMLESS)},
            dense_bytes=self.costs[0].dense,
            kept={**self._given(*KEPT), **self.plan.numbers},
            pace=pace({**self._given("data", "batch", "device"), "model": model}, self.plan.imgsz[0], len(self.counts)),
            **self._facts_of_assignment(),
        )

    def _facts_of_classes(self) -> dict[str, Any]:
        objects, cls, names = self.classes[0], self.labels.cls, self.labels.names
        rare = numbers.rare_classes(objects, RARE)
        return {
            "unused": [name for i, name in names.items() if looks_like_region(name) and (cls == i).any()],
            "rare": [names.get(int(i), str(i)) for i in rare],
            "rare_share": float(objects[rare].sum() / objects.sum()),
            "imbalance": numbers.imbalance(objects),
        }

    def _given(self, *keys: str) -> dict[str, Any]:
        return {key: self.plan.args[key] for key in keys if key in self.plan.args}

    def _facts_of_assignment(self) -> dict[str, Any]:
        first = self.views[0]
        if first.main is None:
            return {}
        missing, is_small = first.main.positives == 0, numbers.sizes_of(first.areas) == 0
        return {
            "without": first.main.shares.without,
            "without_small": numbers.share(missing[is_small]) if is_small.any() else None,
            "conflicts": first.main.shares.conflicts,
            "tried": [*self._tried(first, first.main)],
            "end_to_end": len(first.assigned) > 1,
            "is_untrained": self.is_untrained,
        }

    def _tried(self, first: View, main: BranchAssignment) -> Iterator[Tried]:
        """Yield how the shares of the first view change with other numbers of the assigner, or a larger imgsz."""
        now, count = main.shares, len(main.positives)
        for (key, value), outcome in main.others.items():
            after = Shares(1 - outcome.covered / count, outcome.conflict_share)
            yield Tried(key, self.topk if key == "tal_topk" else value / 2, value, now, after)
        for view in self.views:
            if view.imgsz > first.imgsz and view.main is not None:
                yield Tried("imgsz", first.imgsz, view.imgsz, now, view.main.shares)
        if self.model and len(self.views) == 1 and (now.without >= MISSED or now.conflicts >= CONTESTED):
            yield self._larger(self.model, first, main)

    def _larger(self, model: Model, first: View, main: BranchAssignment) -> Tried:
        """Try an imgsz half as large again on some of the images."""
        n, imgsz = len(self.counts), larger(first.imgsz)
        images = np.unique(np.linspace(0, n - 1, min(n, MAX_TRIED)).astype(int))
        objects = np.isin(self.labels.image, images)
        total = Outcome(0, 0, 0)
        with closing(progress(len(images), f"assignment at {imgsz}")) as bar:
            for batch in assignments.assigned(model, self.plan.args, imgsz, self.plan.batch, images.tolist()):
                for seen in batch:
                    total = total.plus(seen.outcome) if seen.branch == first.main_name else total
                bar.update(self.plan.batch)
        conflicts = main.conflicts[images].sum() / max(1, main.selected[images].sum())
        before = Shares(numbers.share(main.positives[objects] == 0), float(conflicts))
        after = Shares(1 - total.covered / max(1, int(objects.sum())), total.conflict_share)
        return Tried("imgsz", first.imgsz, imgsz, before, after, len(images))

    def reasons(self, view: View) -> dict[str, np.ndarray]:
        """Return why an image may be worth a look: a score of each image (n,) by reason, 0 or less for none."""
        counts, smallest = self.counts, np.full(len(self.counts), np.inf)
        np.minimum.at(smallest, self.labels.image, view.sides)
        regions = np.array([len(corners) for corners in self.labels.regions], float)
        scores = {
            **({"regions": regions} if len(regions) else {}),
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

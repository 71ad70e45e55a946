# SPDX-License-Identifier: AGPL-3.0-or-later
"""Counts of an assignment: anchors per gt by size of the gt, and their overlap with it."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor
from ultralytics.utils.metrics import probiou

from yolo_lossplug.boxes import Pair
from yolo_lossplug.state import reduce

SIZES = ("small", "medium", "large")
LIMITS = (32.0**2, 96.0**2)
"""Minimum areas in pixels of medium and large gts, as in COCO's evaluation."""
SUMS = ("objects", "unassigned", "positives", "overlap")
"""Sums for each size: gts, gts without any anchor, anchors, and overlaps of the anchors."""


def precision(device: torch.device) -> torch.dtype:
    """Return the type of sums: float32 would lose single anchors in a long epoch, but MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def no_sums(device: torch.device) -> Tensor:
    """Return sums (sizes, sums) of zero."""
    return torch.zeros(len(SIZES), len(SUMS), dtype=precision(device), device=device)


def tally(areas: Tensor, is_gt: Tensor, slot: Tensor, is_positive: Tensor, overlap: Tensor) -> Tensor:
    """Return the sums (sizes, sums) of an assignment, without a GPU sync.

    Args:
        areas: Areas in pixels (G,) of the gt slots of all images.
        is_gt: Whether a slot holds a gt (G,).
        slot: Slot (P,) of the gt of each anchor; any slot for an anchor without gt.
        is_positive: Whether an anchor has a gt (P,), after conflicts are resolved.
        overlap: Overlap of an anchor's predicted box with its gt (P,).
    """
    dtype, n_slots = precision(areas.device), len(areas)
    is_taken = torch.zeros(n_slots + 1, dtype=torch.bool, device=areas.device)
    is_taken.index_fill_(0, slot.masked_fill(~is_positive, n_slots), True)  # the last slot takes the negatives
    size = (areas >= LIMITS[0]).long() + (areas >= LIMITS[1]).long()
    each = torch.arange(len(SIZES), device=areas.device).unsqueeze(1)
    gts, positives = is_gt & (size == each), is_positive & (size[slot] == each)
    counts = [mask.sum(1).to(dtype) for mask in (gts, gts & ~is_taken[:-1], positives)]
    overlaps = overlap.to(dtype).masked_fill(~positives, 0).sum(1)  # no product: the overlap may be NaN
    return torch.stack((*counts, overlaps), 1)


def tally_classes(classes: Tensor, labels: Tensor, is_gt: Tensor, slot: Tensor, is_positive: Tensor) -> None:
    """Add to the gts, and to those of them without any anchor, of each class (classes, 2), without a GPU sync.

    Args:
        classes: The sums.
        labels: Class of each slot (G,).
        is_gt: Whether a slot holds a gt (G,).
        slot: Slot (P,) of the gt of each anchor.
        is_positive: Whether an anchor has a gt (P,).
    """
    is_taken = torch.zeros(len(labels) + 1, dtype=torch.bool, device=labels.device)
    is_taken.index_fill_(0, slot.masked_fill(~is_positive, len(labels)), True)
    values = torch.stack((is_gt, is_gt & ~is_taken[:-1]), 1).to(classes.dtype)
    classes.index_add_(0, labels.long().clamp(0, len(classes) - 1), values)


def summary(sums: Sequence[Sequence[float]], claims: Optional[Sequence[float]] = None) -> dict[str, Optional[float]]:
    """Return the reported values; a ratio is None where its denominator is 0.

    Args:
        sums: Sums (sizes, sums) of `tally`.
        claims: Anchors that were selected, and those selected by two gts or more; None if they were not counted.
    """
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
    for size, (objects, unassigned, *_) in zip(SIZES, sums):
        values[f"unassigned_share_{size}"] = _ratio(unassigned, objects)
    values["conflicts"] = claims[1] if claims else None
    values["conflict_share"] = _ratio(claims[1], claims[0]) if claims else None
    return values


def _ratio(numerator: float, denominator: float) -> Optional[float]:
    return numerator / denominator if denominator else None


COLUMNS = tuple(summary([[0.0] * len(SUMS)] * len(SIZES)))
"""Names of the reported values."""

FILE = "lossplug_report.csv"
HEADER = ("epoch", "branch", *COLUMNS)
CLASS_FILE = "lossplug_report_classes.csv"
CLASS_HEADER = ("epoch", "branch", "class", "name", "objects", "unassigned_share")


class Meter:
    """Counts of one branch of a run's criterion since the start of the epoch.

    The trained model and its moving average share one, and only the trained one adds to it.

    Args:
        device: Device of the sums.
        n_classes: Number of classes; 0 counts no classes.

    Attributes:
        sums: The sums (sizes, sums) of `tally`.
        claims: Anchors that were selected, and those selected by two gts or more (2,).
        classes: Gts, and those without any anchor, of each class (classes, 2).
        is_used: Whether the branch has run at all.
        has_claims: Whether all of its steps have counted claims.
    """

    def __init__(self, device: torch.device, n_classes: int = 0) -> None:
        self.sums, self.is_used, self.has_claims = no_sums(device), False, True
        self.claims = torch.zeros(2, dtype=precision(device), device=device)
        self.classes = torch.zeros(n_classes, 2, dtype=precision(device), device=device)

    def __deepcopy__(self, memo: dict[int, Any]) -> Meter:
        return self  # copies of a criterion, such as the EMA's, belong to the same run

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All sums."""
        return self.sums, self.claims, self.classes

    def add(
        self,
        gt_boxes: Tensor,
        mask: Tensor,
        slot: Tensor,
        is_positive: Tensor,
        pred_boxes: Tensor,
        labels: Optional[Tensor] = None,
        claims: Optional[Tensor] = None,
    ) -> None:
        """Count what was assigned, if this is training.

        Args:
            gt_boxes: Boxes (b, n, 4), x1 y1 x2 y2 in pixels, or (b, n, 5), x y w h and an angle.
            mask: Which slots hold a gt (b, n, 1).
            slot: Slot (P,) of the gt of each anchor among those of all images.
            is_positive: Whether an anchor has a gt (P,).
            pred_boxes: Boxes (P, 4 or 5) that the anchors predict.
            labels: Classes (b, n, 1); None counts no classes.
            claims: Number of gts (b·A,) that select each anchor, before conflicts are resolved; None if unknown.
        """
        if not torch.is_grad_enabled():
            return
        self.is_used = True
        boxes = gt_boxes.flatten(0, 1).float()
        if not len(boxes):
            return
        with torch.no_grad():
            sides = boxes[:, 2:4] if boxes.shape[1] == 5 else boxes[:, 2:] - boxes[:, :2]
            overlap = overlaps(pred_boxes.float(), boxes[slot])
            is_gt = mask.flatten().bool()
            self.sums += tally(sides[:, 0] * sides[:, 1], is_gt, slot, is_positive, overlap)
            if labels is not None and len(self.classes):
                tally_classes(self.classes, labels.flatten(), is_gt, slot, is_positive)
            self.has_claims = self.has_claims and claims is not None
            if claims is not None:
                self.claims += torch.stack(((claims > 0).sum(), (claims > 1).sum()))


class Collector:
    """Assignment report of one run.

    Args:
        file: The table.
        is_resumed: Whether an existing table belongs to this run.

    Attributes:
        rows: The lines of the table.
        class_rows: The lines of the table of classes.
        shown: Values of the last epoch for the loggers.
    """

    def __init__(self, file: Path, is_resumed: bool) -> None:
        self.file, self.class_file = file, file.with_name(CLASS_FILE)
        self.meters: dict[str, Meter] = {}
        self.names: Mapping[int, str] = {}
        self.rows = _read(file, HEADER) if is_resumed and file.is_file() else []
        self.class_rows = _read(self.class_file, CLASS_HEADER) if is_resumed and self.class_file.is_file() else []
        self.shown: dict[str, float] = {}
        self.by_class: dict[str, list[list[float]]] = {}

    def meter(
        self, branch: str, device: torch.device, n_classes: int = 0, names: Optional[Mapping[int, str]] = None
    ) -> Meter:
        """Return the meter of a branch, the same for every criterion of the branch."""
        if branch not in self.meters:
            self.meters[branch] = Meter(device, n_classes)
        self.names = names or self.names
        return self.meters[branch]

    def clear(self) -> None:
        """Reset the counts at the end of an epoch, or after an interrupted one."""
        for meter in self.meters.values():
            for part in meter.parts:
                part.zero_()

    def counted(self) -> dict[str, dict[str, Optional[float]]]:
        """Return the counts of all ranks together, by branch; call it on every rank. Those of classes are kept."""
        used = {branch: meter for branch, meter in sorted(self.meters.items()) if meter.is_used}
        if not used:
            return {}
        counts: dict[str, dict[str, Optional[float]]] = {}
        for branch, meter in used.items():
            flat = reduce(torch.cat([part.flatten() for part in meter.parts]))
            sums, claims, classes = (
                part.view_as(like) for part, like in zip(flat.split([p.numel() for p in meter.parts]), meter.parts)
            )
            counts[branch] = summary(sums.tolist(), claims.tolist() if meter.has_claims else None)
            self.by_class[branch] = classes.tolist()
        return counts

    def add(self, epoch: int, counted: dict[str, dict[str, Optional[float]]]) -> None:
        """Add the rows of an epoch, and drop later ones, which a resumed run repeats."""
        self.rows = [row for row in self.rows if int(row["epoch"]) < epoch]
        self.class_rows = [row for row in self.class_rows if int(row["epoch"]) < epoch]
        for branch, values in counted.items():
            texts = {key: "" if value is None else f"{value:.6g}" for key, value in values.items()}
            counts = {key: f"{value:.0f}" for key, value in values.items() if value is not None and _is_count(key)}
            self.rows.append({"epoch": str(epoch), "branch": branch, **texts, **counts})
            self.class_rows += self._rows_of_classes(epoch, branch)

    def _rows_of_classes(self, epoch: int, branch: str) -> list[dict[str, str]]:
        """Return the rows of the classes that had objects."""
        rows = []
        for i, (objects, unassigned) in enumerate(self.by_class.get(branch, [])):
            if objects:
                values = epoch, branch, i, self.names.get(i, str(i)), f"{objects:.0f}", f"{unassigned / objects:.6g}"
                rows.append(dict(zip(CLASS_HEADER, map(str, values))))
        return rows

    def write(self) -> None:
        """Write the tables, each atomically."""
        from yolo_lossplug import charts

        charts.save_table(self.rows, self.file, HEADER)
        if self.class_rows:
            charts.save_table(self.class_rows, self.class_file, CLASS_HEADER)


def overlaps(pred: Tensor, target: Tensor) -> Tensor:
    """Return the IoU (P,) of boxes, of rotated ones the host's ProbIoU."""
    return Pair(pred, target).iou if target.shape[1] == 4 else probiou(pred, target).view(-1)


def _is_count(key: str) -> bool:
    return key.startswith("objects") or key == "conflicts"


def _read(file: Path, header: Sequence[str]) -> list[dict[str, str]]:
    """Return the valid rows of a table."""
    with file.open(newline="", encoding="utf-8") as source:
        rows = [{key: row.get(key) or "" for key in header} for row in csv.DictReader(source)]
    return [row for row in rows if row["epoch"].isdigit()]

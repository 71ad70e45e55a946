# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an assignment gives to the gts, counted: how many anchors, by size of the gt, and how well these fit."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor
from ultralytics.utils.metrics import probiou

from yolo_lossplug.boxes import Pair
from yolo_lossplug.state import reduce

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

FILE = "lossplug_report.csv"
HEADER = ("epoch", "branch", *COLUMNS)


class Meter:
    """What one branch of a run's criterion has counted since the epoch began.

    The trained model and its moving average share one, and only the trained one adds to it.

    Args:
        device: Where it counts.

    Attributes:
        sums: The sums (sizes, sums) of `tally`.
        is_used: Whether the branch was asked at all.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums, self.is_used = no_sums(device), False

    def __deepcopy__(self, memo: dict[int, Any]) -> Meter:
        return self  # a copy of a criterion, as that of the moving average, belongs to the same run

    def add(self, objects: Tensor, mask: Tensor, place: Tensor, is_positive: Tensor, found: Tensor) -> None:
        """Count what was assigned, if this is training.

        Args:
            objects: Boxes (b, n, 4), x1 y1 x2 y2 in pixels, or (b, n, 5), x y w h and an angle.
            mask: Which of them are objects (b, n, 1).
            place: Object (P,) of each anchor among the places of all images.
            is_positive: Whether an anchor has an object (P,).
            found: Boxes (P, 4 or 5) that the anchors predict.
        """
        if not torch.is_grad_enabled():
            return
        self.is_used = True
        boxes = objects.flatten(0, 1).float()
        if not len(boxes):
            return
        with torch.no_grad():
            sides = boxes[:, 2:4] if boxes.shape[1] == 5 else boxes[:, 2:] - boxes[:, :2]
            overlap = _overlap(found.float(), boxes[place])
            self.sums += tally(sides[:, 0] * sides[:, 1], mask.flatten().bool(), place, is_positive, overlap)


class Collector:
    """What one run reports.

    Args:
        file: The table.
        is_resumed: Whether the table that is there is that of this run.

    Attributes:
        rows: The lines of the table.
        shown: What the loggers are shown of the last epoch.
    """

    def __init__(self, file: Path, is_resumed: bool) -> None:
        self.file = file
        self.meters: dict[str, Meter] = {}
        self.rows = _read(file) if is_resumed and file.is_file() else []
        self.shown: dict[str, float] = {}

    def meter(self, branch: str, device: torch.device) -> Meter:
        """Return the meter of a branch, however often its criterion is made."""
        if branch not in self.meters:
            self.meters[branch] = Meter(device)
        return self.meters[branch]

    def clear(self) -> None:
        """Forget what was counted in an epoch that was broken off, or is over."""
        for meter in self.meters.values():
            meter.sums.zero_()

    def counted(self) -> dict[str, dict[str, Optional[float]]]:
        """Return what all ranks together have counted, by branch; to be asked on every rank."""
        used = {branch: meter.sums for branch, meter in sorted(self.meters.items()) if meter.is_used}
        if not used:
            return {}
        sums = reduce(torch.stack(list(used.values()))).tolist()
        return {branch: summary(rows) for branch, rows in zip(used, sums)}

    def add(self, epoch: int, found: dict[str, dict[str, Optional[float]]]) -> None:
        """Add the rows of an epoch, and drop those of a run that went further before it was resumed."""
        self.rows = [row for row in self.rows if int(row["epoch"]) < epoch]
        for branch, values in found.items():
            texts = {key: "" if value is None else f"{value:.6g}" for key, value in values.items()}
            counts = {key: f"{value:.0f}" for key, value in values.items() if value is not None and _is_count(key)}
            self.rows.append({"epoch": str(epoch), "branch": branch, **texts, **counts})

    def write(self) -> None:
        """Write the table; it is complete or as it was."""
        from yolo_lossplug import charts

        charts.save_table(self.rows, self.file, HEADER)


def _overlap(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the IoU (P,) of boxes, of rotated ones the host's ProbIoU."""
    return Pair(found, wanted).iou if wanted.shape[1] == 4 else probiou(found, wanted).view(-1)


def _is_count(key: str) -> bool:
    return key.startswith("objects")


def _read(file: Path) -> list[dict[str, str]]:
    """Return the lines of a table, as far as they are lines of it."""
    with file.open(newline="", encoding="utf-8") as source:
        rows = [{key: row.get(key) or "" for key in HEADER} for row in csv.DictReader(source)]
    return [row for row in rows if row["epoch"].isdigit()]

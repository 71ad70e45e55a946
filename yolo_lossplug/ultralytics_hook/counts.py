# SPDX-License-Identifier: AGPL-3.0-or-later
"""Counts of an assignment: anchors per gt by size of the gt, and their overlap with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor
from ultralytics.utils.metrics import probiou

from yolo_lossplug.boxes import LIMITS, SIZES, Pair

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
    dtype, is_unassigned = precision(areas.device), _is_unassigned(is_gt, slot, is_positive)
    size = (areas >= LIMITS[0]).long() + (areas >= LIMITS[1]).long()
    each = torch.arange(len(SIZES), device=areas.device).unsqueeze(1)
    gts, positives = is_gt & (size == each), is_positive & (size[slot] == each)
    counts = [mask.sum(1).to(dtype) for mask in (gts, gts & is_unassigned, positives)]
    overlaps = overlap.to(dtype).masked_fill(~positives, 0).sum(1)  # no product: the overlap may be NaN
    return torch.stack((*counts, overlaps), 1)


def _is_unassigned(is_gt: Tensor, slot: Tensor, is_positive: Tensor) -> Tensor:
    is_taken = torch.zeros(len(is_gt) + 1, dtype=torch.bool, device=is_gt.device)
    is_taken.index_fill_(0, slot.masked_fill(~is_positive, len(is_gt)), True)  # the last slot takes the negatives
    return is_gt & ~is_taken[:-1]


def tally_classes(classes: Tensor, labels: Tensor, is_gt: Tensor, slot: Tensor, is_positive: Tensor) -> None:
    """Add to the gts, and to those of them without any anchor, of each class (classes, 2); arguments as of `tally`."""
    values = torch.stack((is_gt, _is_unassigned(is_gt, slot, is_positive)), 1).to(classes.dtype)
    classes.index_add_(0, labels.long().clamp(0, len(classes) - 1), values)


def column_values(
    sums: Sequence[Sequence[float]], claims: Optional[Sequence[float]] = None, silenced: Sequence[float] = (0.0, 0.0)
) -> dict[str, Optional[float]]:
    """Return the reported values of a `Meter`; a ratio is None where its denominator is 0."""
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
    values["silenced_share"] = _ratio(silenced[1], silenced[0])
    return values


def _ratio(numerator: float, denominator: float) -> Optional[float]:
    return numerator / denominator if denominator else None


COLUMNS = tuple(column_values([[0.0] * len(SUMS)] * len(SIZES)))
"""Names of the reported values."""


class Meter:
    """Counts of one branch of a run's criterion since the start of the epoch.

    The trained model and its moving average share one, and only the trained one adds to it.

    Args:
        device: Device of the sums.
        n_classes: Number of classes; 0 counts none.

    Attributes:
        sums: The sums (sizes, sums) of `tally`.
        claims: Anchors that were selected, and those selected by two gts or more (2,).
        classes: Gts, and those without any anchor, of each class (classes, 2).
        silenced: Anchors of all classes, and those in regions of theirs, in data with regions (2,).
        is_used: Whether the branch has run at all.
        has_claims: Whether all of its steps have counted claims.
    """

    def __init__(self, device: torch.device, n_classes: int = 0) -> None:
        self.sums, self.is_used, self.has_claims = no_sums(device), False, True
        self.claims = torch.zeros(2, dtype=precision(device), device=device)
        self.classes = torch.zeros(n_classes, 2, dtype=precision(device), device=device)
        self.silenced = torch.zeros(2, dtype=precision(device), device=device)

    def __deepcopy__(self, memo: dict[int, Any]) -> Meter:
        return self  # copies of a criterion, such as the EMA's, belong to the same run

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All sums."""
        return self.sums, self.claims, self.classes, self.silenced

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
        boxes, is_training = gt_boxes.flatten(0, 1).float(), torch.is_grad_enabled()
        self.is_used = self.is_used or is_training
        if not is_training or not len(boxes):
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


def overlaps(pred: Tensor, target: Tensor) -> Tensor:
    """Return the IoU (P,) of boxes, of rotated ones the host's ProbIoU."""
    return Pair(pred, target).iou if target.shape[1] == 4 else probiou(pred, target).view(-1)

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Regions in the host's augmentation: labels whose class is above `FIRST`, which tells them from objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ultralytics.data import augment
from ultralytics.utils.instance import Instances

from yolo_lossplug.regions import KEY, ImageRegions, upright_corners
from yolo_lossplug.ultralytics_hook.derived import Derived, derive

FIRST = 2**16
"""Class of regions of kind 0 that are boxes of a class; those of kind k have `FIRST` + k."""
WHOLE = 2**17
"""The same for regions that cover an image."""


def is_region(labels: Mapping[str, Any], first: int = FIRST) -> np.ndarray:
    """Return which instances of labels are regions (n,); from `WHOLE` on those that cover an image."""
    return np.asarray(labels["cls"]).reshape(-1) >= first


def keep_regions(transform: Any) -> None:
    """Make transforms keep regions, also inside of others."""
    for kind, mixin in KEEPING.items():
        if isinstance(transform, kind):
            derive(mixin, transform)
    for inner in getattr(transform, "transforms", None) or ():
        keep_regions(inner)
    if getattr(transform, "pre_transform", None) is not None:
        keep_regions(transform.pre_transform)
        if isinstance(transform, augment.CopyPaste):  # of the other image single objects are pasted
            transform.pre_transform = augment.Compose([transform.pre_transform, LeaveWhole()])


class KeepInAffine(Derived):
    """An affine transform that keeps what is left of a region, however little."""

    lossplug: np.ndarray

    def __call__(self, labels: dict[str, Any]) -> dict[str, Any]:
        """Return the transformed labels."""
        self.lossplug = is_region(labels)
        moved: dict[str, Any] = super().__call__(labels)  # type: ignore[misc]
        return moved

    def box_candidates(self, box1: np.ndarray, box2: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
        """Return which of the boxes (4, n) are kept."""
        kept = super().box_candidates(box1, box2, *args, **kwargs)  # type: ignore[misc]
        return kept | (self.lossplug & (box2[2] > box2[0]) & (box2[3] > box2[1]))

    def apply_segments(self, segments: np.ndarray, M: np.ndarray, *args: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes (n, 4) and outlines (n, k, 2), of regions also where no point of the outline is in the image."""
        drawn = segments[self.lossplug]
        boxes, moved = super().apply_segments(segments, M, *args)  # type: ignore[misc]
        if len(drawn):
            points = np.concatenate((drawn, np.ones_like(drawn[..., :1])), -1) @ M.T
            points = points[..., :2] / points[..., 2:]
            moved[self.lossplug] = points
            boxes[self.lossplug] = np.concatenate((points.min(1), points.max(1)), 1)
        return boxes, moved


class KeepInCutMix(Derived):
    """A cut out of another image that takes along what it has of regions, however little."""

    def get_params(self, labels: dict[str, Any]) -> dict[str, Any]:
        """Return what the host decides."""
        params: dict[str, Any] = super().get_params(labels)  # type: ignore[misc]
        if params.get("skip") or "area" not in params:
            return params
        other, (x1, y1, x2, y2) = labels["mix_labels"][0], params["area"]
        boxes = other["instances"].bboxes
        meets = (boxes[:, 0] < x2) & (boxes[:, 2] > x1) & (boxes[:, 1] < y2) & (boxes[:, 3] > y1)
        kept = np.zeros(len(boxes), bool)
        kept[params["indexes2"]] = True
        params["indexes2"] = (kept | (is_region(other) & meets)).nonzero()[0]
        return params


class LeaveInCopyPaste(Derived):
    """A copy-paste that copies objects, and no region that covers an image."""

    def __call__(self, labels: dict[str, Any]) -> dict[str, Any]:
        """Return the labels with pasted objects."""
        whole = is_region(labels, WHOLE)
        if not whole.any():
            return super().__call__(labels)  # type: ignore[misc]
        instances, cls = labels["instances"], labels["cls"]
        labels["instances"], labels["cls"] = instances[~whole], cls[~whole]
        pasted: dict[str, Any] = super().__call__(labels)  # type: ignore[misc]
        left = instances[whole]
        left.convert_bbox(pasted["instances"]._bboxes.format)
        height, width = pasted["img"].shape[:2]
        (left.normalize if pasted["instances"].normalized else left.denormalize)(width, height)
        pasted["instances"] = Instances.concatenate([pasted["instances"], left], axis=0)
        pasted["cls"] = np.concatenate((pasted["cls"], cls[whole]))
        return pasted


class LeaveWhole:
    """Takes regions that cover an image out of labels."""

    def __call__(self, labels: dict[str, Any]) -> dict[str, Any]:
        """Return the labels without them."""
        whole = is_region(labels, WHOLE)
        labels["instances"], labels["cls"] = labels["instances"][~whole], labels["cls"][~whole]
        return labels


KEEPING = {augment.RandomPerspective: KeepInAffine, augment.CopyPaste: LeaveInCopyPaste}
if hasattr(getattr(augment, "CutMix", None), "get_params"):
    KEEPING[augment.CutMix] = KeepInCutMix


class TakeRegions:
    """Takes regions out of the labels of an image, and puts them beside.

    Args:
        table: Which classes each kind silences (kinds, classes).
        is_rotated: Whether boxes are rotated.
    """

    def __init__(self, table: np.ndarray, is_rotated: bool) -> None:
        self.table, self.is_rotated = table, is_rotated

    def __call__(self, labels: dict[str, Any]) -> dict[str, Any]:
        """Return the labels of objects; the regions are in `KEY`."""
        taken = is_region(labels)
        instances, cls = labels["instances"], np.asarray(labels["cls"]).reshape(-1)
        codes = cls[taken].astype(np.int64)
        regions = instances[taken]
        height, width = labels["img"].shape[:2]
        regions.convert_bbox("xyxy")
        regions.normalize(width, height)
        corners = upright_corners(regions.bboxes.astype(np.float32))
        if self.is_rotated and len(corners):
            corners = _rotated(regions.segments * (width, height)) / np.array((width, height), np.float32)
        labels["instances"], labels["cls"] = instances[~taken], labels["cls"][~taken]
        labels[KEY] = ImageRegions(
            corners.astype(np.float32), np.where(codes >= WHOLE, codes - WHOLE, codes - FIRST), self.table
        )
        return labels


def _rotated(outlines: np.ndarray) -> np.ndarray:
    """Return the corners (R, 4, 2) of the smallest rectangles around outlines (R, points, 2), in pixels."""
    import cv2

    return np.stack([cv2.boxPoints(cv2.minAreaRect(outline.astype(np.float32))) for outline in outlines])

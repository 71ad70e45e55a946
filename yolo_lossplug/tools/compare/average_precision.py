# SPDX-License-Identifier: AGPL-3.0-or-later
"""Average precision by size and class, as COCO defines it: 101 points, IoU 0.5 to 0.95, objects of other sizes ignored.

A detection without an object is ignored too where its share in a region of its class reaches the IoU, as in a crowd.
Detections are the 100 of highest score of each class and image. Areas are those of boxes in the network's input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np

from yolo_lossplug.boxes import LIMITS

THRESHOLDS = np.linspace(0.5, 0.95, 10)
SMALL, MEDIUM = LIMITS
AREAS = {"all": (0.0, 1e10), "small": (0.0, SMALL), "medium": (SMALL, MEDIUM), "large": (MEDIUM, 1e10)}
"""Ranges of areas in pixels, both ends included."""


class Image(NamedTuple):
    """Detections and objects of one image.

    Attributes:
        scores: Scores of the detections (d,).
        classes: Their classes (d,).
        areas: Their areas in pixels (d,).
        iou: IoU of detections and objects (d, g).
        gt_classes: Classes of the objects (g,).
        gt_areas: Areas of the objects in pixels (g,).
        in_regions: Share of the area of each detection that lies in a region of its class (d,); None for no regions.
    """

    scores: np.ndarray
    classes: np.ndarray
    areas: np.ndarray
    iou: np.ndarray
    gt_classes: np.ndarray
    gt_areas: np.ndarray
    in_regions: Optional[np.ndarray] = None


def of_found(found: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> dict[str, Optional[float]]:
    """Return AP by size and class of what a validation has found (`detections.Found`); empty for a task without boxes.

    Boxes of segments and poses count, rotated ones by their own area.
    """
    images = [Image(**{field: image[field] for field in Image._fields if field in image}) for image in found]
    return by_size_and_class(images, names) if images else {}


def size_of(found: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the numbers of images and of objects, of these also by size."""
    areas = np.concatenate([np.zeros(0), *(image["gt_areas"] for image in found)])
    sizes = {"small": areas < SMALL, "medium": (areas >= SMALL) & (areas < MEDIUM), "large": areas >= MEDIUM}
    return {"images": len(found), "objects": len(areas), **{name: int(is_in.sum()) for name, is_in in sizes.items()}}


def by_size_and_class(images: Sequence[Image], names: Mapping[int, str]) -> dict[str, Optional[float]]:
    """Return AP by size, ``AP_small``, and by class, ``AP_<class>``, each in [0, 1]; None where there is no object."""
    table = precision_table(images, sorted(names))
    sizes = {f"AP_{area}": _mean(table[:, i]) for i, area in enumerate(AREAS) if area != "all"}
    return {**sizes, **{class_key(names[cls]): _mean(table[i, 0]) for i, cls in enumerate(sorted(names))}}


def class_key(name: str) -> str:
    """Return the metric of a class, which is not that of a size even if the class is called ``small``."""
    return f"AP_{name}" if name not in AREAS else f"AP_{name} (class)"


def precision_table(images: Sequence[Image], classes: Sequence[int]) -> np.ndarray:
    """Return AP (classes, areas, thresholds); NaN where a class has no object of such an area."""
    return np.array([_of_class(images, cls) for cls in classes]).reshape(len(classes), len(AREAS), len(THRESHOLDS))


def _of_class(images: Sequence[Image], cls: int) -> np.ndarray:
    """Return AP (areas, thresholds) of one class."""
    parts = [part for image in images if (part := _matches(image, cls)) is not None]
    if not parts:
        return np.full((len(AREAS), len(THRESHOLDS)), np.nan)
    *per_detection, counts = zip(*parts)
    scores, hits, alarms = (np.concatenate(values, -1) for values in per_detection)
    order, objects = np.argsort(-scores, kind="stable"), np.sum(counts, 0)
    return np.stack([_average(hits[i][:, order], alarms[i][:, order], count) for i, count in enumerate(objects)])


def _average(hits: np.ndarray, alarms: np.ndarray, objects: int) -> np.ndarray:
    """Return AP (thresholds,) of hits and false alarms (thresholds, d) by falling score."""
    if objects == 0:
        return np.full(len(hits), np.nan)
    hits, alarms = hits.cumsum(-1), alarms.cumsum(-1)
    recall, precision = hits / objects, hits / (hits + alarms + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], -1)[:, ::-1]
    padded = np.pad(envelope, ((0, 0), (0, 1)))  # a recall that is not reached has precision 0
    recalls = np.linspace(0, 1, 101)
    return np.array([row[np.searchsorted(reached, recalls)].mean() for row, reached in zip(padded, recall)])


def _matches(image: Image, cls: int) -> Optional[tuple[np.ndarray, ...]]:
    """Return scores (d,), hits and false alarms (areas, thresholds, d) of one class, and its objects (areas,).

    None if the image has neither objects nor detections of it.
    """
    of_class, objects = np.flatnonzero(image.classes == cls), np.flatnonzero(image.gt_classes == cls)
    if not len(of_class) and not len(objects):
        return None
    kept = of_class[np.argsort(-image.scores[of_class], kind="stable")][:100]
    ignored = _outside(image.gt_areas[objects])
    matched, is_ignored = match(image.iou[np.ix_(kept, objects)], ignored)
    is_ignored |= ~matched & _outside(image.areas[kept])[:, None]
    if image.in_regions is not None:  # as COCO treats crowds, at each threshold
        is_ignored |= ~matched & (image.in_regions[kept] >= THRESHOLDS[:, None])
    hits, alarms = matched & ~is_ignored, ~matched & ~is_ignored
    return image.scores[kept], hits, alarms, (~ignored).sum(-1)


def _outside(areas: np.ndarray) -> np.ndarray:
    """Return which areas are outside of each range (areas, n)."""
    limits = np.array(list(AREAS.values()))
    return (areas < limits[:, :1]) | (areas > limits[:, 1:])


def match(iou: np.ndarray, ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Match detections with objects of one class, best score first, each with the free object of highest IoU.

    Takes their IoU (d, g), by falling score, and which objects do not count in each range of areas (areas, g): they are
    matched where no other can be. Returns which detections are matched, and which of these with such an object, (areas,
    thresholds, d) both.
    """
    shape = (len(ignored), len(THRESHOLDS), len(iou))
    matched, is_ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    free = np.ones((*shape[:2], iou.shape[1]), bool)
    preferred = np.where(ignored, 0.0, 2.0)[:, None]
    areas, thresholds = np.ogrid[: shape[0], : shape[1]]
    for d in np.flatnonzero((iou >= THRESHOLDS[0]).any(-1)):
        is_candidate = free & (iou[d] >= THRESHOLDS[:, None])
        rank = np.where(is_candidate, iou[d] + preferred, -1.0)
        best = rank.shape[-1] - 1 - rank[..., ::-1].argmax(-1)  # COCO takes the last of equals
        hit = is_candidate[areas, thresholds, best]
        matched[..., d], is_ignored[..., d] = hit, hit & ignored[areas, best]
        free[areas, thresholds, best] &= ~hit
    return matched, is_ignored


def _mean(values: np.ndarray) -> Optional[float]:
    """Return the mean of all values but NaN, None if there is none."""
    return None if np.isnan(values).all() else float(np.nanmean(values))

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Regions in the host's dataset: they travel among the labels through the augmentation, and leave them before `Format`.

On their way their class is a number above `FIRST`, so that every transform tells them from objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Callable, Optional

import numpy as np
import ultralytics
from ultralytics.data import augment
from ultralytics.data.base import BaseDataset
from ultralytics.utils.instance import Instances

from yolo_lossplug.regions import KEY, ImageRegions, upright_corners
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import TASKS
from yolo_lossplug.selection.regions import ANNOTATED, IGNORE, Rules, rules_of
from yolo_lossplug.ultralytics_hook.derived import Derived, derive
from yolo_lossplug.ultralytics_hook.family import prompted_trainer

FIRST = 2**16
"""Class of regions of kind 0 that are boxes of a class; those of kind k have `FIRST` + k."""
WHOLE = 2**17
"""The same for regions that cover an image."""


def rules_of_data(data: Mapping[str, Any], args: Any) -> Optional[Rules]:
    """Return what of a dataset is not taught: by its description, or by the keys of a run, which win.

    Args:
        data: Description of the dataset.
        args: Arguments of the run, as a namespace; None for none.

    Raises:
        LossPlugError: If a value is wrong, or the arguments leave no way to tell regions.
    """
    ignore, annotated = (
        data.get(key) if getattr(args, key, None) is None else getattr(args, key) for key in (IGNORE, ANNOTATED)
    )
    if (ignore is None and annotated is None) or "names" not in data:
        return None
    names = data["names"]
    names = {int(i): str(name) for i, name in (names.items() if isinstance(names, dict) else enumerate(names))}
    if getattr(args, "single_cls", None):
        _refuse("single_cls=True", ignore, annotated, "it makes all classes one")
    rules = rules_of(names, ignore, annotated, data)
    kept = getattr(args, "classes", None)
    kept = [kept] if isinstance(kept, int) else kept
    lost = [] if rules is None or kept is None else sorted(rules.kinds.keys() - set(kept))
    if lost:
        _refuse(f"classes={kept}", ignore, None, f"it drops the boxes of '{names[lost[0]]}'; add {lost[0]} to it")
    return rules


def _refuse(what: str, ignore: Any, annotated: Any, why: str) -> None:
    key = f"{IGNORE}={ignore}" if ignore is not None else f"{ANNOTATED}={annotated}"
    raise LossPlugError(f"{key} cannot be used with {what}: {why}. Remove one of them.")


def update_labels_info(stock: Callable[..., Any], dataset: Any, label: dict[str, Any]) -> Any:
    """Return a label as the host makes it, of one in which regions are marked, and that of its image is added."""
    if hasattr(dataset, KEY):
        dataset.lossplug.mark(label)
    return stock(dataset, label)


def build_transforms(stock: Callable[..., Any], dataset: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the host's transforms; they keep regions, and take them out at the end."""
    transforms = stock(dataset, *args, **kwargs)
    return dataset.lossplug.prepare(transforms) if hasattr(dataset, KEY) else transforms


class OfDataset:
    """What a dataset knows of its regions.

    Args:
        rules: What is not taught.
        host: The dataset.
        entries: Kinds of the regions that cover every image of the entries of the dataset, by entry.
    """

    def __init__(self, rules: Rules, host: Any, entries: Mapping[str, Optional[int]]) -> None:
        self.rules, self.is_rotated = rules, bool(getattr(host, "use_obb", False))
        self.table = np.zeros((len(rules.rows), rules.count), bool)
        for i, classes in enumerate(rules.rows):
            self.table[i, sorted(classes)] = True
        self.whole: dict[str, int] = {}
        for entry, kind in entries.items():
            if kind is not None:
                self.whole.update(dict.fromkeys(BaseDataset.get_img_files(_everything(), entry), kind))
        self.has_outlines = any(len(label["segments"]) for label in host.labels)

    def kind_of_image(self, file: str) -> Optional[int]:
        """Return the kind of the region that covers an image, None for none."""
        return self.whole.get(file)

    def mark(self, label: dict[str, Any]) -> None:
        """Give regions of a label their class, and add that of the image, in place; its arrays are copies already."""
        cls = np.array(label["cls"], dtype=np.float32)
        for ignored, of_class in self.rules.kinds.items():
            cls[label["cls"] == ignored] = FIRST + of_class
        kind = self.whole.get(label["im_file"])
        if kind is not None:
            cls = np.concatenate((cls.reshape(-1, 1), [[WHOLE + kind]])).astype(np.float32)
            label["bboxes"] = np.concatenate((label["bboxes"].reshape(-1, 4), [[0.5, 0.5, 1, 1]])).astype(np.float32)
            if self.has_outlines:
                outline = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
                label["segments"] = [*label["segments"], outline]
            points = label.get("keypoints")
            if points is not None:
                label["keypoints"] = np.concatenate((points, np.zeros_like(points, shape=(1, *points.shape[1:]))))
        label["cls"] = cls

    def prepare(self, transforms: Any) -> Any:
        """Make transforms keep regions, in place, and insert what takes them out before the last one, `Format`."""
        if any(isinstance(one, TakeRegions) for one in transforms.transforms):
            return transforms
        _derive_inside(transforms)
        transforms.transforms.insert(len(transforms.transforms) - 1, TakeRegions(self.table, self.is_rotated))
        return transforms


def _everything() -> Any:
    """Return settings with which the host lists all files of an entry."""
    return SimpleNamespace(prefix="", fraction=1.0)


def init_dataset(stock: Callable[..., None], dataset: Any, *args: Any, **kwargs: Any) -> None:
    """Make a dataset, with regions if its description, or the arguments of the run, have any."""
    data, hyp = kwargs.get("data"), kwargs.get("hyp")
    has_boxes = kwargs.get("task", "detect") in TASKS
    rules = rules_of_data(data, hyp) if isinstance(data, Mapping) and has_boxes else None  # before labels are loaded
    stock(dataset, *args, **kwargs)
    if rules is None or data is None or not getattr(dataset, "labels", None):
        return
    path = kwargs.get("img_path", args[0] if args else None)
    entries = _entries_of(rules, data, path)
    dataset.lossplug = OfDataset(rules, dataset, entries)
    dataset.transforms = dataset.lossplug.prepare(dataset.transforms)


def _entries_of(rules: Rules, data: Mapping[str, Any], path: Any) -> dict[str, Optional[int]]:
    """Return the kinds of the entries of a path, which may be one of several; an entry is known by its name."""

    def listed(value: Any) -> list[str]:
        return [str(one) for one in (value if isinstance(value, (list, tuple)) else [value])]

    known = {entry: kind for split, kinds in rules.entries.items() for entry, kind in zip(listed(data[split]), kinds)}
    return {entry: known[entry] for entry in listed(path) if entry in known}


def is_region(labels: Mapping[str, Any], first: int = FIRST) -> np.ndarray:
    """Return which instances of labels are regions (n,); from `WHOLE` on those that cover an image."""
    return np.asarray(labels["cls"]).reshape(-1) >= first


def _derive_inside(transform: Any) -> None:
    """Make transforms keep regions, also inside of others."""
    for kind, mixin in KEEPING.items():
        if isinstance(transform, kind):
            derive(mixin, transform)
    for inner in getattr(transform, "transforms", None) or ():
        _derive_inside(inner)
    if getattr(transform, "pre_transform", None) is not None:
        _derive_inside(transform.pre_transform)
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


def rules_of_trainer(trainer: Any) -> Optional[Rules]:
    """Return what of the data of a trainer is not taught, None where everything is.

    Raises:
        LossPlugError: If it says so, and cannot be trained so.
    """
    args, data = trainer.args, getattr(trainer, "data", None)
    rules = rules_of_data(data, args) if isinstance(data, Mapping) else None
    if rules is None:
        return None
    family = prompted_trainer(type(trainer)) or ("" if args.task in TASKS else f"task={args.task}")
    if family:
        why = f"it has no class term of anchors or queries whose channels are classes of the data={args.data}"
        raise LossPlugError(f"{IGNORE} and {ANNOTATED} cannot be used with {family}: {why}. Remove them.")
    refuse_cutmix(args)
    return rules


def refuse_cutmix(args: Any) -> None:
    """Raise an error for CutMix in releases that drop small rests of regions.

    Raises:
        LossPlugError: If it is on.
    """
    if getattr(args, "cutmix", 0) and KeepInCutMix not in KEEPING.values():
        raise LossPlugError(
            f"cutmix={args.cutmix} cannot be used with {IGNORE} or {ANNOTATED} in ultralytics "
            f"{ultralytics.__version__}: it would drop parts of regions. Remove it, or install a newer one."
        )

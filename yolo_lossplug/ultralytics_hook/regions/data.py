# SPDX-License-Identifier: AGPL-3.0-or-later
"""Regions in the host's dataset: among the labels until the end of the augmentation, and beside them from there on."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Callable, Optional

import numpy as np
import ultralytics
from ultralytics.data.base import BaseDataset

from yolo_lossplug.regions import KEY
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import TASKS
from yolo_lossplug.selection.regions import ANNOTATED, IGNORE, Rules, as_list, by_index, rules_of
from yolo_lossplug.ultralytics_hook.family import prompted_trainer
from yolo_lossplug.ultralytics_hook.regions.transforms import (
    FIRST,
    KEEPING,
    WHOLE,
    KeepInCutMix,
    TakeRegions,
    keep_regions,
)


def rules_of_data(data: Mapping[str, Any], args: Any) -> Optional[Rules]:
    """Return what of a dataset is not taught: by its description, or by the keys of a run, which win.

    Args:
        data: Description of the dataset.
        args: Arguments of the run, as a namespace; None for none.

    Raises:
        LossPlugError: If a value is wrong, or the arguments leave no way to tell regions.
    """
    ignore, annotated = (_value_of(key, data, args) for key in (IGNORE, ANNOTATED))
    if (ignore is None and annotated is None) or "names" not in data:
        return None
    if getattr(args, "single_cls", None):
        _refuse("single_cls=True", ignore, annotated, "it makes all classes one")
    names, kept = by_index(data["names"]), getattr(args, "classes", None)
    rules = rules_of(names, ignore, annotated, data)
    lost = [] if rules is None or kept is None else sorted(rules.kinds.keys() - set(as_list(kept)))
    if lost:
        _refuse(f"classes={kept}", ignore, None, f"it drops the boxes of '{names[lost[0]]}'; add {lost[0]} to it")
    return rules


def _value_of(key: str, data: Mapping[str, Any], args: Any) -> Any:
    value = getattr(args, key, None)
    return data.get(key) if value is None else value


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
                self.whole.update(dict.fromkeys(files_of_entry(entry), kind))
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
        keep_regions(transforms)
        transforms.transforms.insert(len(transforms.transforms) - 1, TakeRegions(self.table, self.is_rotated))
        return transforms


def files_of_entry(entry: Any) -> list[str]:
    """Return all images of an entry of a split, as the host lists them."""
    everything: Any = SimpleNamespace(prefix="", fraction=1.0)
    return list(BaseDataset.get_img_files(everything, entry))


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
    by_split = rules.entries.items()
    known = {str(entry): kind for split, kinds in by_split for entry, kind in zip(as_list(data[split]), kinds)}
    return {entry: known[entry] for entry in map(str, as_list(path)) if entry in known}


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

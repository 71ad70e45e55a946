# SPDX-License-Identifier: AGPL-3.0-or-later
"""RT-DETR, whose task is that of other detectors: trainers, models and file names that tell it from them.

Imports no host code, since it is imported while Ultralytics is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolo_lossplug.selection.keys import DETR

TRAINERS, MODEL, STEM = "ultralytics.models.rtdetr", "RTDETRDetectionModel", "rtdetr"


def is_rtdetr(owner: type) -> bool:
    """Return whether a class is, or inherits, a trainer or a model of RT-DETR."""
    return any(c.__module__.startswith(TRAINERS) or c.__name__ == MODEL for c in owner.__mro__)


def is_named_rtdetr(model: Any) -> bool:
    """Return whether Ultralytics takes a file for one of RT-DETR by its name."""
    return isinstance(model, (str, Path)) and STEM in Path(model).stem.lower()


def with_task(args: Mapping[str, Any], owner: type) -> Mapping[str, Any]:
    """Return arguments with the task that selects losses, which for the trainer or model of RT-DETR is its own."""
    return {**args, "task": DETR} if is_rtdetr(owner) else args


def with_guessed_task(args: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return arguments with the task that selects losses, as far as the name of the model tells."""
    is_detect = args.get("task") in (None, "detect")
    return {**args, "task": DETR} if is_detect and is_named_rtdetr(args.get("model")) else args

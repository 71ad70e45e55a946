# SPDX-License-Identifier: AGPL-3.0-or-later
"""Families whose task is that of other detectors: trainers, models and file names that tell them from those.

RT-DETR has another criterion. YOLO-World and YOLOE have that of other detectors, but a channel of the scores is a text
prompt, another one for every image, and no class of the data.

Imports no host code, since it is imported while Ultralytics is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import DETR

TRAINERS, MODEL, STEM = "ultralytics.models.rtdetr", "RTDETRDetectionModel", "rtdetr"
PROMPTED_STEMS = {"-world": "YOLO-World", "yoloe": "YOLOE"}
"""What Ultralytics looks for in a file name, and the family with text prompts that it takes the model for."""
PROMPTED_TRAINERS = {"ultralytics.models.yolo.world": "YOLO-World", "ultralytics.models.yolo.yoloe": "YOLOE"}
"""Modules of the trainers of these families."""


def is_rtdetr(owner: type) -> bool:
    """Return whether a class is, or inherits, a trainer or a model of RT-DETR."""
    return any(c.__module__.startswith(TRAINERS) or c.__name__ == MODEL for c in owner.__mro__)


def is_named_rtdetr(model: Any) -> bool:
    """Return whether Ultralytics takes a file for one of RT-DETR by its name."""
    return isinstance(model, (str, Path)) and STEM in Path(model).stem.lower()


def refuse_rtdetr(model: Any, host: Any, what: str) -> None:
    """Raise an error for RT-DETR where anchors are what counts.

    `model` is as the user has named it, `host` the one that was loaded, None before; `what` says the remedy.
    """
    if is_rtdetr(type(host)) or (host is None and is_named_rtdetr(model)):
        raise LossPlugError(f"model={model} is RT-DETR, which matches queries and assigns no anchors: {what}.")


def with_task(args: Mapping[str, Any], owner: type) -> Mapping[str, Any]:
    """Return arguments with the task that selects losses, which for the trainer or model of RT-DETR is its own."""
    return {**args, "task": DETR} if is_rtdetr(owner) else args


def with_guessed_task(args: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return arguments with the task that selects losses, as far as the name of the model tells."""
    is_detect = args.get("task") in (None, "detect")
    return {**args, "task": DETR} if is_detect and is_named_rtdetr(args.get("model")) else args


def guess_model(custom: dict[str, Any]) -> tuple[str, str]:
    """Return the task, and the family if it is one with text prompts, as far as arguments and file name tell."""
    from ultralytics.cfg import TASK2MODEL

    args, model = with_guessed_task(custom), custom.get("model")
    file = Path(model if isinstance(model, (str, Path)) else "")
    stem = file.stem.lower()
    suffixes = {Path(name).stem.partition("-")[2]: task for task, name in TASK2MODEL.items()}
    if file.suffix == ".pt" and file.is_file():
        suffixes = {}  # the checkpoint knows its task, whatever its name
    guessed = next((task for suffix, task in suffixes.items() if stem.endswith(f"-{suffix}")), "detect")
    family = next((name for part, name in PROMPTED_STEMS.items() if part in stem), "")
    return args.get("task") or guessed, family


def prompted_trainer(trainer: type) -> str:
    """Return the family with text prompts that a trainer belongs to, empty for none."""
    modules = (f"{cls.__module__}." for cls in trainer.__mro__)
    return next((family for name in modules for m, family in PROMPTED_TRAINERS.items() if name.startswith(f"{m}.")), "")


def refuse_per_class(args: Mapping[str, Any], family: str) -> None:
    """Raise an error for a key that tells classes apart in a family with text prompts, empty for another one."""
    for key in ("cls_weights", "lossplug_report", "ignore", "annotated"):
        if family and args.get(key):
            raise LossPlugError(
                f"{key}={args[key]} cannot be used with {family}: its channels are text prompts, which differ "
                f"between images, and not classes. Remove it."
            )


def refuse_visual_prompts(trainer: type, given: Iterable[str]) -> None:
    """Raise an error for our keys if a trainer is, or inherits, that of visual prompts."""
    if any(cls.__name__ == "YOLOEVPTrainer" for cls in trainer.__mro__):
        raise LossPlugError(
            f"{', '.join(sorted(given))} cannot be used with {trainer.__name__}: YOLOE trains the class term alone on "
            f"visual prompts, with a criterion of its own. Remove it."
        )

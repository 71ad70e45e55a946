# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which classes make a criterion take fast steps, and masks of segment and keypoints of pose models with them."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

from yolo_lossplug.ultralytics_hook.attached import on_criterion
from yolo_lossplug.ultralytics_hook.decision import Decision
from yolo_lossplug.ultralytics_hook.derived import derive, layers
from yolo_lossplug.ultralytics_hook.engines.agreement import tolerance_error
from yolo_lossplug.ultralytics_hook.engines.fast import FastMixin
from yolo_lossplug.ultralytics_hook.engines.keypoints import KeypointMixin, can_have_keypoints, keypoint_errors
from yolo_lossplug.ultralytics_hook.engines.masks import MaskMixin, can_have_masks, mask_errors
from yolo_lossplug.ultralytics_hook.engines.obb import RotatedFastMixin
from yolo_lossplug.ultralytics_hook.engines.terms import class_loss_of, is_class_loss_pointwise
from yolo_lossplug.ultralytics_hook.originals import v8DetectionLoss, v8OBBLoss


def install_fast_step(criterion: v8DetectionLoss, is_lazy: bool) -> None:
    """Make a criterion take fast steps; its class stays, and what else that overrides stays too."""
    derive(RotatedFastMixin if isinstance(criterion, v8OBBLoss) else FastMixin, criterion)
    loss, attached = class_loss_of(criterion), on_criterion(criterion)
    attached.decision, attached.kernels = Decision("fast", is_lazy=is_lazy), None
    attached.is_class_loss_pointwise = loss is not None and is_class_loss_pointwise(loss)


def remove_fast_step(criterion: v8DetectionLoss) -> None:
    """Undo `install_fast_step`, and all that was derived besides."""
    criterion.__class__ = layers(type(criterion))[0]


class TaskPart(NamedTuple):
    """A part of the loss of a task: its class, whether a criterion has the host's own, and the errors on a device."""

    mixin: type
    fits: Callable[[Any], bool]
    errors: Callable[[str], tuple[float, float]]


TASK_PARTS = {
    "masks": TaskPart(MaskMixin, can_have_masks, mask_errors),
    "keypoints": TaskPart(KeypointMixin, can_have_keypoints, keypoint_errors),
}
"""The parts by the name that the banner gives them."""


def proven_part(criterion: Any) -> str:
    """Return the part of a criterion that equals the host's own on its device, empty if there is none."""
    fit = (name for name, part in TASK_PARTS.items() if part.fits(criterion))
    return next((name for name in fit if _is_proven(TASK_PARTS[name], str(criterion.device))), "")


def _is_proven(part: TaskPart, device: str) -> bool:
    """Return whether a part equals the host's own, which others may have changed so that it fails by itself."""
    try:
        return tolerance_error(*part.errors(device)) is None
    except Exception:
        return False


def install_part(criterion: Any, name: str) -> None:
    """Make a criterion take a part; an empty name changes nothing."""
    if name:
        derive(TASK_PARTS[name].mixin, criterion)


def running_part(criterion: Any) -> str:
    """Return the part that a criterion takes, empty if it takes none."""
    return next((name for name, part in TASK_PARTS.items() if isinstance(criterion, part.mixin)), "")

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which classes make a criterion take fast steps, and masks of segment and keypoints of pose models with them."""

from __future__ import annotations

import contextlib
from typing import Any, Callable

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


Part = tuple[type, Callable[[Any], bool], Callable[[str], tuple[float, float]]]
TASK_PARTS: dict[str, Part] = {
    "masks": (MaskMixin, can_have_masks, mask_errors),
    "keypoints": (KeypointMixin, can_have_keypoints, keypoint_errors),
}
"""Parts of the loss of a task by the name that the banner gives them: the class that takes it, whether a criterion has
the host's own, and the errors against that on a device."""


def proven_part(criterion: Any) -> str:
    """Return the part of a criterion that equals the host's own on its device, empty if there is none."""
    for name, (_, fits, errors) in TASK_PARTS.items():
        if fits(criterion):
            with contextlib.suppress(Exception):  # others may have changed the host's own so that it fails by itself
                if tolerance_error(*errors(str(criterion.device))) is None:
                    return name
    return ""


def install_part(criterion: Any, name: str) -> None:
    """Make a criterion take a part; an empty name changes nothing."""
    if name:
        derive(TASK_PARTS[name][0], criterion)


def running_part(criterion: Any) -> str:
    """Return the part that a criterion takes, empty if it takes none."""
    return next((name for name, (mixin, *_) in TASK_PARTS.items() if isinstance(criterion, mixin)), "")

# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a fast engine takes over besides the terms of detect: masks of segment models, keypoints of pose models."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

from yolo_lossplug.ultralytics_hook.derived import derive
from yolo_lossplug.ultralytics_hook.engines.agreement import tolerance_error
from yolo_lossplug.ultralytics_hook.engines.keypoints import KeypointMixin, can_have_keypoints, keypoint_errors
from yolo_lossplug.ultralytics_hook.engines.masks import MaskMixin, can_have_masks, mask_errors


class TaskPart(NamedTuple):
    """A part of the loss of a task.

    Attributes:
        mixin: What makes a criterion take it.
        fits: Returns whether a criterion has this part, and it is the host's own.
        errors: Takes a device; returns the errors of loss and gradients against the host's own part.
    """

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

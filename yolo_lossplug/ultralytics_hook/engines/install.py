# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which class makes a criterion take fast steps."""

from __future__ import annotations

from yolo_lossplug.ultralytics_hook.attached import on_criterion
from yolo_lossplug.ultralytics_hook.decision import Decision
from yolo_lossplug.ultralytics_hook.derived import derive, layers
from yolo_lossplug.ultralytics_hook.engines.fast import FastMixin
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

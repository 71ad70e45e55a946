# SPDX-License-Identifier: AGPL-3.0-or-later
"""`lossplug`, the one attribute that the plugin adds to objects of the host, and its contents."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Optional

from torch import Tensor

from yolo_lossplug.selection.loss import Loss
from yolo_lossplug.selection.select import Selection
from yolo_lossplug.ultralytics_hook.counts import Meter
from yolo_lossplug.ultralytics_hook.decision import Decision

ATTRIBUTE = "lossplug"


@dataclass
class OnAssigner:
    """Our attributes of an assigner of the host.

    Attributes:
        overlap_loss: Loss of which 1 minus is the overlap of its metric, None for the host's own overlap.
        overlap: That overlap.
        meter: Counts for the report, None without a report.
        claims: Numbers of gts that select each anchor, in the calls of the host's form since they were last taken.
    """

    overlap_loss: Optional[Loss] = None
    overlap: Optional[Callable[[Tensor, Tensor], Tensor]] = None
    meter: Optional[Meter] = None
    claims: list[Tensor] = field(default_factory=list)


@dataclass
class OnCriterion:
    """Our attributes of a criterion of the host.

    Attributes:
        selection: Selected losses, None for a criterion that only uses another engine.
        running: Values it was installed with, by key: the requested ones and its own.
        decision: Which engine takes its steps.
        is_class_loss_pointwise: Whether its class loss may be evaluated on parts.
        kernels: Kernels that take its steps, None for tensor functions.
        points: Anchor centres (A, 2) of the current step, for keypoints.
        anchors: Cached anchors of the last step, with their cache key.
        terms: Losses on matched queries of RT-DETR.
    """

    selection: Optional[Selection] = None
    running: dict[str, Any] = field(default_factory=dict)
    decision: Decision = field(default_factory=lambda: Decision("reference"))
    is_class_loss_pointwise: bool = True
    kernels: Optional[Any] = None
    points: Any = None
    anchors: Optional[tuple[tuple, Any]] = None
    terms: Any = None


def on_assigner(assigner: Any) -> OnAssigner:
    """Return our attributes of an assigner, created on first use."""
    attached = vars(assigner).get(ATTRIBUTE)  # in every step: nothing is made where it is there
    return vars(assigner).setdefault(ATTRIBUTE, OnAssigner()) if attached is None else attached


def on_criterion(criterion: Any) -> OnCriterion:
    """Return our attributes of a criterion, created on first use."""
    attached = vars(criterion).get(ATTRIBUTE)
    return vars(criterion).setdefault(ATTRIBUTE, OnCriterion()) if attached is None else attached

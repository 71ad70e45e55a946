# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the loss step of a crowded batch needs: time measured on this machine, memory from shapes of tensors."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, NamedTuple, Optional

import torch
from torch import nn
from ultralytics.utils import DEFAULT_CFG_DICT, IterableSimpleNamespace

from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.select import select
from yolo_lossplug.ultralytics_hook.criterion import plug
from yolo_lossplug.ultralytics_hook.originals import v8DetectionLoss, v8OBBLoss

DENSE_BYTES = 13
"""Bytes of stock's assigner for each (image, object, anchor): metric, overlap and mask in float32, and one byte of a
selection. What it copies on the way comes on top."""
PAIR_BYTES = 56
"""Bytes of the fast engine for each candidate: two indices, metric, overlap and two boxes."""
REG_MAX = 16
MAX_TIMED = 10_000_000
"""Elements of (images, objects, anchors) up to which a step is timed, which takes stock about 30 bytes for each."""
REPEATS = 2


class Cost(NamedTuple):
    """Need of one loss step.

    Attributes:
        images: Images in the batch that memory is estimated for.
        most: Most objects in an image of it.
        anchors: Anchors of an image.
        dense: Bytes of stock's assigner, at least.
        sparse: Bytes of the fast engine's candidates.
        timed: Images in the batch that was timed; 0 if none was.
        stock: Seconds of stock's step, forward and backward; None if it was not timed.
        fast: The same of the fast engine.
    """

    images: int
    most: int
    anchors: int
    dense: int
    sparse: int
    timed: int = 0
    stock: Optional[float] = None
    fast: Optional[float] = None


def memory(images: int, most: int, anchors: int, candidates: float) -> Cost:
    """Return the memory of a step with as many candidates of all objects of the batch; see `Cost`."""
    return Cost(images, most, anchors, images * most * anchors * DENSE_BYTES, int(candidates * PAIR_BYTES))


def timed(
    cost: Cost, batch: dict[str, Any], images: int, imgsz: int, strides: tuple[float, ...], n_classes: int
) -> Cost:
    """Return a cost with the measured seconds of either engine on the CPU, unless the step is too large for that.

    Args:
        cost: What is known so far.
        batch: ``batch_idx`` (G,), ``cls`` (G, 1) and ``bboxes`` (G, 4), or rotated ones (G, 5), of a few images; G may
            be 0.
        images: How many these are; the last ones may be without objects.
        imgsz: Side of the input in pixels.
        strides: Strides of the levels.
        n_classes: Number of classes.
    """
    most = int(torch.bincount(batch["batch_idx"].long(), minlength=images).max())
    if images * max(most, n_classes) * cost.anchors > MAX_TIMED:
        return cost
    preds, is_rotated = _predictions(images, imgsz, strides, n_classes), batch["bboxes"].shape[1] == 5
    try:
        criteria = [_criterion(strides, n_classes, engine, is_rotated) for engine in ("reference", "fast")]
    except LossPlugError:  # this release has no step that the fast engine could replace
        return cost
    stock, fast = (_seconds(criterion, preds, batch) for criterion in criteria)
    return cost._replace(timed=images, stock=stock, fast=fast)


def _criterion(strides: tuple[float, ...], n_classes: int, engine: str, is_rotated: bool) -> Any:
    head = SimpleNamespace(stride=torch.tensor(strides), nc=n_classes, reg_max=REG_MAX)
    model = SimpleNamespace(
        args=IterableSimpleNamespace(**DEFAULT_CFG_DICT), model=[head], parameters=nn.Linear(1, 1).parameters
    )
    kind, task = (v8OBBLoss, "obb") if is_rotated else (v8DetectionLoss, "detect")
    return plug(kind(model), select({"loss_engine": engine, "task": task}))


def _predictions(images: int, imgsz: int, strides: tuple[float, ...], n_classes: int) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(0)
    sides = [int(imgsz // stride) for stride in strides]
    anchors = sum(side * side for side in sides)
    return {
        "boxes": torch.randn(images, 4 * REG_MAX, anchors, generator=rng).requires_grad_(),
        "scores": (torch.randn(images, n_classes, anchors, generator=rng) - 4).requires_grad_(),
        "angle": torch.zeros(images, 1, anchors, requires_grad=True),
        "feats": [torch.zeros(images, 1, side, side) for side in sides],
    }


def _seconds(criterion: Any, preds: dict[str, Any], batch: dict[str, Any]) -> Optional[float]:
    """Return the shortest of a few steps after a first one; None if this release takes other predictions."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        try:
            loss = criterion(preds, batch)[0].sum()
        except (TypeError, KeyError, AttributeError, IndexError):  # heads before 8.4 return one tensor for each level
            return None
        torch.autograd.grad(loss, [preds["boxes"], preds["scores"]])
        times.append(time.perf_counter() - start)
    return min(times[1:])

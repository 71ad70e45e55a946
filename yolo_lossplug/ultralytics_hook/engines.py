# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which engine takes a criterion's steps: Ultralytics' own, the fast one, or the fast one with kernels.

Before an engine runs it is compared with Ultralytics' own step, on the device and with the release at hand.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Optional

import torch
from torch import Tensor
from ultralytics.utils import IterableSimpleNamespace, tal
from ultralytics.utils.loss import v8DetectionLoss

from yolo_lossplug import kernels
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.ultralytics_hook.console import warn_once
from yolo_lossplug.ultralytics_hook.engine import slow_down, speed_up

AUTO, FAST, REFERENCE, TRITON = "auto", "fast", "reference", "triton"
METHOD = "get_assigned_targets_and_loss"
CELLS = 10
"""Size of the images on which engines are compared, in cells of the coarsest level."""
TOLERANCE, SLOPE_TOLERANCE = 1e-5, 1e-4
"""Largest relative error of the loss, and of its gradients in norm, with which an engine may run."""


def settle(criterion: Any, engine: str) -> bool:
    """Make a criterion take the steps of an engine; return whether that is the fast one, with kernels or without.

    Args:
        criterion: The criterion.
        engine: ``auto``, ``fast``, ``triton`` or ``reference``.

    Raises:
        LossPlugError: If it is to be ``fast`` or ``triton``, and cannot be.
    """
    device = criterion.device
    why = None if engine == REFERENCE else obstacle(criterion, device)
    why = why or (kernels.missing(device) if engine == TRITON else None)
    if engine in (FAST, TRITON) and why:
        raise LossPlugError(_refusal(engine, why))
    if engine == REFERENCE or why:
        slow_down(criterion)
        return False
    speed_up(criterion, is_lazy=engine != FAST)
    if _has_kernels(engine, criterion, device):
        use_kernels(criterion)
    return True


def why_no_kernels(engine: str, device: Any) -> Optional[str]:
    """Return why a run that asks for kernels cannot have them, before a model is there; None if nothing is known.

    Args:
        engine: The engine that is asked for.
        device: The device as the user names it, None for the one that Ultralytics chooses.
    """
    if engine != TRITON:
        return None
    name = str(device).strip().lower()
    kind = name if name in ("cpu", "mps") else "cuda" if torch.cuda.is_available() else "cpu"
    why = kernels.missing(torch.device(kind))
    return _refusal(engine, why) if why else None


def _refusal(engine: str, why: str) -> str:
    return f"loss_engine={engine} cannot be used: {why}. Remove it, or take loss_engine=auto."


def description(engine: str, head: Any, device: torch.device) -> str:
    """Return the engine that runs, and why if it is not the one that was asked for, for the banner."""
    if engine == REFERENCE:
        return REFERENCE
    why = obstacle(head, device)
    if why:
        return f"{REFERENCE} ({why})"
    if _has_kernels(engine, head, device):
        return TRITON
    return f"{FAST} in crowds, else {REFERENCE}" if device.type == "cuda" and engine != FAST else FAST


def use_kernels(criterion: Any, is_trial: bool = False) -> None:
    """Make a fast criterion take its steps by kernels."""
    from yolo_lossplug.ultralytics_hook.triton_step import TritonKernels  # which imports Triton

    criterion.kernels = TritonKernels(criterion, is_trial)


def _has_kernels(engine: str, head: Any, device: torch.device) -> bool:
    """Return whether kernels run; where they were asked for and fail, say so once."""
    if not (engine == TRITON or (engine == AUTO and kernels.is_recorded(device))) or kernels.missing(device):
        return False
    trouble = kernel_trouble(str(device), *_about(head))
    if trouble and engine == TRITON:
        warn_once(f"loss_engine=triton: {trouble}; the run goes on without kernels.")
    return trouble is None


@functools.cache
def kernel_trouble(device: str, reg_max: int, strides: tuple[float, ...]) -> Optional[str]:
    """Return what is wrong with the kernels on a device, None if they give the numbers of the host."""

    def prepare(criterion: Any) -> None:
        speed_up(criterion, is_lazy=False)
        use_kernels(criterion, is_trial=True)

    try:
        errors = differences(device, reg_max, strides, prepare, 4 if kernels.is_interpreted() else CELLS)
    except EngineFailed as error:  # no compiler, a GPU that Triton does not know, and what else there is
        return f"the kernels fail ({error})"
    return _beyond(*errors)


def _about(head: Any) -> tuple[int, tuple[float, ...]]:
    """Return bins and strides of a head."""
    return int(head.reg_max), tuple(float(stride) for stride in head.stride)


def _beyond(error: float, slope_error: float) -> Optional[str]:
    """Return which errors are beyond the tolerances, None if none is."""
    if error <= TOLERANCE and slope_error <= SLOPE_TOLERANCE:
        return None
    return f"its loss would differ by {error:.0e} and its gradients by {slope_error:.0e} from those of the host"


def obstacle(head: Any, device: torch.device) -> Optional[str]:
    """Return why the fast engine cannot run, None if it can.

    The engine takes some steps on random problems and is compared with the host's own step.

    Args:
        head: A criterion or a head, with its strides and the number of its bins, `reg_max`.
        device: Where it runs.
    """
    if device.type not in ("cpu", "cuda"):
        return f"it is not tested on {device.type}"
    if not hasattr(v8DetectionLoss, METHOD):
        return "this release of Ultralytics has no step to replace"
    if (hasattr(head, "assigner") and isinstance(head.assigner, tal.RotatedTaskAlignedAssigner)) or hasattr(head, "ne"):
        return "boxes are rotated"
    errors = self_test(str(device), *_about(head))
    return "it fails with this release of Ultralytics" if math.isinf(errors[0]) else _beyond(*errors)


class EngineFailed(Exception):
    """A step that the host takes, and an engine fails at."""


@functools.cache
def self_test(device: str, reg_max: int, strides: tuple[float, ...]) -> tuple[float, float]:
    """Return `differences` of the fast engine; infinite where the host has changed so that it fails."""
    try:
        return differences(device, reg_max, strides, lambda criterion: speed_up(criterion, is_lazy=False))
    except EngineFailed:
        return math.inf, math.inf


@torch.inference_mode(False)  # the first step may be one of a validation
@torch.enable_grad()
def differences(
    device: str, reg_max: int, strides: tuple[float, ...], prepare: Callable[[Any], None], cells: int = CELLS
) -> tuple[float, float]:
    """Take steps of an engine on random problems, and compare them with the steps of the host.

    Args:
        device: Where.
        reg_max: Bins of the distance distribution; 1 for none.
        strides: Strides of the levels in pixels.
        prepare: Makes a criterion of the host take the engine's steps.
        cells: Size of the images in cells of the coarsest level, and a quarter of the objects in most of them.

    Returns:
        Largest relative error of the loss, and of its gradients in norm.

    Raises:
        EngineFailed: If the engine fails.
    """
    rng = torch.Generator().manual_seed(0)
    head = SimpleNamespace(stride=torch.tensor(strides, device=device), nc=4, reg_max=reg_max)
    gains = IterableSimpleNamespace(box=7.5, cls=0.5, dfl=1.5, overlap_mask=True)
    parameter = torch.zeros(1, device=device)
    model = SimpleNamespace(parameters=lambda: iter((parameter,)), args=gains, model=[head])
    errors = []
    for topk, n in ((10, 5), (7, 4 * cells), (10, 0)):
        criterion = v8DetectionLoss(model, topk, **({"tal_topk2": 1} if topk == 7 else {}))
        size = [round(cells * max(strides)), round(1.2 * cells) * round(max(strides))]
        shapes = [(round(size[0] / stride), round(size[1] / stride)) for stride in strides]
        n_anchors = sum(h * w for h, w in shapes)
        given = [torch.randn(2, 4 * reg_max, n_anchors, generator=rng), torch.randn(2, 4, n_anchors, generator=rng) - 3]
        if reg_max == 1:
            given[0] = given[0].abs()
        batch = {
            "batch_idx": torch.arange(2 * n) // max(1, n),
            "cls": torch.randint(4, (2 * n, 1), generator=rng),
            "bboxes": torch.rand(2 * n, 4, generator=rng) * 0.3 + torch.tensor([0.3, 0.3, 0.02, 0.02]),
        }
        found = []
        for is_prepared in (False, True):
            boxes, scores = (tensor.to(device).requires_grad_() for tensor in given)
            preds = {"boxes": boxes, "scores": scores, "feats": [boxes.new_zeros(2, 1, h, w) for h, w in shapes]}
            try:
                if is_prepared:
                    prepare(criterion)
                with torch.autocast(torch.device(device).type, enabled=False):
                    loss = criterion.get_assigned_targets_and_loss(preds, batch)[1]
                found.append((loss.detach(), *torch.autograd.grad(loss.sum(), (boxes, scores), allow_unused=True)))
            except Exception as error:
                if not is_prepared:
                    raise
                raise EngineFailed(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
        errors.append([_relative_error(one, other) for one, other in zip(*found)])
    return max(error[0] for error in errors), max(max(error[1:]) for error in errors)


def _relative_error(stock: Optional[Tensor], found: Optional[Tensor]) -> float:
    if stock is None or found is None:  # a host that does not reach the boxes where there is no object
        return 0.0 if found is None else float(found.norm())
    return float((found - stock).norm() / stock.norm().clamp(min=1e-9))

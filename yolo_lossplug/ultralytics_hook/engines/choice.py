# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which engine takes a criterion's steps: Ultralytics' own, the fast one, or the fast one with kernels.

Before an engine runs it is compared with Ultralytics' own step, on the device and with the release at hand.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Optional

import torch
from ultralytics.utils import tal
from ultralytics.utils.loss import v8DetectionLoss

from yolo_lossplug import kernels
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.ultralytics_hook.console import warn_once
from yolo_lossplug.ultralytics_hook.engines.fast import slow_down, speed_up
from yolo_lossplug.ultralytics_hook.engines.parity import CELLS, METHOD, EngineFailed, _beyond, differences, self_test

AUTO, FAST, REFERENCE, TRITON = "auto", "fast", "reference", "triton"


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
    from yolo_lossplug.ultralytics_hook.engines.triton import TritonKernels

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

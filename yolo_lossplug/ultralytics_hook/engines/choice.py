# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which engine takes a criterion's steps: Ultralytics' own, the fast one, or the fast one with kernels.

Before an engine runs it is compared with Ultralytics' own step, on the device and with the release at hand.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Optional, Union

import torch

from yolo_lossplug import kernels
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.ultralytics_hook.attached import on_criterion
from yolo_lossplug.ultralytics_hook.console import warn_once
from yolo_lossplug.ultralytics_hook.decision import Decision
from yolo_lossplug.ultralytics_hook.derived import has_stock_methods
from yolo_lossplug.ultralytics_hook.engines import install, record
from yolo_lossplug.ultralytics_hook.engines.agreement import tolerance_error
from yolo_lossplug.ultralytics_hook.engines.fast import FastMixin
from yolo_lossplug.ultralytics_hook.engines.parity import METHOD, EngineFailed, Setting, parity_agreement, self_test
from yolo_lossplug.ultralytics_hook.engines.record import FAST, REFERENCE
from yolo_lossplug.ultralytics_hook.originals import v8DetectionLoss, v8OBBLoss

AUTO, TRITON = "auto", "triton"
FAST_DEVICE_TYPES = frozenset({"cpu"})
"""Device types on which the fast engine was faster in every case: benchmarks/results/2026-11-22-cpu-b16.md."""
ADVICE = "lossplug bench measures faster engines here"
"""What the banner of a run on a GPU ends with where nothing was measured."""


def decide_engine(engine: str, criterion: Any) -> Decision:
    """Return which engine takes the steps of a criterion; called once, when the losses are installed.

    Raises:
        LossPlugError: If ``fast`` or ``triton`` is requested and cannot run.
    """
    if engine == REFERENCE:
        return Decision(REFERENCE)
    decision = _step_decision(engine, criterion)
    # On a GPU only where the engine was asked for by name: of masks and keypoints nothing is measured there.
    device = criterion.device
    is_wanted = device.type in FAST_DEVICE_TYPES and FAST not in record.disqualified_engines(device)
    return decision._replace(part=install.proven_part(criterion) if is_wanted or engine == FAST else "")


def _step_decision(engine: str, criterion: Any) -> Decision:
    """Return which engine takes the steps of a criterion, masks and keypoints left aside."""
    why = why_not_fast(criterion)
    if engine == TRITON and not why:
        why = "boxes are rotated" if isinstance(criterion, v8OBBLoss) else kernels.missing(criterion.device)
    if why:
        if engine in (FAST, TRITON):
            raise LossPlugError(_refusal(engine, why))
        return Decision(REFERENCE, why)
    is_lazy = engine != FAST and criterion.device.type not in FAST_DEVICE_TYPES
    if engine == AUTO:
        return _recorded(criterion, is_lazy)
    if engine == TRITON and (trouble := kernel_trouble(setting_of(criterion))):
        warn_once(f"loss_engine=triton: {trouble}; the run continues without kernels.")
        engine = FAST
    return Decision(engine, is_lazy=is_lazy)


def _recorded(criterion: Any, is_lazy: bool) -> Decision:
    """Return which engine takes the steps of a criterion by the record of its device."""
    if refused := record.disqualified_engines(criterion.device).get(FAST):
        return Decision(REFERENCE, refused)
    measured = record.fastest_engines(criterion.device, functools.partial(_can_run, criterion))
    if measured is None or isinstance(criterion, v8OBBLoss):  # records are of horizontal boxes
        return Decision(FAST, is_lazy=is_lazy, is_unmeasured=is_lazy)
    names = {fastest.engine for fastest in measured.engines}
    return Decision(TRITON if TRITON in names else FAST, is_lazy=is_lazy, measured=measured)


def install_engine(criterion: Any, decision: Decision) -> None:
    """Make a criterion take the steps of an engine."""
    install.remove_fast_step(criterion)
    if decision.name != REFERENCE:
        install.install_fast_step(criterion, decision.is_lazy)
    if decision.name == TRITON:
        use_kernels(criterion)
    install.install_part(criterion, decision.part)
    on_criterion(criterion).decision = decision


def running_engine(criterion: Any) -> Union[Decision, str]:
    """Return which engine takes the steps of a criterion, read from its class; only its name if that was changed."""
    decision = on_criterion(criterion).decision
    if isinstance(criterion, FastMixin) != (decision.name != REFERENCE):
        return REFERENCE
    return decision._replace(part=install.running_part(criterion))


def why_no_kernels(engine: str, device: Any) -> Optional[str]:
    """Return why a run that requests kernels cannot use them, before a model is built; None if it may."""
    why = kernels.missing(torch.device(device_type(device))) if engine == TRITON else None
    return _refusal(engine, why) if why else None


def device_type(device: Any) -> str:
    """Return the type of the device that a user names, None for the one that Ultralytics chooses.

    No GPU is asked: until the host has chosen one, that would fix which ones this process sees.
    """
    name = str(device).strip().lower().partition(":")[0]
    return name if name in ("cpu", "mps") else "cuda" if torch.cuda.is_available() else "cpu"


def _refusal(engine: str, why: str) -> str:
    return f"loss_engine={engine} cannot be used: {why}. Remove it, or take loss_engine=auto."


def use_kernels(criterion: Any, is_trial: bool = False) -> None:
    """Make a fast criterion take its steps by kernels."""
    from yolo_lossplug.ultralytics_hook.engines.triton import TritonKernels

    on_criterion(criterion).kernels = TritonKernels(criterion, is_trial)


def _can_run(criterion: Any, engine: str) -> bool:
    """Return whether an engine of a record runs here and now; that the fast one does is known."""
    if engine != TRITON:
        return engine == FAST
    return not kernels.missing(criterion.device) and not kernel_trouble(setting_of(criterion))


@functools.cache
def kernel_trouble(setting: Setting) -> Optional[str]:
    """Return what is wrong with the kernels on a device, None if they match the host's own step."""

    def prepare(criterion: Any) -> None:
        install.install_fast_step(criterion, is_lazy=False)
        use_kernels(criterion, is_trial=True)

    try:
        differs = parity_agreement(setting, prepare).differs
    except EngineFailed as error:  # no compiler, an unsupported GPU, or any other reason
        return f"the kernels fail ({error})"
    return f"they differ from the host: {differs[0]}" if differs else None


def setting_of(criterion: Any) -> Setting:
    """Return what the steps of a criterion will look like, so that the kernels tried are those that will run."""
    (reg_max, strides), n_classes = head_key(criterion), int(criterion.nc)
    device, hyp = str(criterion.device), criterion.hyp
    if kernels.is_interpreted():
        return Setting(device, reg_max, strides, min(n_classes, 4), (4, 5))
    imgsz = getattr(hyp, "imgsz", None) or 640
    side = max(1, round((max(imgsz) if isinstance(imgsz, (list, tuple)) else int(imgsz)) / max(strides)))
    dtype = torch.float16 if getattr(hyp, "amp", False) else torch.float32
    return Setting(device, reg_max, strides, n_classes, (side, side), dtype)


def head_key(criterion: Any) -> tuple[int, tuple[float, ...]]:
    """Return bins and strides of the head that a criterion is for."""
    return int(criterion.reg_max), tuple(float(stride) for stride in criterion.stride)


def why_not_fast(criterion: Any) -> Optional[str]:
    """Return why the fast engine cannot take the steps of a criterion, tried on random problems; None if it can."""
    device = criterion.device
    if device.type not in ("cpu", "cuda"):
        return f"it is not tested on {device.type}"
    if not hasattr(v8DetectionLoss, METHOD):
        return "this release of Ultralytics has no step to replace"
    rotated = isinstance(criterion, v8OBBLoss)
    if rotated and not has_stock_methods(criterion, v8OBBLoss, ("loss", "calculate_angle_loss")):
        return "the criterion of these rotated boxes is another one"
    errors = self_test(str(device), *head_key(criterion), v8OBBLoss if rotated else v8DetectionLoss)
    return "it fails with this release of Ultralytics" if math.isinf(errors[0]) else tolerance_error(*errors)

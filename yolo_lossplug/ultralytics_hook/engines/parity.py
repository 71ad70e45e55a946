# SPDX-License-Identifier: AGPL-3.0-or-later
"""A comparison of an engine with the host's own step, on random problems, on the device and release at hand."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Optional

import torch
from torch import Tensor
from ultralytics.utils import IterableSimpleNamespace

from yolo_lossplug.ultralytics_hook.engines.install import install_fast_step
from yolo_lossplug.ultralytics_hook.originals import v8DetectionLoss, v8OBBLoss

METHOD = "get_assigned_targets_and_loss"

N_CLASSES = 4
CELLS = 10
"""Size of the images on which engines are compared, in cells of the coarsest level."""

TOLERANCE, GRAD_TOLERANCE = 1e-5, 1e-4
"""Maximum relative error of the loss, and of its gradients in norm, with which an engine may run."""


def tolerance_error(error: float, grad_error: float) -> Optional[str]:
    """Return which errors are beyond the tolerances, None if none is."""
    if error <= TOLERANCE and grad_error <= GRAD_TOLERANCE:
        return None
    return f"its loss would differ by {error:.0e} and its gradients by {grad_error:.0e} from those of the host"


class EngineFailed(Exception):
    """An engine raises an error on a step that the host can take."""


@functools.cache
def self_test(
    device: str, reg_max: int, strides: tuple[float, ...], kind: type = v8DetectionLoss
) -> tuple[float, float]:
    """Return `parity_errors` of the fast engine; infinite where the host has changed so that it fails."""

    def prepare(criterion: Any) -> None:
        install_fast_step(criterion, is_lazy=False)

    try:
        return parity_errors(device, reg_max, strides, prepare, kind=kind)
    except EngineFailed:
        return math.inf, math.inf


@torch.inference_mode(False)  # the first step may be a validation step
@torch.enable_grad()
def parity_errors(
    device: str,
    reg_max: int,
    strides: tuple[float, ...],
    prepare: Callable[[Any], None],
    cells: int = CELLS,
    kind: type = v8DetectionLoss,
) -> tuple[float, float]:
    """Take steps of an engine on random problems, and compare them with the steps of the host.

    Args:
        device: Device to compare on.
        reg_max: Bins of the distance distribution; 1 for none.
        strides: Strides of the levels in pixels.
        prepare: Makes a criterion of the host take the engine's steps.
        cells: Size of the images in cells of the coarsest level; a crowded image has four times as many gts.
        kind: The host's criterion.

    Returns:
        Maximum relative error of the loss, and of its gradients in norm.

    Raises:
        EngineFailed: If the engine fails.
    """
    rng = torch.Generator().manual_seed(0)
    head = SimpleNamespace(stride=torch.tensor(strides, device=device), nc=N_CLASSES, reg_max=reg_max)
    gains = IterableSimpleNamespace(box=7.5, cls=0.5, dfl=1.5, angle=1.0, overlap_mask=True)
    parameter = torch.zeros(1, device=device)
    model = SimpleNamespace(parameters=lambda: iter((parameter,)), args=gains, model=[head])
    size = cells * max(strides), round(1.2 * cells) * max(strides)
    shapes = [(round(size[0] / stride), round(size[1] / stride)) for stride in strides]
    errors = []
    for topk, n in ((10, 5), (7, 4 * cells), (10, 0)):
        criterion = kind(model, topk, **({"tal_topk2": 1} if topk == 7 else {}))
        inputs, batch = _problem(rng, sum(h * w for h, w in shapes), reg_max, n)
        if kind is v8OBBLoss:
            _rotate(rng, inputs, batch, size)
        expected = _step(criterion, inputs, shapes, batch)
        try:
            prepare(criterion)
            actual = _step(criterion, inputs, shapes, batch)
        except Exception as error:
            raise EngineFailed(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
        errors.append([relative_error(*pair) for pair in zip(expected, actual)])
    return max(error[0] for error in errors), max(max(error[1:]) for error in errors)


def _problem(rng: torch.Generator, n_anchors: int, reg_max: int, n: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return outputs of a head for two images, and their labels with n gts each."""
    boxes, scores = (torch.randn(2, rows, n_anchors, generator=rng) for rows in (4 * reg_max, N_CLASSES))
    batch = {
        "batch_idx": torch.arange(2 * n) // max(1, n),
        "cls": torch.randint(N_CLASSES, (2 * n, 1), generator=rng),
        "bboxes": torch.rand(2 * n, 4, generator=rng) * 0.3 + torch.tensor([0.3, 0.3, 0.02, 0.02]),
    }
    return {"boxes": boxes.abs() if reg_max == 1 else boxes, "scores": scores - 3}, batch


def _rotate(rng: torch.Generator, inputs: dict[str, Tensor], batch: dict[str, Any], size: tuple[float, float]) -> None:
    """Give a problem angles, and gts as small as those that the host leaves out."""
    boxes, n = batch["bboxes"], len(batch["bboxes"])
    boxes = torch.cat((boxes[:, :2], boxes[:, 2:] * torch.rand(n, 2, generator=rng)), 1)
    batch["bboxes"] = torch.cat((boxes, (torch.rand(n, 1, generator=rng) - 0.25) * math.pi), 1)
    batch["resized_shape"] = [[int(side) for side in size]] * 2
    inputs["angle"] = (torch.rand(2, 1, inputs["boxes"].shape[2], generator=rng) - 0.25) * math.pi


def _step(
    criterion: Any, inputs: dict[str, Tensor], shapes: list[tuple[int, int]], batch: dict[str, Any]
) -> tuple[Tensor, ...]:
    """Return the loss of a step of a criterion, and its gradients by the outputs of the head."""
    leaves = {name: tensor.to(criterion.device).requires_grad_() for name, tensor in inputs.items()}
    feats = [leaves["boxes"].new_zeros(2, 1, h, w) for h, w in shapes]
    with torch.autocast(criterion.device.type, enabled=False):
        loss = criterion.loss({**leaves, "feats": feats}, batch)[0]
    return loss.detach(), *torch.autograd.grad(loss.sum(), tuple(leaves.values()), allow_unused=True)


def relative_error(expected: Optional[Tensor], actual: Optional[Tensor]) -> float:
    """Return the relative error of a tensor in norm; None is a gradient of 0."""
    if expected is None or actual is None:  # the host's loss may not depend on the boxes where there is no gt
        return 0.0 if actual is None else float(actual.norm())
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-9))

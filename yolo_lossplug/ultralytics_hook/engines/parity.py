# SPDX-License-Identifier: AGPL-3.0-or-later
"""A comparison of an engine with the host's own step, on random problems, on the device and release at hand."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor
from ultralytics.utils import IterableSimpleNamespace

from yolo_lossplug.ultralytics_hook.engines.agreement import Agreement, Inputs, compared_steps, relative_error
from yolo_lossplug.ultralytics_hook.engines.install import install_fast_step
from yolo_lossplug.ultralytics_hook.originals import v8DetectionLoss, v8OBBLoss

METHOD = "get_assigned_targets_and_loss"
CELLS = 10
"""Size of the images on which engines are compared, in cells of the coarsest level."""


class Setting(NamedTuple):
    """What steps on random problems look like.

    Images have a height and width in cells of the coarsest level; a half type of the outputs is that of autocast.
    """

    device: str
    reg_max: int
    strides: tuple[float, ...]
    n_classes: int = 4
    size: tuple[int, int] = (CELLS, round(1.2 * CELLS))
    dtype: torch.dtype = torch.float32


class StepPair(NamedTuple):
    """Two equal criteria of the host and a problem for them; see `compared_steps`."""

    one: Any
    other: Any
    inputs: Inputs
    batch: dict[str, Any]
    context: Callable[[], Any]


class EngineFailed(Exception):
    """An engine raises an error on a step that the host can take."""


@functools.cache
def self_test(
    device: str, reg_max: int, strides: tuple[float, ...], kind: type = v8DetectionLoss
) -> tuple[float, float]:
    """Return `parity_errors` of the fast engine; infinite where the host has changed so that it fails."""
    prepare = functools.partial(install_fast_step, is_lazy=False)
    try:
        return parity_errors(Setting(device, reg_max, strides), prepare, kind)
    except EngineFailed:
        return math.inf, math.inf


@torch.inference_mode(False)  # the first step may be a validation step
@torch.enable_grad()
def parity_errors(
    setting: Setting, prepare: Callable[[Any], None], kind: type = v8DetectionLoss
) -> tuple[float, float]:
    """Return the maximum relative error of an engine's loss on random problems, and of its gradients in norm.

    `prepare` makes a criterion of the host take the engine's steps.

    Raises:
        EngineFailed: If the engine fails.
    """
    errors = []
    for trial in trials(setting, kind):
        expected = _step(trial.one, trial)
        with failing_engine():
            prepare(trial.other)
            actual = _step(trial.other, trial)
        errors.append([relative_error(one, other) for one, other in zip(expected, actual)])
    return max(error[0] for error in errors), max(max(error[1:]) for error in errors)


@torch.inference_mode(False)
@torch.enable_grad()
def parity_agreement(setting: Setting, prepare: Callable[[Any], None]) -> Agreement:
    """Compare steps of an engine with those of the host, assignments too, up to ties; see `parity_errors`."""
    found = []
    for trial in trials(setting, v8DetectionLoss):
        with failing_engine():
            prepare(trial.other)
            found.append(compared_steps(*trial))
    return Agreement([text for one in found for text in one.differs], sum(one.n_exchanged for one in found))


@contextlib.contextmanager
def failing_engine() -> Iterator[None]:
    """Return a context in which every error is one of the engine."""
    try:
        yield
    except Exception as error:
        raise EngineFailed(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


def trials(setting: Setting, kind: type) -> Iterator[StepPair]:
    """Return random problems: a few gts, many with the settings of a one-to-one head, and none.

    A crowded image has about four times as many gts as the side of the images in cells.
    """
    device, strides = setting.device, setting.strides
    rng = torch.Generator().manual_seed(0)
    head = SimpleNamespace(stride=torch.tensor(strides, device=device), nc=setting.n_classes, reg_max=setting.reg_max)
    gains = IterableSimpleNamespace(box=7.5, cls=0.5, dfl=1.5, angle=1.0, overlap_mask=True)
    parameter = torch.zeros(1, device=device)
    model = SimpleNamespace(parameters=lambda: iter((parameter,)), args=gains, model=[head])
    size = setting.size[0] * max(strides), setting.size[1] * max(strides)
    shapes = [(round(size[0] / stride), round(size[1] / stride)) for stride in strides]
    is_half = setting.dtype != torch.float32
    dtype = setting.dtype if is_half else None
    context = functools.partial(torch.autocast, torch.device(device).type, dtype, enabled=is_half)
    for topk, n in ((10, 5), (7, 4 * setting.size[0]), (10, 0)):
        one, other = (kind(model, topk, **({"tal_topk2": 1} if topk == 7 else {})) for _ in range(2))
        tensors, batch = _problem(rng, sum(h * w for h, w in shapes), setting, n)
        if kind is v8OBBLoss:
            _rotate(rng, tensors, batch, size)
        yield StepPair(one, other, functools.partial(_inputs, tensors, shapes, setting), batch, context)


def _inputs(
    tensors: dict[str, Tensor], shapes: list[tuple[int, int]], setting: Setting
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return predictions as a criterion reads them, and the outputs of the head among them, as new leaves."""
    leaves = {name: x.to(setting.device, setting.dtype).requires_grad_() for name, x in tensors.items()}
    feats = [leaves["boxes"].new_zeros(2, 1, h, w) for h, w in shapes]
    return {**leaves, "feats": feats}, leaves


def _problem(
    rng: torch.Generator, n_anchors: int, setting: Setting, n: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return outputs of a head for two images, and their labels with n gts each."""
    reg_max = setting.reg_max
    boxes, scores = (torch.randn(2, rows, n_anchors, generator=rng) for rows in (4 * reg_max, setting.n_classes))
    batch = {
        "batch_idx": torch.arange(2 * n) // max(1, n),
        "cls": torch.randint(setting.n_classes, (2 * n, 1), generator=rng),
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


def _step(criterion: Any, trial: StepPair) -> tuple[Optional[Tensor], ...]:
    """Return the loss of a step of a criterion, and its gradients by the outputs of the head."""
    preds, leaves = trial.inputs()
    with trial.context():
        loss = criterion.loss(preds, trial.batch)[0]
    return loss.detach(), *torch.autograd.grad(loss.sum(), tuple(leaves.values()), allow_unused=True)

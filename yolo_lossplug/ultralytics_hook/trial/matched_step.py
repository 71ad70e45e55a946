# SPDX-License-Identifier: AGPL-3.0-or-later
"""One step of RT-DETR's criterion: its terms summed over decoder layers and denoising, and the inputs of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from yolo_lossplug.selection.select import class_weights
from yolo_lossplug.state import State
from yolo_lossplug.ultralytics_hook import detr
from yolo_lossplug.ultralytics_hook.attached import on_criterion
from yolo_lossplug.ultralytics_hook.criterion import class_names

TERMS = ("box", "class", "l1")
METHODS = ("_get_loss_class", "_get_loss_bbox")
"""Methods of the host whose calls give all terms."""
NAMES = {"box": "loss_giou", "class": "loss_class", "l1": "loss_bbox"}
"""How the host's names of the terms begin."""


def predict(model: Any, batch: dict[str, Any]) -> Any:
    """Return the outputs of a model in training, with denoising queries."""
    images, index = batch["img"], batch["batch_idx"].view(-1)
    targets = {
        "cls": batch["cls"].long().view(-1),
        "bboxes": batch["bboxes"],
        "batch_idx": index.long(),
        "gt_groups": [int((index == i).sum()) for i in range(len(images))],
    }
    return model.predict(images, batch=targets)


def summed(criterion: Any, trial: Any) -> dict[str, Tensor]:
    """Return the terms of a step, with their gains."""
    losses: dict[str, Tensor] = {}
    handle = criterion.register_forward_hook(lambda module, args, output: losses.update(output))
    trial.model.criterion = criterion
    try:
        trial.model.loss(trial.batch, trial.preds)
    finally:
        handle.remove()
    zero = trial.preds[0].new_zeros(())
    return {term: sum((v for k, v in losses.items() if k.startswith(NAMES[term])), zero) for term in TERMS}


def matched_grad_norms(criterion: Any, trial: Any) -> dict[str, tuple[float, ...]]:
    """Return the L2 norm of the gradient of each term by the head's outputs, by branch."""
    outputs = [tensor for tensor in trial.preds[:4] if tensor.requires_grad]
    return {"main": tuple(grad_norm(value, outputs) for value in summed(criterion, trial).values())}


def grad_norm(value: Tensor, outputs: list[Tensor]) -> float:
    """Return the L2 norm of the gradient of a sum of values by outputs; 0 without one, as where nothing is assigned."""
    if not value.requires_grad:
        return 0.0
    grads = torch.autograd.grad(value.sum(), outputs, retain_graph=True, allow_unused=True)
    return float(sum(grad.double().square().sum() for grad in grads if grad is not None)) ** 0.5


def formula(criterion: Any, trial: Any) -> dict[str, tuple[float, ...]]:
    """Return the terms of a step in float64, from the inputs of the criterion's methods and the formulas themselves.

    Of the criterion it uses the gains, and its host's own methods where a term has no key of ours.
    """
    with recorded(criterion) as calls:
        summed(criterion, trial)
    height, width = trial.batch["img"].shape[2:]
    with detr.input_size(height, width):
        rows = [_formula_of(name, criterion, trial, args) for name, args in calls]
    return {"main": tuple(float(sum(row[term] for row in rows if term in row)) for term in TERMS)}


def _formula_of(name: str, criterion: Any, trial: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    """Return the terms that one call of a method gives."""
    values = [*map(doubled, args)]
    hosts = getattr(detr.stock_class(criterion), name)(criterion, *values)
    found = {term: value for key, value in hosts.items() for term in TERMS if key.startswith(NAMES[term])}
    if "box" in found and trial.selection.chooses(trial.selection.box) and len(values[1]):
        found["box"] = _box_formula(criterion, trial, *values[:2])
    if "class" in found and trial.selection.chooses(trial.selection.cls) and not _is_hosts_class(criterion, args[3]):
        found["class"] = _class_formula(criterion, trial, *values[:4])
    return found


def doubled(value: Any) -> Any:
    """Return a value in float64, if it is a tensor of floating-point numbers."""
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _is_hosts_class(criterion: Any, n_objects: Any) -> bool:
    """Return whether the host's own class loss stays, which is another one where there is no object."""
    return not n_objects and "cls_loss" in on_criterion(criterion).terms.same


def _box_formula(criterion: Any, trial: Any, pred: Tensor, target: Tensor) -> Tensor:
    loss, scale = trial.selection.box.within(State().scoped("formula")), detr.DetrLosses().scale_of(pred)
    pairs = loss(*(detr.pixel_corners(boxes, scale) for boxes in (pred, target)), **detr.context(loss))
    return pairs.sum() / len(target) * criterion.loss_gain["giou"]


def _class_formula(
    criterion: Any, trial: Any, logits: Tensor, classes: Tensor, scores: Tensor, n_objects: Any
) -> Tensor:
    targets, is_matched = detr.soft_targets(classes, scores, criterion.nc), (classes < criterion.nc).unsqueeze(-1)
    elements = class_formula(trial, trial.selection.cls, logits, targets, is_matched)
    return elements.sum() / max(n_objects, 1) * criterion.loss_gain["class"]


def class_formula(trial: Any, loss: Any, logits: Tensor, targets: Tensor, is_assigned: Tensor) -> Tensor:
    """Return a class loss of each element, with label smoothing of assigned targets and class weights of a run."""
    if smoothing := trial.selection.cls_smoothing:
        targets = torch.where(is_assigned, targets * (1 - smoothing) + smoothing / 2, targets)
    elements = loss(logits, targets)
    weights = class_weights(trial.selection, logits.shape[-1], class_names(trial.model))
    return elements if weights is None else elements * elements.new_tensor(weights)


@contextmanager
def recorded(criterion: Any) -> Iterator[list[tuple[str, tuple[Any, ...]]]]:
    """Record the calls of the two methods of a criterion: name and arguments."""
    calls: list[tuple[str, tuple[Any, ...]]] = []

    def around(name: str, method: Any) -> Any:
        def wrapped(*args: Any) -> Any:
            calls.append((name, tuple(a.detach() if isinstance(a, Tensor) else a for a in args)))
            return method(*args)

        return wrapped

    with mock.patch.multiple(criterion, **{name: around(name, getattr(criterion, name)) for name in METHODS}):
        yield calls

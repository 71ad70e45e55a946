# SPDX-License-Identifier: AGPL-3.0-or-later
"""One step of a criterion: its terms, and the inputs of each."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor
from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG_DICT

from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import CLASSIFY, DETR, TASKS, keys
from yolo_lossplug.selection.regions import Rules
from yolo_lossplug.selection.select import Selection, class_weights, select
from yolo_lossplug.state import State
from yolo_lossplug.ultralytics_hook.criterion import class_names
from yolo_lossplug.ultralytics_hook.engines.parity import METHOD
from yolo_lossplug.ultralytics_hook.engines.terms import stock_bbox_loss
from yolo_lossplug.ultralytics_hook.family import with_task
from yolo_lossplug.ultralytics_hook.host import dataset_of, device_of, load_model, moved, network_of
from yolo_lossplug.ultralytics_hook.originals import RotatedBboxLoss, v8OBBLoss
from yolo_lossplug.ultralytics_hook.regions.data import rules_of_data
from yolo_lossplug.ultralytics_hook.running import branches
from yolo_lossplug.ultralytics_hook.trial import matched_step, one_run
from yolo_lossplug.ultralytics_hook.trial.drawn import drawn_batch

TERMS = ("box", "class", "dfl")
NAMES = {"box_loss": "box", "cls_loss": "class", "dfl_loss": "dfl", "l1_loss": "l1"}
"""Names of these terms in training, and here; a head without distributions has an L1 term in place of the DFL."""


class Seen(NamedTuple):
    """Inputs and outputs of the members of a criterion.

    Attributes:
        box: Arguments of its box loss module, from `pred_dist` on.
        box_terms: The box and the DFL term, without gains.
        cls: Logits and soft targets, (b, A, classes) both.
        cls_terms: Class loss of each element (b, A, classes).
    """

    box: tuple
    box_terms: tuple
    cls: tuple
    cls_terms: Tensor


class Trial(NamedTuple):
    """A model with a batch, ready for one step.

    Attributes:
        model: The host's model, in training mode, on its device.
        batch: A batch of drawn images with their labels.
        preds: Outputs of the model.
        args: Arguments of the run, including our keys.
        selection: Selected losses.
        rules: What of the data is not taught; the batch has no regions.
    """

    model: Any
    batch: dict[str, Any]
    preds: Any
    args: Any
    selection: Selection
    rules: Optional[Rules] = None


def trial(args: dict[str, Any]) -> Trial:
    """Return the model that a training with these arguments would start from, with a seeded batch.

    Args:
        args: As `yolo train` takes them; `data` is read for the classes if it is given, no image of it is.

    Raises:
        LossPlugError: If an argument is unknown or wrong.
    """
    args = {"model": "yolov8n.yaml", "imgsz": 160, "batch": 4, "device": "cpu", **args}
    for key, least in (("imgsz", 32), ("batch", 1), ("seed", 0)):
        value = args.get(key, least)
        if type(value) is not int or value < least:
            raise LossPlugError(f"{key}={value} must be a whole number, at least {least}: one step is taken with it.")
    for key in ("loss", "cls_loss"):
        if "," in str(args.get(key)):
            raise LossPlugError(f"{key}={args[key]} names several: verify takes one, compare and curves take more.")
    one_run.check_arguments(args)  # before the model is built or downloaded
    device = device_of(args["device"])
    torch.manual_seed(args.get("seed", 0))
    made = load_model(args["model"], args.get("task"))
    cfg = get_cfg(overrides={**args, "mode": "train", "task": made.task})
    selection = select(with_task(vars(cfg), type(made.model)))
    data = dataset_of(args, made.task) if cfg.data else None
    rules = rules_of_data(data, cfg) if data and made.task in TASKS else None
    model = network_of(made, cfg, data)
    model.to(device).train().requires_grad_()  # weights of a checkpoint, which is an average, have no gradient
    batch = moved(drawn_batch(model, cfg), device)
    preds = matched_step.predict(model, batch) if selection.task == DETR else model(batch["img"])
    return Trial(model, batch, preds, cfg, selection, rules)


def criterion_of(trial: Trial, is_stock: bool = False, **changes: Any) -> Any:
    """Return the criterion of the model, with changed arguments, or without our keys."""
    values = {**vars(trial.args), **changes}
    ours = keys() if is_stock else ()
    trial.model.args = type(trial.args)(**{key: value for key, value in values.items() if key not in ours})
    return trial.model.init_criterion()


def terms(criterion: Any, trial: Trial) -> dict[str, tuple[float, ...]]:
    """Return the terms of one step with their gains, by branch: box, class and DFL, or class alone of classify.

    They are read from the host's method that returns them, or else computed from the outputs of the members.
    """
    if trial.selection.task == CLASSIFY:
        return {"main": (float(criterion(trial.preds, trial.batch)[0].detach()),)}
    if trial.selection.task == DETR:
        return {"main": tuple(value.item() for value in matched_step.summed(criterion, trial).values())}
    seen: dict[str, tuple[float, ...]] = {}
    for branch, leaf in branches(criterion):
        name = _recorded_method(leaf)
        if hasattr(leaf, name):
            setattr(leaf, name, recording(getattr(leaf, name), branch, seen))
    members = seen_in(criterion, trial)
    for branch, leaf in branches(criterion):
        vars(leaf).pop(_recorded_method(leaf), None)
        if branch not in seen:
            inputs = members[branch]
            box, dfl = inputs.box_terms
            seen[branch] = _with_gains(leaf, box, _class_term(leaf, inputs.cls_terms, inputs), dfl)
    return seen


def _recorded_method(leaf: Any) -> str:
    """Return which method of a criterion returns box, class and DFL term with their gains."""
    return "loss" if isinstance(leaf, v8OBBLoss) else METHOD


def seen_in(criterion: Any, trial: Trial) -> dict[str, Seen]:
    """Take one step, and return inputs and outputs of the members, by branch; empty in the fast engine."""
    seen: dict[str, dict[str, Any]] = {branch: {} for branch, _ in branches(criterion)}
    handles = []
    for branch, leaf in branches(criterion):
        for name, module in (("box", leaf.bbox_loss), ("cls", leaf.bce)):
            handles.append(module.register_forward_hook(functools.partial(record_call, seen[branch], name)))
    try:
        criterion(trial.preds, trial.batch)
    finally:
        for handle in handles:
            handle.remove()
    return {branch: Seen(**recorded) for branch, recorded in seen.items() if len(recorded) == len(Seen._fields)}


def formula_terms(leaf: Any, inputs: Seen, trial: Trial) -> tuple[float, ...]:
    """Return the terms of one branch, evaluated in float64 by the formulas themselves.

    Of the criterion it uses only the gains, and the host's own module for the DFL term, which has no key of ours, and
    for its own ProbIoU, in which releases put another floor under the sides of boxes.
    """
    pred_dist, pred, points, target, scores, total, foreground, *extra = map(matched_step.doubled, inputs.box)
    rows = foreground.nonzero(as_tuple=True)
    stock = stock_bbox_loss(leaf.bbox_loss)
    context = {} if leaf.bbox_loss is stock else leaf.bbox_loss.context(points, rows[1])
    scope = State().scoped("formula")  # a new state, as in the criterion
    hosts, dfl = stock(pred_dist, pred, points, target, scores, total, foreground, *extra)
    if type(leaf.bbox_loss) is RotatedBboxLoss:
        box = hosts
    else:
        per_box = trial.selection.box.within(scope)(pred[rows], target[rows], **context)
        box = (per_box * scores[rows].sum(-1)).sum() / total
    logits, targets = (value.double() for value in inputs.cls)
    is_assigned = targets.amax(-1, keepdim=True) > 0
    elements = matched_step.class_formula(trial, trial.selection.cls.within(scope), logits, targets, is_assigned)
    return _with_gains(leaf, box, _class_term(leaf, elements, inputs), dfl)


def softmax_formula(trial: Trial) -> tuple[float, ...]:
    """Return the loss of the classify task, evaluated in float64 by the formula itself."""
    preds = trial.preds[1] if isinstance(trial.preds, (list, tuple)) else trial.preds
    logits, labels, smoothing = preds.double(), trial.batch["cls"].long(), trial.selection.cls_smoothing
    count = logits.shape[-1]
    elements = trial.selection.cls(logits, torch.eye(count).double()[labels] * (1 - smoothing) + smoothing / count)
    weights = class_weights(trial.selection, count, class_names(trial.model))
    if weights is None:
        return (elements.sum(-1).mean().item(),)
    table = torch.tensor(weights, dtype=torch.float64)
    return ((elements * table).sum().item() / table[labels].sum().item(),)


def recording(method: Any, branch: str, seen: dict[str, tuple[float, ...]]) -> Any:
    """Return a method that records the terms it returns."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        items = result[1].values() if isinstance(result[1], dict) else result[1]
        seen[branch] = tuple([item.item() for item in items][:3])
        return result

    return wrapped


def record_call(seen: dict[str, Any], name: str, module: Any, args: tuple, output: Any) -> None:
    """Hook of a module: record inputs and outputs of its first call; a mask term may call it again."""
    seen.setdefault(name, args)  # the host may change the output in place afterwards
    seen.setdefault(f"{name}_terms", output.clone() if isinstance(output, Tensor) else output)


def _class_term(leaf: Any, elements: Tensor, inputs: Seen) -> Tensor:
    """Return the sum of the class loss as the host normalises it, with the host's class weights."""
    weights = getattr(leaf, "class_weights", None)
    return (elements if weights is None else elements * weights.to(elements.dtype)).sum() / inputs.box[5]


def _with_gains(leaf: Any, box: Tensor, cls: Tensor, dfl: Tensor) -> tuple[float, ...]:
    return box.item() * leaf.hyp.box, cls.item() * leaf.hyp.cls, dfl.item() * leaf.hyp.dfl


GAINS = {"box": "box", "class": "cls", "dfl": "dfl", "l1": "dfl"}
"""Ultralytics' keys of the gains, by term."""


def names_of_terms(criterion: Any, trial: Trial) -> tuple[str, ...]:
    """Return the names of the terms of a step that keys of ours change, and of the DFL or L1 term."""
    if trial.selection.task == CLASSIFY:
        return ("class",)
    if trial.selection.task == DETR:
        return matched_step.TERMS
    trained = (getattr(leaf, "loss_names", ()) for _, leaf in branches(criterion))
    return (*TERMS[:2], "l1") if any("l1_loss" in names for names in trained) else TERMS


def host_terms(criterion: Any, trial: Trial) -> dict[str, dict[str, float]]:
    """Return the other terms of one step, of masks, keypoints or angles, with their gains, by branch and name.

    They are the host's own, and there are none where its release does not name them.
    """
    seen: dict[str, dict[str, float]] = {}

    def noting(branch: str, method: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            items = result[1] if isinstance(result[1], dict) else {}
            others = {name: float(value) for name, value in items.items() if name not in NAMES}
            seen[branch] = {name.removesuffix("_loss"): value for name, value in others.items()}
            return result

        return wrapped

    leaves = [(branch, leaf) for branch, leaf in branches(criterion) if hasattr(leaf, "loss_names")]
    for branch, leaf in leaves:
        leaf.loss = noting(branch, leaf.loss)
    if leaves:
        criterion(trial.preds, trial.batch)
    for _, leaf in leaves:
        del leaf.loss
    return seen


def default_gains() -> dict[str, float]:
    """Return the gains of a run that sets none, by key."""
    return {key: float(DEFAULT_CFG_DICT[key]) for key in dict.fromkeys(GAINS.values())}


def grad_norms(criterion: Any, trial: Trial) -> dict[str, tuple[float, ...]]:
    """Return the L2 norm of the gradient of each term by the head's outputs, gains included, by branch.

    A branch in which no anchor is assigned is left out by releases that do not call their box loss then.

    Args:
        criterion: A criterion that takes the host's own step; the fast engine does not call the members it is seen in.
        trial: The step.
    """
    if trial.selection.task == DETR:
        return matched_step.matched_grad_norms(criterion, trial)
    outputs = head_outputs(trial.preds)
    if trial.selection.task == CLASSIFY:
        return {"main": (matched_step.grad_norm(criterion(trial.preds, trial.batch)[0], outputs),)}
    members, norms = seen_in(criterion, trial), {}
    for branch, leaf in branches(criterion):
        if branch not in members:
            continue
        seen = members[branch]
        box, dfl = seen.box_terms
        values = (box * leaf.hyp.box, _class_term(leaf, seen.cls_terms, seen) * leaf.hyp.cls, dfl * leaf.hyp.dfl)
        norms[branch] = tuple(matched_step.grad_norm(value, outputs) for value in values)
    return norms


def head_outputs(preds: Any) -> list[Tensor]:
    """Return all tensors that a head returns in training, except its input features (``feats`` of a mapping)."""
    if isinstance(preds, Tensor):
        return [preds] if preds.requires_grad else []
    values = [preds[key] for key in preds if key != "feats"] if isinstance(preds, dict) else preds
    return [tensor for value in values for tensor in head_outputs(value)]

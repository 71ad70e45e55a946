# SPDX-License-Identifier: AGPL-3.0-or-later
"""Our losses in the three members of an Ultralytics criterion: `bbox_loss`, `bce`, `assigner`.

These members, and how the criterion calls them, are the same in every supported release, while the methods around them
have changed many times. So the members are replaced, and no method of the criterion is overridden or copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable, Optional

import torch
from torch import nn
from ultralytics.utils import DEFAULT_CFG_DICT, IterableSimpleNamespace

from yolo_lossplug.regions import KEY
from yolo_lossplug.registry import ROTATED, LossPlugError
from yolo_lossplug.selection.keys import CLASSIFY, DETR, NUMBERS, STOCK_BOX, refuse_unknown
from yolo_lossplug.selection.regions import by_index
from yolo_lossplug.selection.select import Selection, class_weights, select
from yolo_lossplug.state import Scope, State
from yolo_lossplug.ultralytics_hook import detr, originals, running
from yolo_lossplug.ultralytics_hook.assigner import set_overlap, set_topk
from yolo_lossplug.ultralytics_hook.attached import on_assigner, on_criterion
from yolo_lossplug.ultralytics_hook.engines import choice, terms
from yolo_lossplug.ultralytics_hook.members import PluggedBboxLoss, PluggedClassLoss, PluggedSoftmaxLoss
from yolo_lossplug.ultralytics_hook.min_side import set_min_side
from yolo_lossplug.ultralytics_hook.regions.loss import regions_of, silence
from yolo_lossplug.ultralytics_hook.run import runs
from yolo_lossplug.ultralytics_hook.run.report import Collector
from yolo_lossplug.ultralytics_hook.run.watch import meter_of, watch


class PluggedCriterion:
    """An Ultralytics criterion with the losses that its own or its model's arguments select.

    Args:
        model: The model, de-paralleled; ``model.args`` may hold our keys.
        *args: Further arguments of the host's criterion.
        **kwargs: Our keys, which override those of ``model.args``, and keyword arguments of the host's criterion.

    Raises:
        LossPlugError: If a key is wrong, or cannot be used with this criterion.
    """

    task = "detect"

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        host, branch = {}, "main"
        if kwargs.get("tal_topk2") is not None:  # a one-to-one head, which keeps the host's values
            host = {key: kwargs.pop(key) for key in ("tal_topk", "tal_topk2") if key in kwargs}
            branch = running.ONE_TO_ONE
        elif kwargs.get("tal_topk") == NUMBERS["tal_topk"].default:  # compound criteria of the host name their default
            del kwargs["tal_topk"]
        of_model = arguments(model)
        selection = select({**of_model, "task": self.task, **kwargs})
        refuse_unknown(kwargs)
        super().__init__(WithGains(model), *args, **host)  # type: ignore[call-arg]
        run = runs.find(of_model)
        plug(self, selection, names=class_names(model), collector=run.collector if run else None, branch=branch)


class WithGains:
    """A model as a criterion of the host reads it, whose arguments are a namespace with all gains.

    Arguments of a loaded model are a dict; those of a model built by hand lack the gains or are missing.
    """

    def __init__(self, model: Any) -> None:
        args = getattr(model, "args", None)
        is_whole = not isinstance(args, dict) and all(hasattr(args, gain) for gain in ("box", "cls", "dfl"))
        given = {key: value for key, value in arguments(model).items() if value is not None}
        self.model_, self.args = model, args if is_whole else IterableSimpleNamespace(**{**DEFAULT_CFG_DICT, **given})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model_, name)


class DetectionLoss(PluggedCriterion, originals.v8DetectionLoss):
    """Detection criterion: ``DetectionLoss(model, loss="eiou", cls_loss="qfl")``."""


class SegmentationLoss(PluggedCriterion, originals.v8SegmentationLoss):
    """Instance segmentation criterion; the mask terms are the host's."""

    task = "segment"


class PoseLoss(PluggedCriterion, originals.v8PoseLoss):
    """Pose criterion; the keypoint terms are the host's."""

    task = "pose"


class OBBLoss(PluggedCriterion, originals.v8OBBLoss):
    """Criterion of rotated boxes: takes losses of rotated boxes, ``OBBLoss(model, loss="kld")``."""

    task = "obb"


def arguments(model: Any) -> dict[str, Any]:
    """Return a model's training arguments, which are a dict on a loaded model and a namespace in training."""
    args = getattr(model, "args", None) or {}
    return dict(args) if isinstance(args, dict) else dict(vars(args))


def class_names(model: Any) -> dict[int, str]:
    """Return the names of a model's classes by index."""
    return by_index(getattr(model, "names", None))


def plug(
    criterion: Any,
    selection: Selection,
    state: Optional[State] = None,
    names: Optional[Mapping[int, str]] = None,
    collector: Optional[Collector] = None,
    branch: str = "main",
) -> Any:
    """Put the selected losses into a host criterion, in place, and return it; without any key nothing is touched.

    Args:
        criterion: Any criterion of the host.
        selection: Selected losses.
        state: State of the run's losses; None for a new state.
        names: Names of the classes by index.
        collector: Collector of the run's assignment report, if it writes one.
        branch: Name of the criterion if it is not a compound of others.

    Raises:
        LossPlugError: If the criterion cannot use what is selected.
    """
    if not selection.is_active:
        return criterion
    names = names or {}
    if isinstance(criterion, originals.v8ClassificationLoss):
        selection = _of_task(selection, CLASSIFY)
        weights = class_weights(selection, max(names, default=-1) + 1, names)
        return PluggedSoftmaxLoss(criterion, selection, weights)
    if not (leaves := list(running.branches(criterion, branch))):
        raise LossPlugError(
            f"{', '.join(sorted(selection.chosen))} cannot be used with {type(criterion).__name__}, which has no box "
            f"and class loss of the kind that detect, segment, pose, obb and classify models train with; remove it."
        )
    state = State() if state is None else state
    for branch, leaf in leaves:
        _plug_leaf(leaf, branch, selection, state.scoped(branch), names)
        if selection.report:
            watch(leaf.assigner, collector.meter(branch, leaf.device, leaf.nc, names) if collector else None)
    return criterion


def leave_out_regions(criterion: Any) -> None:
    """Make a criterion leave out what the regions of a batch silence, in place and once.

    Raises:
        LossPlugError: If it has no class term of anchors or queries.
    """
    if not (leaves := running.branch_criteria(criterion)):
        raise LossPlugError(
            f"ignore and annotated cannot be used with {type(criterion).__name__}, which has no class term of the kind "
            f"that detect, segment, pose and obb models train with; remove them from the data or the keys."
        )
    for leaf in leaves:
        if isinstance(leaf, originals.DETRLoss):
            detr.leave_out_regions_detr(leaf)
        else:
            silence(leaf, leaf.stride)


def with_regions(stock: Callable[..., Any], model: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute the loss of a batch, whose images may have regions."""
    if not isinstance(batch, Mapping) or batch.get(KEY) is None:
        return stock(model, batch, *args, **kwargs)
    if getattr(model, "criterion", None) is None:
        model.criterion = model.init_criterion()
    leave_out_regions(model.criterion)
    with regions_of(batch) as regions:
        for leaf in running.branch_criteria(model.criterion) if torch.is_grad_enabled() else ():
            if (meter := meter_of(getattr(leaf, "assigner", None))) is not None and regions is not None:
                meter.silenced += regions.count(leaf.stride, meter.silenced)
        return stock(model, batch, *args, **kwargs)


def with_input_size_and_regions(stock: Callable[..., Any], model: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute the loss of a batch of RT-DETR, whose images have the size of the network input, and may have regions."""
    with detr.input_size(*batch["img"].shape[2:]):
        return with_regions(stock, model, batch, *args, **kwargs)


def _plug_leaf(leaf: Any, branch: str, selection: Selection, scope: Scope, names: Mapping[int, str]) -> None:
    if isinstance(leaf, originals.DETRLoss):
        selection = _of_task(selection, DETR)
        detr.plug_detr(leaf, selection, scope, class_weights(selection, leaf.nc, names))
        return
    is_rotated = isinstance(leaf.assigner, originals.RotatedTaskAlignedAssigner)
    if is_rotated != (selection.box.kind == ROTATED):
        selection = _of_task(selection, "obb" if is_rotated else "detect")
    attached = on_criterion(leaf)
    is_ciou = (selection.box.name, type(leaf.bbox_loss)) == (STOCK_BOX, originals.BboxLoss)
    if not selection.has_stock_box_loss or (is_ciou and not running.is_host_ciou()):  # but another loss of a fork
        stock = terms.stock_bbox_loss(leaf.bbox_loss)
        leaf.bbox_loss = PluggedBboxLoss(stock, selection.box.within(scope), leaf.stride)
    if not selection.has_stock_class_loss:
        _install_class_loss(leaf, selection, scope, names)
    if not running.is_one_to_one(branch, leaf):
        set_assigner_options(leaf.assigner, selection)
    if selection.overlap is not None:
        set_overlap(leaf.assigner, selection.overlap)
    choice.install_engine(leaf, choice.decide_engine(selection.loss_engine, leaf))
    attached.selection, attached.running = selection, {**running.running(leaf), **_stock_members(leaf, selection)}


def _stock_members(leaf: originals.v8DetectionLoss, selection: Selection) -> dict[str, Any]:
    """Return the keys selected as the host's own where the criterion still holds another member from before."""
    stock: dict[str, Any] = {}
    if selection.has_stock_box_loss and isinstance(leaf.bbox_loss, PluggedBboxLoss) and running.is_host_ciou():
        stock["loss"] = selection.box.name
    if selection.has_stock_class_loss and isinstance(leaf.bce, PluggedClassLoss):
        stock["cls_loss"] = selection.cls.name
    if selection.tal_iou == STOCK_BOX and on_assigner(leaf.assigner).overlap_loss is not None:
        stock["tal_iou"] = STOCK_BOX
    return stock


def _install_class_loss(leaf: Any, selection: Selection, scope: Scope, names: Mapping[int, str]) -> None:
    if not isinstance(leaf.bce, PluggedClassLoss) and not terms.has_stock_bce(leaf):
        keys = ", ".join(key for key in ("cls_loss", "cls_smoothing", "cls_weights") if key in selection.given)
        raise LossPlugError(
            f"{keys} cannot be used with this criterion, whose class loss is {running.describe_module(leaf.bce)}: "
            f"it would be replaced. Remove the keys, or give the criterion a plain BCEWithLogitsLoss and use "
            f"cls_weights."
        )
    weights = class_weights(selection, leaf.nc, names)
    leaf.bce = PluggedClassLoss(
        selection.cls.within(scope),
        selection.cls_smoothing,
        getattr(leaf, "class_weights", None) is not None,
        None if weights is None else torch.tensor(weights, device=leaf.device),
    )


def set_assigner_options(assigner: Any, selection: Selection) -> None:
    """Set those numbers of an assigner that the user has chosen; a criterion's own stay otherwise."""
    for key in selection.chosen & {"tal_alpha", "tal_beta"}:
        setattr(assigner, key.partition("_")[2], getattr(selection, key))
    if "tal_topk" in selection.chosen:
        set_topk(assigner, selection.tal_topk)
    if selection.tal_min_side is not None:
        set_min_side(assigner, selection.tal_min_side)


def _of_task(selection: Selection, task: str) -> Selection:
    """Return a selection for the task of a criterion, selected again where none, or another, was given."""
    if selection.task == task:
        return selection
    args = {key: value for key, value in selection.resolved().items() if key in selection.given}
    return select({**args, "task": task})

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Our losses in the three members of an Ultralytics criterion: `bbox_loss`, `bce`, `assigner`.

These members, and how the criterion calls them, are the same in every supported release, while the methods around them
have changed many times. So the members are replaced, and no method of the criterion is overridden or copied.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Optional

import torch
from torch import Tensor, nn
from ultralytics.utils import tal
from ultralytics.utils.loss import (
    BboxLoss,
    v8ClassificationLoss,
    v8DetectionLoss,
    v8OBBLoss,
    v8PoseLoss,
    v8SegmentationLoss,
)

from yolo_lossplug.registry import ROTATED, SOFTMAX, LossPlugError
from yolo_lossplug.selection.keys import STOCK_BOX, refuse_unknown
from yolo_lossplug.selection.loss import Loss, create_box_loss
from yolo_lossplug.selection.select import Selection, class_weights, select
from yolo_lossplug.state import Scope, State
from yolo_lossplug.ultralytics_hook import report
from yolo_lossplug.ultralytics_hook.assigner import set_overlap
from yolo_lossplug.ultralytics_hook.engines import choice, fast

STOCK_TOPK = inspect.signature(v8DetectionLoss.__init__).parameters["tal_topk"].default

BRANCHES = ("one2many", "one2one", "vp_criterion")
"""Attributes under which a compound criterion holds others."""


class PluggedBboxLoss(nn.Module):
    """The host's box loss with another IoU term; its DFL (or L1) term stays the host's.

    Args:
        stock: The host's module.
        loss: Box loss to use.
        stride: Strides of the pyramid levels in pixels.
    """

    def __init__(self, stock: BboxLoss, loss: Loss, stride: Tensor) -> None:
        super().__init__()
        self.stock, self.loss, self.stride = stock, loss, stride
        if loss.state is not None:  # ranks agree about what is remembered from the first step on
            empty = stride.new_zeros((0, 4)).float()
            with torch.no_grad():
                loss(empty, empty)

    def forward(
        self,
        pred_dist: Tensor,
        pred_bboxes: Tensor,
        anchor_points: Tensor,
        target_bboxes: Tensor,
        target_scores: Tensor,
        target_scores_sum: Tensor,
        fg_mask: Tensor,
        *extra: Any,
    ) -> tuple[Tensor, Tensor]:
        """Return the IoU and the DFL term, as the host's module does; boxes are in grid cells of their level."""
        # The host computes its CIoU of the detached boxes in vain: cheaper than a copy of its DFL for every release.
        dfl = self.stock(
            pred_dist,
            pred_bboxes.detach(),
            anchor_points,
            target_bboxes,
            target_scores,
            target_scores_sum,
            fg_mask,
            *extra,
        )[1]
        rows = fg_mask.nonzero(as_tuple=True)
        weight = target_scores[rows].sum(-1)
        per_box = self.loss(pred_bboxes[rows], target_bboxes[rows], **self.context(anchor_points, rows[1]))
        return (per_box * weight).sum() / target_scores_sum, dfl

    def context(self, anchor_points: Tensor, anchors: Tensor) -> dict[str, Tensor]:
        """Return stride (N, 1) and network input size (2,) in pixels, read off the anchors, if the loss wants them."""
        if not self.loss.context & {"stride", "imgsz"}:
            return {}
        # Older releases do not pass them. Every level starts at the cell centre (0.5, 0.5), and only there.
        level = (anchor_points == 0.5).all(-1).cumsum(0) - 1
        stride = self.stride.to(anchor_points.device)[level].unsqueeze(-1)
        imgsz = ((anchor_points + 0.5) * stride).amax(0).flip(0)
        return {"stride": stride[anchors], "imgsz": imgsz}


class PluggedClassLoss(nn.Module):
    """A class loss in place of the host's elementwise BCE.

    Args:
        loss: Class loss to use.
        smoothing: ε of label smoothing: targets of assigned anchors become y·(1 − ε/2) + (1 − y)·ε/2.
        is_weighted: Whether the host multiplies class weights of its own into the result.
        weights: Weights of the classes (classes,), None for none.
    """

    def __init__(
        self, loss: Loss, smoothing: float = 0.0, is_weighted: bool = False, weights: Optional[Tensor] = None
    ) -> None:
        super().__init__()
        self.loss, self.smoothing, self.is_weighted, self.weights = loss, smoothing, is_weighted, weights

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each element; `pred` are logits (b, anchors, classes), `target` their soft targets."""
        if self.smoothing:
            # Only assigned anchors: lifting the other 8,000 negatives of every class would swamp the sum.
            assigned = target.amax(-1, keepdim=True) > 0
            target = torch.where(assigned, target * (1 - self.smoothing) + self.smoothing / 2, target)
        result = self.loss(pred, target)
        if self.weights is not None:
            return result * self.weights
        # The host multiplies in place, which autograd forbids on a result that backward reads, as that of an exp.
        return result.clone() if self.is_weighted else result


class PluggedSoftmaxLoss:
    """The criterion of the classify task with another loss.

    Args:
        stock: The host's criterion.
        selection: What to train with.
        weights: Weights of the classes (classes,), None for none.
    """

    def __init__(self, stock: Any, selection: Selection, weights: Optional[list[float]]) -> None:
        self.stock, self.lossplug, self.loss, self.weights = stock, selection, selection.cls, weights

    def __call__(self, preds: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Any]:
        """Return the mean loss of the images, weighted as `torch.nn.CrossEntropyLoss` does, and what is logged."""
        items = self.stock(preds, batch)[1]
        logits, labels = preds[1] if isinstance(preds, (list, tuple)) else preds, batch["cls"]
        count, smoothing = logits.shape[-1], self.lossplug.cls_smoothing
        targets = torch.nn.functional.one_hot(labels.long(), count) * (1 - smoothing) + smoothing / count
        terms = self.loss(logits, targets.to(logits.dtype))
        if self.weights is None:
            loss = terms.sum(-1).mean()
        else:
            weights = torch.tensor(self.weights, dtype=terms.dtype, device=terms.device)
            loss = (terms * weights).sum() / weights[labels.long()].sum().clamp(min=1e-12)
        return loss, dict.fromkeys(items, loss.detach()) if isinstance(items, dict) else loss.detach()


class PluggedCriterion:
    """A criterion of Ultralytics that trains with the losses that its model's arguments, or its own, name.

    Args:
        model: The model, de-paralleled; ``model.args`` may hold our keys.
        *args: Further arguments of the host's criterion.
        **kwargs: Our keys, which go before those of ``model.args``, and keyword arguments of the host's criterion.

    Raises:
        LossPlugError: If a key is wrong, or cannot be used with this criterion.
    """

    task = "detect"

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        host = {}
        if kwargs.get("tal_topk2") is not None:  # a one-to-one head, which keeps the numbers that the host gives it
            host = {key: kwargs.pop(key) for key in ("tal_topk", "tal_topk2") if key in kwargs}
        elif kwargs.get("tal_topk") == STOCK_TOPK:  # the host's compound criteria spell their default out
            del kwargs["tal_topk"]
        selection = select({**arguments(model), "task": self.task, **kwargs})
        refuse_unknown(kwargs)
        super().__init__(model, *args, **host)  # type: ignore[call-arg]
        plug(self, selection, names=class_names(model), collector=report.collector_of(arguments(model)))


class DetectionLoss(PluggedCriterion, v8DetectionLoss):
    """Detection criterion: ``DetectionLoss(model, loss="eiou", cls_loss="qfl")``."""


class SegmentationLoss(PluggedCriterion, v8SegmentationLoss):
    """Instance segmentation criterion; the mask terms are the host's."""

    task = "segment"


class PoseLoss(PluggedCriterion, v8PoseLoss):
    """Pose criterion; the keypoint terms are the host's."""

    task = "pose"


class OBBLoss(PluggedCriterion, v8OBBLoss):
    """Criterion of rotated boxes: takes losses of rotated boxes, ``OBBLoss(model, loss="kld")``."""

    task = "obb"


@torch.no_grad()
def self_test() -> float:
    """Return how far our CIoU in the host's seams is from the host's own, relative, on random boxes.

    A run with our losses rests on how the host calls its box loss, how it weighs and sums, and what its boxes are.
    """
    rng = torch.Generator().manual_seed(0)
    anchors = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="xy"), -1).view(-1, 2) + 0.5
    low = anchors - torch.rand(2, 64, 2, generator=rng) * 3
    boxes = torch.cat((low, low + 1 + torch.rand(2, 64, 2, generator=rng) * 4), -1)
    targets = boxes + torch.randn(2, 64, 4, generator=rng) * 0.1
    scores = torch.rand(2, 64, 3, generator=rng)
    foreground = torch.rand(2, 64, generator=rng) > 0.5
    given: tuple[Any, ...] = (torch.randn(2, 64, 64, generator=rng), boxes, anchors, targets, scores, scores.sum())
    stock = BboxLoss(16)
    extra: tuple[Any, ...] = (torch.tensor([64.0, 64.0]), torch.full((64, 1), 8.0))
    extra = extra[: len(inspect.signature(stock.forward).parameters) - len(given) - 1]
    theirs = stock(*given, foreground, *extra)
    ours = PluggedBboxLoss(stock, create_box_loss(STOCK_BOX), torch.tensor([8.0]))(*given, foreground, *extra)
    return max(float((a - b).abs() / a.abs().clamp(min=1e-9)) for a, b in zip(theirs, ours))


def arguments(model: Any) -> dict[str, Any]:
    """Return a model's training arguments, which are a dict on a loaded model and a namespace in training."""
    args = getattr(model, "args", None) or {}
    return dict(args) if isinstance(args, dict) else dict(vars(args))


def class_names(model: Any) -> dict[int, str]:
    """Return the names of a model's classes by index."""
    names = getattr(model, "names", None) or {}
    return {int(i): str(name) for i, name in (names.items() if isinstance(names, dict) else enumerate(names))}


def leaves(criterion: Any) -> list[v8DetectionLoss]:
    """Return every criterion inside one that holds a box loss, a class loss and an assigner."""
    return [leaf for _, leaf in branches(criterion)]


def plug(
    criterion: Any,
    selection: Selection,
    state: Optional[State] = None,
    names: Optional[Mapping[int, str]] = None,
    collector: Optional[report.Collector] = None,
) -> Any:
    """Put the selected losses into a host criterion, in place; without any key nothing is touched.

    Args:
        criterion: Any criterion of the host.
        selection: What to train with.
        state: What the run remembers; None for a state of the criterion's own.
        names: Names of the classes by index.
        collector: What the run reports of the assignment, if it does.

    Returns:
        The criterion.

    Raises:
        LossPlugError: If it has no place for what is selected.
    """
    if not selection.is_active:
        return criterion
    if isinstance(criterion, v8ClassificationLoss):
        if selection.cls.kind != SOFTMAX:
            selection = _of_task(selection, "classify")
        count = max(names or {}, default=-1) + 1
        return PluggedSoftmaxLoss(criterion, selection, class_weights(selection, count, names or {}))
    found = list(branches(criterion))
    if not found:
        raise LossPlugError(
            f"{', '.join(sorted(selection.given))} cannot be used with {type(criterion).__name__}, which has no box "
            f"and class loss of the kind that detect, segment, pose, obb and classify models train with; remove it."
        )
    state = State() if state is None else state
    for branch, leaf in found:
        _plug_leaf(leaf, selection, state.scoped(branch), names or {})
        if selection.report:
            report.watch(leaf.assigner, collector.meter(branch, leaf.device) if collector else None)
    return criterion


def is_plugged(criterion: Any, selection: Selection) -> bool:
    """Return whether every part of a criterion runs what is selected."""
    if isinstance(criterion, PluggedSoftmaxLoss):
        return criterion.lossplug == selection and criterion.loss == selection.cls
    found = leaves(criterion)
    return bool(found) and all(_runs(leaf, selection) for leaf in found)


def branches(criterion: Any, name: str = "main") -> Iterator[tuple[str, v8DetectionLoss]]:
    """Yield the leaves of a criterion with the name of their branch."""
    if isinstance(criterion, v8DetectionLoss):
        yield name, criterion
        return
    for branch in BRANCHES:
        if hasattr(criterion, branch):
            yield from branches(getattr(criterion, branch), branch)


def _plug_leaf(leaf: v8DetectionLoss, selection: Selection, scope: Scope, names: Mapping[int, str]) -> None:
    is_rotated = isinstance(leaf.assigner, tal.RotatedTaskAlignedAssigner)
    if is_rotated != (selection.box.kind == ROTATED):
        selection = _of_task(selection, "obb" if is_rotated else "detect")
    if not selection.has_stock_box_loss:
        stock = leaf.bbox_loss.stock if isinstance(leaf.bbox_loss, PluggedBboxLoss) else leaf.bbox_loss
        leaf.bbox_loss = PluggedBboxLoss(stock, selection.box.within(scope), leaf.stride)
    if not selection.has_stock_class_loss:
        is_weighted = getattr(leaf, "class_weights", None) is not None
        weights = class_weights(selection, leaf.nc, names)
        leaf.bce = PluggedClassLoss(
            selection.cls.within(scope),
            selection.cls_smoothing,
            is_weighted,
            None if weights is None else torch.tensor(weights, device=leaf.device),
        )
    assigner = leaf.assigner
    if not hasattr(leaf, "is_one_to_many"):
        leaf.is_one_to_many = _is_one_to_many(assigner)
    if leaf.is_one_to_many:
        assigner.topk, assigner.alpha, assigner.beta = selection.tal_topk, selection.tal_alpha, selection.tal_beta
        if hasattr(assigner, "topk2"):
            assigner.topk2 = selection.tal_topk
    if selection.tal_iou != STOCK_BOX:
        set_overlap(assigner, selection.tal_iou)
    leaf.is_fast = choice.settle(leaf, selection.loss_engine)
    leaf.lossplug = selection


def _of_task(selection: Selection, task: str) -> Selection:
    """Return what was asked for as the task of a criterion takes it, where nobody has said which task it is."""
    given = {key: value for key, value in selection.resolved().items() if key in selection.given}
    return select({**given, "task": task})


def _is_one_to_many(assigner: tal.TaskAlignedAssigner) -> bool:
    """Whether an assigner has the host's default number of anchors per object; one-to-one heads are given their own."""
    return assigner.topk == STOCK_TOPK and getattr(assigner, "topk2", assigner.topk) == assigner.topk


def _runs(leaf: v8DetectionLoss, selection: Selection) -> bool:
    """Whether the members of a leaf are the selected ones, whatever it claims."""
    if getattr(leaf, "lossplug", None) != selection:
        return False
    box, cls, assigner = getattr(leaf.bbox_loss, "loss", None), getattr(leaf.bce, "loss", None), leaf.assigner
    numbers = (selection.tal_topk, selection.tal_alpha, selection.tal_beta)
    return (
        (not leaf.is_one_to_many or (assigner.topk, assigner.alpha, assigner.beta) == numbers)
        and (selection.has_stock_box_loss if box is None else box == selection.box)
        and (
            selection.has_stock_class_loss
            if cls is None
            else (cls == selection.cls and leaf.bce.smoothing == selection.cls_smoothing)
        )
        and (getattr(assigner, "overlap", None) is None) == (selection.tal_iou == STOCK_BOX)
        and isinstance(leaf, fast.FastMixin) == leaf.is_fast
    )

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Our losses in the criterion of RT-DETR, which matches queries to objects: in its two methods, class and box loss.

The GIoU term and the class term of every decoder layer, and of denoising, get another loss; the L1 term, the gains, the
matcher, and the division by the number of objects stay the host's.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from yolo_lossplug.boxes import as_float
from yolo_lossplug.registry import BOX, LossPlugError
from yolo_lossplug.selection.keys import STOCK_DETR
from yolo_lossplug.selection.loss import Loss, bind
from yolo_lossplug.selection.select import Selection
from yolo_lossplug.state import Scope, State
from yolo_lossplug.ultralytics_hook import patching
from yolo_lossplug.ultralytics_hook.attached import OnCriterion, on_criterion
from yolo_lossplug.ultralytics_hook.derived import Derived, derive
from yolo_lossplug.ultralytics_hook.members import PluggedClassLoss
from yolo_lossplug.ultralytics_hook.originals import DETRLoss
from yolo_lossplug.ultralytics_hook.regions.loss import current

SEAMS = {
    "_get_loss_class": ("self", "pred_scores", "targets", "gt_scores", "num_gts", "postfix"),
    "_get_loss_bbox": ("self", "pred_bboxes", "gt_bboxes", "postfix"),
    "_get_loss": ("self", "pred_bboxes"),
}
"""Methods of the host's criterion that are overridden, and their parameters."""
MIN_TARGET = torch.finfo(torch.float32).tiny
"""Target of a matched query whose IoU is 0: class losses tell matched queries by a target above 0."""
LOWEST_LOGIT = -1e4
"""A logit whose sigmoid is 0, and that half precision holds."""
TOLERANCE = 1e-4
"""Maximum relative difference, in value and gradient, of two losses that count as the same."""

_input_size: ContextVar[Optional[tuple[int, int]]] = ContextVar("input_size", default=None)


def input_size(height: int, width: int) -> AbstractContextManager[None]:
    """Let criteria of RT-DETR know the size of the network input in pixels: their boxes are relative to it."""
    return patching.held(_input_size, (height, width))


class Reader(Scope):
    """A view of a state that does not change it."""

    @property
    def is_training(self) -> bool:
        """Whether the numbers may change: never."""
        return False

    def put(self, key: str, value: Tensor) -> None:
        """Keep the number as it is."""


@dataclass
class DetrLosses:
    """Losses of a criterion of RT-DETR that are ours.

    Attributes:
        box: The box loss of the last decoder layer; None for the host's own.
        others: The same for the other layers and denoising, which read a running mean and do not change it.
        cls: The class loss; None for the host's own.
        same: By key, a selected loss that equals the host's own, which stays, and what the host's own was then.
        has_l1: Whether the host's L1 term is `l1_term`: then its GIoU is not computed only to be discarded.
        is_last: Whether the next box loss is that of the last decoder layer, which the host computes first.
        scale: Width, height, half width, half height of the network input in pixels (4,), cached with its key.
        boxes: Boxes (b, queries, 4) of the decoder layer whose loss is computed.
    """

    box: Optional[Loss] = None
    others: Any = None
    cls: Optional[PluggedClassLoss] = None
    same: dict[str, tuple[str, Loss]] = field(default_factory=dict)
    has_l1: bool = False
    is_last: bool = True
    scale: Optional[tuple[tuple[Any, ...], Tensor]] = None
    boxes: Optional[Tensor] = None

    def silenced_queries(self, is_unmatched: Tensor) -> Optional[Tensor]:
        """Return the elements (b, queries, classes) that regions silence, of unmatched queries (b, queries)."""
        if (regions := current()) is None or self.boxes is None:
            return None
        return regions.queries(self.boxes) & is_unmatched.unsqueeze(-1)

    def scale_of(self, boxes: Tensor) -> Tensor:
        """Return what makes pixels of normalised boxes (4,), and half of their width and height.

        Raises:
            LossPlugError: If the size of the network input is unknown.
        """
        size, dtype = _input_size.get(), torch.promote_types(boxes.dtype, torch.float32)
        if size is None:
            raise LossPlugError(
                "the size of the network input is unknown: call model.loss(batch), as training does, and not the "
                "criterion of RT-DETR."
            )
        key, (height, width) = (size, boxes.device, dtype), size
        if self.scale is None or self.scale[0] != key:
            self.scale = key, torch.tensor((width, height, width / 2, height / 2), dtype=dtype, device=boxes.device)
        return self.scale[1]


class DetrMixin(Derived, DETRLoss):
    """A criterion of RT-DETR with our box loss, class loss, or both."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the terms by name, as the host's method does."""
        on_criterion(self).terms.is_last = True
        return super().forward(*args, **kwargs)

    def _get_loss(self, pred_bboxes: Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        on_criterion(self).terms.boxes = pred_bboxes.detach() if current() else None
        return super()._get_loss(pred_bboxes, *args, **kwargs)

    def _get_loss_class(
        self, pred_scores: Tensor, targets: Tensor, gt_scores: Tensor, num_gts: int, postfix: str = ""
    ) -> dict[str, Tensor]:
        terms = on_criterion(self).terms
        cls, silenced = terms.cls, terms.silenced_queries(targets == self.nc)
        if cls is None:
            if silenced is not None:  # the host sums: a logit this low, without a target, has neither loss nor gradient
                pred_scores = pred_scores.masked_fill(silenced, LOWEST_LOGIT)
            return super()._get_loss_class(pred_scores, targets, gt_scores, num_gts, postfix)
        if cls.weights is not None:
            cls.weights = cls.weights.to(pred_scores.device)
        elements = cls(pred_scores, soft_targets(targets, gt_scores, self.nc))
        if silenced is not None:
            elements = elements.masked_fill(silenced, 0)
        return {f"loss_class{postfix}": per_object(elements, num_gts) * self.loss_gain["class"]}

    def _get_loss_bbox(self, pred_bboxes: Tensor, gt_bboxes: Tensor, postfix: str = "") -> dict[str, Tensor]:
        terms = on_criterion(self).terms
        if terms.box is not None and terms.has_l1 and len(gt_bboxes):
            losses = {f"loss_bbox{postfix}": l1_term(pred_bboxes, gt_bboxes, self.loss_gain["bbox"])}
        else:
            losses = super()._get_loss_bbox(pred_bboxes, gt_bboxes, postfix)
        if terms.box is None:
            return losses
        loss, terms.is_last = (terms.box if terms.is_last else terms.others), False
        if loss.state is not None or len(gt_bboxes):  # every rank has the state, also one without objects
            pairs = loss(*(pixel_corners(b, terms.scale_of(b)) for b in (pred_bboxes, gt_bboxes)), **context(loss))
        if len(gt_bboxes):
            losses[f"loss_giou{postfix}"] = pairs.sum() / len(gt_bboxes) * self.loss_gain["giou"]
        return losses


def soft_targets(targets: Tensor, gt_scores: Tensor, n_classes: int) -> Tensor:
    """Return targets (b, queries, classes): the IoU, at least `MIN_TARGET`, at the class of a query's object, else 0.

    `targets` are the classes (b, queries) of the objects, `n_classes` where there is none; `gt_scores` the IoU.
    """
    table = gt_scores.new_zeros((*targets.shape, n_classes + 1))
    table.scatter_(2, targets.unsqueeze(-1), gt_scores.clamp(MIN_TARGET, 1).unsqueeze(-1))
    return table[..., :-1]


def per_object(elements: Tensor, n_objects: int) -> Tensor:
    """Return the sum of elements (b, queries, classes) over the number of objects, as the host reduces them."""
    return elements.mean(1).sum() / (max(n_objects, 1) / elements.shape[1])


def l1_term(pred: Tensor, target: Tensor, gain: float) -> Tensor:
    """Return the L1 loss of pairs of normalised boxes (N, 4), N > 0: its sum over N, times its gain."""
    return gain * F.l1_loss(pred, target, reduction="sum") / len(target)


def pixel_corners(boxes: Tensor, scale: Tensor) -> Tensor:
    """Return boxes (N, 4) of normalised centre, width and height as x1, y1, x2, y2 in pixels, at least float32."""
    centre, half = (as_float(boxes) * scale).split(2, -1)
    return torch.cat((centre - half, centre + half), -1)


def context(loss: Loss) -> dict[str, Any]:
    """Return the context of a box loss whose boxes are in pixels, as far as it wants any."""
    available = {"stride": 1.0, "imgsz": _input_size.get()}
    return {key: available[key] for key in available.keys() & loss.context}


def plug_detr(criterion: DETRLoss, selection: Selection, scope: Scope, weights: Optional[list[float]]) -> None:
    """Put the selected losses into a criterion, in place.

    Raises:
        LossPlugError: If this release has another criterion.
    """
    attached = _prepared(criterion)
    terms = attached.terms
    if selection.chooses(selection.box):
        terms.box = terms.others = selection.box.within(State().scoped("trial"))
        if is_hosts(criterion, "_get_loss_bbox"):
            terms.box, terms.same["loss"] = None, (hosts_box(criterion), selection.box)
        else:
            stock = stock_class(criterion)
            terms.has_l1 = _computes_l1(stock, stock._get_loss_bbox)
            terms.box = selection.box.within(scope)
            terms.others = selection.box.within(Reader(scope.state, scope.name))
    if selection.chooses(selection.cls):
        table = None if weights is None else torch.tensor(weights)
        terms.cls = PluggedClassLoss(selection.cls, selection.cls_smoothing, weights=table)
        if is_hosts(criterion, "_get_loss_class"):
            terms.cls, terms.same["cls_loss"] = None, (hosts_class(criterion), selection.cls)
    attached.selection, attached.running = selection, running_detr(criterion)


def leave_out_regions_detr(criterion: DETRLoss) -> None:
    """Make a criterion leave out what regions silence; its losses stay."""
    if not isinstance(criterion, DetrMixin):
        _prepared(criterion)


def _prepared(criterion: DETRLoss) -> OnCriterion:
    """Return our attributes of a criterion whose methods are overridden from now on, if this release has those."""
    stock = type(criterion)
    for name, parameters in SEAMS.items():
        try:
            patching.check_parameters(f"{stock.__name__}.{name}", getattr(stock, name, None), parameters)
        except patching.SeamMoved as error:
            raise LossPlugError(f"RT-DETR cannot be trained with another loss: {error}. Remove the keys.") from error
    derive(DetrMixin, criterion)
    attached = on_criterion(criterion)
    attached.terms = DetrLosses()
    return attached


def running_detr(criterion: DETRLoss) -> dict[str, Any]:
    """Return what a criterion runs, by key, read from it and not from the requested keys."""
    attached = on_criterion(criterion)
    terms = attached.terms if isinstance(criterion, DetrMixin) and attached.terms else DetrLosses()
    return {
        "loss": terms.box or _as_selected(terms, "loss", hosts_box(criterion)),
        "cls_loss": terms.cls.loss if terms.cls else _as_selected(terms, "cls_loss", hosts_class(criterion)),
        "cls_smoothing": terms.cls.smoothing if terms.cls else 0.0,
    }


def _as_selected(terms: DetrLosses, key: str, hosts: str) -> Any:
    """Return the selected loss that the host's own equals, or the host's own as it is described."""
    before, loss = terms.same.get(key, ("", None))
    return loss if before == hosts else hosts


def hosts_box(criterion: DETRLoss) -> str:
    """Return the name of the host's own box loss; that of its class if a fork has another one."""
    stock = stock_class(criterion)
    return STOCK_DETR["loss"] if _is_known_box(stock, stock._get_loss_bbox) else stock.__name__


def hosts_class(criterion: DETRLoss) -> str:
    """Return the host's own class loss with its numbers, which differ between releases."""
    module = (criterion.vfl or criterion.fl) if criterion.fl else None
    if module is None:
        return "BCE"
    defaults = {p.name: p.default for p in patching.parameters_of(type(module).forward) if p.default is not p.empty}
    numbers = ((name, getattr(module, name, defaults.get(name))) for name in ("alpha", "gamma"))
    described = ", ".join(f"{name}={float(number):g}" for name, number in numbers if number is not None)
    return f"{type(module).__name__}({described})"


def stock_class(criterion: DETRLoss) -> Any:
    """Return the class of a criterion as the host made it."""
    return vars(type(criterion)).get("stock_class", type(criterion))


@functools.lru_cache(maxsize=8)
def _is_known_box(stock: Any, method: Any) -> bool:
    """Return whether a criterion's own box loss is the one that its name says; `method` is part of the key."""
    trial = stock(nc=2)
    derive(DetrMixin, trial)
    loss = bind(BOX, STOCK_DETR["loss"], {})
    on_criterion(trial).terms = DetrLosses(loss, loss)
    return is_hosts(trial, "_get_loss_bbox")


def is_hosts(criterion: DETRLoss, method: str) -> bool:
    """Return whether a method of a criterion computes with our loss what the host's own does.

    If so the host's stays, so that a loss which names the stock one gives the stock run to the last digit.
    """
    rng = torch.Generator().manual_seed(0)
    # In validation a criterion is made in inference mode, in training under autocast.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False), input_size(640, 640):
        inputs = _box_inputs(rng) if method == "_get_loss_bbox" else _class_inputs(rng, criterion.nc)
        inputs[0].requires_grad_()
        functions = getattr(type(criterion), method), getattr(stock_class(criterion), method)
        values = [sum(function(criterion, *inputs).values()) for function in functions]
        ours, hosts = (torch.cat((v.reshape(1), torch.autograd.grad(v, inputs[0])[0].flatten())) for v in values)
    return bool((ours - hosts).abs().max() <= TOLERANCE * hosts.abs().max())


@functools.lru_cache(maxsize=8)
def _computes_l1(stock: Any, method: Any) -> bool:
    """Return whether the box method of a criterion computes `l1_term`, a GIoU term, and nothing else."""
    trial = stock(nc=2)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        pred, target = _box_inputs(torch.Generator().manual_seed(0))
        hosts = method(trial, pred.requires_grad_(), target, "_x")
        if hosts.keys() != {"loss_bbox_x", "loss_giou_x"}:
            return False
        values = hosts["loss_bbox_x"], l1_term(pred, target, trial.loss_gain["bbox"])
        hosts_grad, our_grad = (torch.autograd.grad(value, pred)[0] for value in values)
    return torch.equal(*values) and torch.equal(hosts_grad, our_grad)


def _box_inputs(rng: torch.Generator) -> tuple[Any, ...]:
    """Return predicted and target boxes (64, 4), some of which do not overlap."""
    low, spread = torch.tensor([[0.3, 0.3, 0.1, 0.1], [0.4, 0.4, 0.3, 0.3]])
    return tuple(torch.rand(64, 4, generator=rng) * spread + low for _ in range(2))


def _class_inputs(rng: torch.Generator, n_classes: int) -> tuple[Any, ...]:
    """Return logits (2, 64, classes), classes, IoU and number of objects, of which some are not overlapped."""
    logits = torch.randn(2, 64, n_classes, generator=rng) * 2
    is_matched = torch.rand(2, 64, generator=rng) < 0.3
    targets = torch.randint(n_classes, (2, 64), generator=rng).masked_fill(~is_matched, n_classes)
    scores = torch.rand(2, 64, generator=rng).sub(0.1).clamp(min=0) * is_matched
    return logits, targets, scores, int(is_matched.sum())

# SPDX-License-Identifier: AGPL-3.0-or-later
"""The fast engine: a criterion's step on candidates and positives, with the reference, the host's own, as its oracle.

It stands in for one method of the criterion, `get_assigned_targets_and_loss`, and returns what that returns. Preparing
targets, decoding and measuring boxes stay with the host; what is another is which anchors they are asked about.
"""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor, nn
from ultralytics.utils import IterableSimpleNamespace, tal
from ultralytics.utils.loss import BboxLoss, v8DetectionLoss
from ultralytics.utils.metrics import bbox_iou

from yolo_lossplug.assigner.assign import Assignment, Measure
from yolo_lossplug.assigner.grid import levels_of_shapes
from yolo_lossplug.assigner.selection import Objects
from yolo_lossplug.engine.class_sum import class_sum
from yolo_lossplug.engine.distances import bin_probabilities, distances, gather
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection import STOCK_CLASS, Loss, create_class_loss
from yolo_lossplug.ultralytics_hook import report
from yolo_lossplug.ultralytics_hook.assigner import (
    DENSE_ON_GPU,
    assigned_targets,
    is_sparse,
    metric_of,
    objects_of,
    sparse_assignment,
)

FAST, REFERENCE = "fast", "reference"
METHOD = "get_assigned_targets_and_loss"
LARGEST_DECODED = 2**16
"""Anchors that are decoded at a time."""
TOLERANCE, SLOPE_TOLERANCE = 1e-5, 1e-4
"""Largest relative error of the loss, and of its gradients in norm, with which the engine may run."""


_uncompiled = getattr(getattr(torch, "compiler", None), "disable", lambda function: function)
"""Shapes here depend on values, so that a compiler would only break off; torch before 2.1 has none."""


class Targets(NamedTuple):
    """Objects of a batch as the host prepares them.

    Attributes:
        labels: Classes (b, n, 1).
        boxes: Boxes (b, n, 4), x1 y1 x2 y2 in pixels.
        mask: Which of them are objects (b, n, 1).
    """

    labels: Tensor
    boxes: Tensor
    mask: Tensor


class Anchors(NamedTuple):
    """Anchors of an image.

    Attributes:
        points: Centres (A, 2) in cells.
        strides: Pixels per cell (A, 1).
        imgsz: Height and width of the network input in pixels (2,).
        shapes: Height and width of each level in cells.
    """

    points: Tensor
    strides: Tensor
    imgsz: Tensor
    shapes: tuple[tuple[int, int], ...]


class FastMixin(v8DetectionLoss):
    """A criterion whose step is the fast one wherever that is defined."""

    is_lazy = True
    """Whether the engine may leave a step to the host where the host is faster."""
    is_class_loss_pointwise = True
    """Whether the class loss may be evaluated on parts."""

    def get_assigned_targets_and_loss(self, preds: dict[str, Tensor], batch: dict[str, Any], **extra: Any) -> tuple:
        """Return the assigned targets, the loss by box, class and DFL, and its items, as the host's method does."""
        result = step(self, preds, batch, extra)
        return super().get_assigned_targets_and_loss(preds, batch, **extra) if result is None else result


def speed_up(criterion: v8DetectionLoss, is_lazy: bool) -> None:
    """Make a criterion take fast steps; its class stays, and what else that overrides stays too."""
    cls = type(criterion)
    if not isinstance(criterion, FastMixin):
        bases = (FastMixin,) if cls is v8DetectionLoss else (cls, FastMixin)
        criterion.__class__ = type(f"Fast{cls.__name__}", bases, {})
    criterion.is_lazy = is_lazy
    loss = class_loss_of(criterion)
    criterion.is_class_loss_pointwise = loss is not None and is_pointwise(loss)


def slow_down(criterion: v8DetectionLoss) -> None:
    """Undo `speed_up`."""
    cls = type(criterion)
    if isinstance(criterion, FastMixin):
        criterion.__class__ = v8DetectionLoss if cls.__bases__ == (FastMixin,) else cls.__bases__[0]


def settle(criterion: Any, engine: str) -> bool:
    """Make a criterion take the steps of an engine: ``auto``, ``fast`` or ``reference``; return whether it is fast.

    Raises:
        LossPlugError: If it is to be ``fast``, and cannot be.
    """
    why = None if engine == REFERENCE else obstacle(criterion, criterion.device)
    if engine == FAST and why:
        raise LossPlugError(f"loss_engine=fast cannot be used: {why}. Remove it, or take loss_engine=auto.")
    if engine == REFERENCE or why:
        slow_down(criterion)
        return False
    speed_up(criterion, is_lazy=engine != FAST)
    return True


def description(engine: str, head: Any, device: torch.device) -> str:
    """Return the engine that runs, and why if it is not the fast one, for the banner."""
    if engine == REFERENCE:
        return REFERENCE
    why = obstacle(head, device)
    if why:
        return f"{REFERENCE} ({why})"
    return f"{FAST} in crowds, else {REFERENCE}" if device.type == "cuda" and engine != FAST else FAST


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
    strides = tuple(float(stride) for stride in head.stride)
    error, slope_error = self_test(str(device), int(head.reg_max), strides)
    if math.isinf(error):
        return "it fails with this release of Ultralytics"
    if error > TOLERANCE or slope_error > SLOPE_TOLERANCE:
        return f"its loss would differ by {error:.0e} and its gradients by {slope_error:.0e} from those of the host"
    return None


@functools.cache
@torch.inference_mode(False)  # the first step may be one of a validation
@torch.enable_grad()
def self_test(device: str, reg_max: int, strides: tuple[float, ...]) -> tuple[float, float]:
    """Take fast steps on random problems, and compare them with the steps of the host.

    Args:
        device: Where.
        reg_max: Bins of the distance distribution; 1 for none.
        strides: Strides of the levels in pixels.

    Returns:
        Largest relative error of the loss, and of its gradients in norm; infinite where the host's step has changed so
        that the fast one fails.
    """
    rng = torch.Generator().manual_seed(0)
    head = SimpleNamespace(stride=torch.tensor(strides, device=device), nc=4, reg_max=reg_max)
    gains = IterableSimpleNamespace(box=7.5, cls=0.5, dfl=1.5, overlap_mask=True)
    parameter = torch.zeros(1, device=device)
    model = SimpleNamespace(parameters=lambda: iter((parameter,)), args=gains, model=[head])
    errors = []
    for topk, n in ((10, 5), (7, 40), (10, 0)):
        criterion = v8DetectionLoss(model, topk, **({"tal_topk2": 1} if topk == 7 else {}))
        size = [round(10 * max(strides)), round(12 * max(strides))]
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
        for is_fast in (False, True):
            boxes, scores = (tensor.to(device).requires_grad_() for tensor in given)
            preds = {"boxes": boxes, "scores": scores, "feats": [boxes.new_zeros(2, 1, h, w) for h, w in shapes]}
            if is_fast:
                speed_up(criterion, is_lazy=False)
            try:
                with torch.autocast(torch.device(device).type, enabled=False):
                    loss = criterion.get_assigned_targets_and_loss(preds, batch)[1]
                found.append((loss.detach(), *torch.autograd.grad(loss.sum(), (boxes, scores), allow_unused=True)))
            except Exception:
                if not is_fast:
                    raise
                return math.inf, math.inf
        errors.append([_relative_error(one, other) for one, other in zip(*found)])
    return max(error[0] for error in errors), max(max(error[1:]) for error in errors)


def _relative_error(stock: Optional[Tensor], found: Optional[Tensor]) -> float:
    if stock is None or found is None:  # a host that does not reach the boxes where there is no object
        return 0.0 if found is None else float(found.norm())
    return float((found - stock).norm() / stock.norm().clamp(min=1e-9))


def class_loss_of(criterion: Any) -> Optional[Loss]:
    """Return the class loss of a criterion; None if it has a module of somebody else's."""
    module = criterion.bce
    if type(module) is nn.BCEWithLogitsLoss and module.weight is None and module.pos_weight is None:
        return create_class_loss(STOCK_CLASS)
    loss = getattr(module, "loss", None)
    return loss if isinstance(loss, Loss) else None


def unplugged(bbox_loss: Any) -> Any:
    """Return the host's box loss module inside ours."""
    return getattr(bbox_loss, "stock", bbox_loss)


@_uncompiled
def step(criterion: Any, preds: dict[str, Tensor], batch: dict[str, Any], extra: dict[str, Any]) -> Optional[tuple]:
    """Return what the host's step returns, None where it is to be asked itself.

    Args:
        criterion: The criterion.
        preds: Outputs of the head: ``boxes`` (b, 4·R, A), ``scores`` (b, classes, A), ``feats``.
        batch: The batch.
        extra: What the criterion hands on to an assigner of its own.
    """
    boxes, scores = preds["boxes"], preds["scores"]
    anchors = anchors_of(criterion, preds["feats"], scores.dtype)
    if criterion.is_lazy and scores.is_cuda and dense_size(batch, len(scores), scores.shape[2]) < DENSE_ON_GPU:
        return None
    targets = targets_of(criterion, batch, len(scores), anchors.imgsz)
    decoder = Decoder(criterion, boxes, anchors, targets.boxes.dtype)
    assigned = assigned_by(criterion, decoder, scores, targets, extra)
    if assigned is None:
        return None
    total = assigned.score.sum().clamp(min=1)
    # Backward goes the other way: what the boxes have kept is gone before the gradient of the scores is made.
    cls = class_term(criterion, scores, targets, assigned) / total
    box, dfl = box_terms(criterion, boxes, targets, anchors, assigned, total, decoder.bins_of(assigned.anchor))
    gains = criterion.hyp
    loss = torch.stack([term.float() for term in (box * gains.box, cls * gains.cls, dfl * gains.dfl)])
    meter = report.meter_of(criterion.assigner)
    if meter is not None:
        is_positive = torch.ones_like(assigned.anchor, dtype=torch.bool)
        meter.add(targets.boxes, targets.mask, assigned.object, is_positive, decoder.decoded[assigned.anchor])
    names = getattr(criterion, "loss_names", None)
    items = loss.detach() if names is None else dict(zip(names, loss.detach()))
    return _answer(criterion, targets, anchors, assigned), loss, items


def anchors_of(criterion: Any, feats: Any, dtype: torch.dtype) -> Anchors:
    """Return the anchors of a criterion; those of the last step if the image has the same size."""
    shapes = tuple((feat.shape[2], feat.shape[3]) for feat in feats)
    key = (shapes, feats[0].dtype, feats[0].device, dtype, torch.is_inference_mode_enabled())
    known = vars(criterion).get("known_anchors")
    if known is None or known[0] != key:
        points, strides = tal.make_anchors(feats, criterion.stride, 0.5)
        imgsz = torch.tensor(shapes[0], device=criterion.device, dtype=dtype) * criterion.stride[0]
        known = criterion.known_anchors = (key, Anchors(points, strides, imgsz, shapes))
    return known[1]


def dense_size(batch: dict[str, Any], n_images: int, n_anchors: int) -> int:
    """Return the elements of (images, objects, anchors) of a batch, or more where even those are few enough."""
    image = batch["batch_idx"].view(-1)
    bound = len(image) * n_images * n_anchors
    if bound < DENSE_ON_GPU:  # whatever image the objects are in, so that a GPU need not be waited for
        return bound
    return int(torch.bincount(image.long()).max()) * n_images * n_anchors


def targets_of(criterion: Any, batch: dict[str, Any], n_images: int, imgsz: Tensor) -> Targets:
    """Return the objects of a batch, prepared by the host."""
    rows = torch.cat((batch["batch_idx"].view(-1, 1), batch["cls"].view(-1, 1), batch["bboxes"]), 1)
    padded = criterion.preprocess(rows.to(criterion.device), n_images, scale_tensor=imgsz[[1, 0, 1, 0]])
    labels, boxes = padded.split((1, 4), 2)
    return Targets(labels, boxes, boxes.sum(2, keepdim=True).gt_(0.0))


@torch.no_grad()
def assigned_by(
    criterion: Any, decoder: Decoder, scores: Tensor, targets: Targets, extra: dict[str, Any]
) -> Optional[Assignment]:
    """Return what the criterion's assigner assigns; None if the host's step is to decide."""
    anchors = decoder.anchors
    assigner, points = criterion.assigner, anchors.points * anchors.strides
    if not extra and is_sparse(assigner, {targets.boxes.dtype}, points):
        objects = objects_of(targets.mask, len(points))
        measure = lazy_measure(criterion, decoder, scores, targets, objects)
        levels = levels_of_shapes(points.to(targets.boxes.dtype), anchors.shapes)
        return sparse_assignment(assigner, objects, measure, levels, targets.boxes, targets.mask)
    decoded = criterion.bbox_decode(anchors.points, decoder.boxes.permute(0, 2, 1).contiguous())
    _, _, target_scores, foreground, place = assigner(
        scores.detach().permute(0, 2, 1).sigmoid(),
        decoder.keep(decoded * anchors.strides),
        points,
        targets.labels,
        targets.boxes,
        targets.mask,
        **extra,
    )
    index = foreground.flatten().nonzero().squeeze(1)
    first = index // len(points) * targets.mask.shape[1]
    score = target_scores.flatten(0, 1)[index].sum(-1)
    return Assignment(index, first + place.flatten()[index].long(), score)


class Decoder:
    """Boxes that anchors predict, decoded when they are first asked for.

    Args:
        criterion: The criterion.
        boxes: Outputs of the head (b, 4·R, A).
        anchors: The anchors.
        dtype: Type of the boxes.

    Attributes:
        decoded: Boxes (b·A, 4) in pixels; after an assignment those of all assigned anchors are among the decoded.
    """

    def __init__(self, criterion: Any, boxes: Tensor, anchors: Anchors, dtype: torch.dtype) -> None:
        self.criterion, self.boxes, self.anchors = criterion, boxes.detach(), anchors
        total = len(boxes) * len(anchors.points)
        self.decoded = torch.empty(total, 4, dtype=dtype, device=boxes.device)
        self.is_decoded = torch.zeros(total, dtype=torch.bool, device=boxes.device)
        self.has_exact_bins = has_exact_bins(criterion, boxes)
        self.bins: Optional[tuple[Tensor, Tensor]] = None
        self.n_decoded = 0

    def boxes_of(self, index: Tensor) -> Tensor:
        """Return the boxes (n, 4), in pixels, of anchors (n,) among those of all images."""
        is_needed = torch.zeros_like(self.is_decoded)
        is_needed[index] = True
        needed = (is_needed & ~self.is_decoded).nonzero().squeeze(1)
        if len(needed):
            self.decoded[needed] = self._decode(needed).type(self.decoded.dtype)
            self.is_decoded[needed] = True
            self.n_decoded += len(needed)
        return self.decoded[index]

    def keep(self, boxes: Tensor) -> Tensor:
        """Take the boxes (b, A, 4) of all anchors, which the host has decoded, and return them in our type."""
        boxes = boxes.type(self.decoded.dtype)
        self.decoded = boxes.flatten(0, 1)
        return boxes

    def bins_of(self, index: Tensor) -> Optional[Tensor]:
        """Return the probabilities of bins (n, 4, R) that were computed on the way, if they were in one go."""
        if self.bins is None:
            return None
        anchor, bins = self.bins
        self.bins = None
        rank = torch.empty(len(self.decoded), dtype=torch.long, device=anchor.device)
        rank[anchor] = torch.arange(len(anchor), device=anchor.device)
        return bins[rank[index]] if self.is_decoded[index].all() else None

    def _decode(self, anchor: Tensor) -> Tensor:
        image, cell = anchor // len(self.anchors.points), anchor % len(self.anchors.points)
        points, strides = self.anchors.points[cell], self.anchors.strides[cell]
        if self.has_exact_bins:  # the host's operations; the first of them is worth keeping
            bins = bin_probabilities(self.boxes, anchor)
            self.bins = (anchor, bins) if self.n_decoded == 0 else None
            return tal.dist2bbox(bins.matmul(self.criterion.proj), points, xywh=False) * strides
        parts = zip(*(values.split(LARGEST_DECODED) for values in (image, cell, points, strides)))
        rows = self.boxes.permute(0, 2, 1)
        decode = self.criterion.bbox_decode
        return torch.cat([decode(p, rows[i, c].unsqueeze(0))[0] * s for i, c, p, s in parts])


def has_exact_bins(criterion: Any, boxes: Tensor) -> bool:
    """Return whether boxes are decoded from distributions as the host does it, and no autocast rounds on the way."""
    return (
        criterion.use_dfl
        and boxes.dtype == torch.float32
        and not _is_autocast(boxes.device.type)
        and type(criterion).bbox_decode is v8DetectionLoss.bbox_decode
        and type(unplugged(criterion.bbox_loss)) is BboxLoss
    )


def _is_autocast(device_type: str) -> bool:
    try:
        return torch.is_autocast_enabled(device_type)
    except TypeError:  # torch before 2.4 has a function for each kind of device
        return torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled()


def lazy_measure(criterion: Any, decoder: Decoder, scores: Tensor, targets: Targets, objects: Objects) -> Measure:
    """Return a function that measures pairs, and has the boxes of their anchors decoded."""
    n_anchors, logits = scores.shape[2], scores.detach().flatten()
    place, begin = objects.slot, objects.begin
    gts = targets.boxes.flatten(0, 1)[place]
    first = (objects.image * scores.shape[1] + targets.labels.flatten().long()[place]) * n_anchors

    def measure(row: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
        found = decoder.boxes_of(begin[row] + anchor)
        return metric_of(criterion.assigner, logits[first[row] + anchor].sigmoid(), gts[row], found)

    return measure


def box_terms(
    criterion: Any,
    boxes: Tensor,
    targets: Targets,
    anchors: Anchors,
    assigned: Assignment,
    total: Tensor,
    bins: Optional[Tensor],
) -> tuple[Tensor, Tensor]:
    """Return the box and the DFL (or L1) term, before the gains; `bins` are the positives' probabilities, if known."""
    cell = assigned.anchor % len(anchors.points)
    points, strides = anchors.points[cell], anchors.strides[cell]
    wanted = targets.boxes.flatten(0, 1)[assigned.object] / strides
    module, weight = criterion.bbox_loss, assigned.score
    stock = unplugged(module)
    if has_exact_bins(criterion, boxes):
        sides = tal.bbox2dist(points, wanted, criterion.reg_max - 1)
        limit = criterion.reg_max - 1 - 0.01
        found, dfl = distances(boxes.contiguous(), assigned.anchor, sides.clamp_(0, limit), bins)
        predicted = tal.dist2bbox(found, points, xywh=False)
        if module is stock:
            per_box = 1 - bbox_iou(predicted, wanted, xywh=False, CIoU=True).squeeze(-1)
        else:
            per_box = module.loss(predicted, wanted, stride=strides, imgsz=anchors.imgsz)
        return (per_box * weight).sum() / total, (dfl * weight).sum() / total
    # Where every anchor is an assigned one, the host's own module gives the terms, with the roundings of its autocast.
    rows = gather(boxes, assigned.anchor)
    predicted = criterion.bbox_decode(points, rows.unsqueeze(0))
    everything = torch.ones(1, len(rows), dtype=torch.bool, device=rows.device)
    box, dfl = stock(
        rows.unsqueeze(0),
        predicted if module is stock else predicted.detach(),
        points,
        wanted.unsqueeze(0),
        weight.view(1, -1, 1),
        total,
        everything,
        anchors.imgsz,
        strides,
    )
    if module is not stock:
        per_box = module.loss(predicted[0], wanted, stride=strides, imgsz=anchors.imgsz)
        box = (per_box * weight).sum() / total
    return box, dfl


def class_term(criterion: Any, scores: Tensor, targets: Targets, assigned: Assignment) -> Tensor:
    """Return the sum of the class loss, before the gain."""
    module, n_classes, n_anchors = criterion.bce, scores.shape[1], scores.shape[2]
    labels = targets.labels.flatten().long()[assigned.object].clamp_(0)
    image, cell = assigned.anchor // n_anchors, assigned.anchor % n_anchors
    loss, smoothing = class_loss_of(criterion), getattr(module, "smoothing", 0.0)
    score = assigned.score.to(scores.dtype)
    if loss is None or not criterion.is_class_loss_pointwise:
        dense = scores.new_zeros(len(scores), n_anchors, n_classes)
        dense.view(-1, n_classes)[assigned.anchor, labels] = score
        result = module(scores.permute(0, 2, 1), dense)
        return (result if criterion_weights(criterion) is None else result * criterion_weights(criterion)).sum()
    if smoothing:  # every class of an assigned anchor has a target
        is_target = score > 0
        image, cell, labels, score = (values[is_target] for values in (image, cell, labels, score))
        row = (image * n_classes * n_anchors + cell).unsqueeze(1)
        index = (row + torch.arange(n_classes, device=row.device) * n_anchors).flatten()
        smooth = torch.full((len(score), n_classes), smoothing / 2, dtype=score.dtype, device=score.device)
        smooth[torch.arange(len(score), device=row.device), labels] += score * (1 - smoothing)
        score = smooth.flatten()
    else:
        index = (image * n_classes + labels) * n_anchors + cell
    return class_sum(scores, index, score, loss, background=loss.background, weights=_weights(criterion))


def criterion_weights(criterion: Any) -> Optional[Tensor]:
    """Return the class weights (1, 1, classes) of the host, None if it has none."""
    return getattr(criterion, "class_weights", None)


def is_pointwise(loss: Loss) -> bool:
    """Return whether every element of a class loss depends on nothing but its logit and target; found out by trial."""
    if loss.state is not None:
        return False
    x, y = torch.linspace(-6, 6, 24), torch.linspace(-0.7, 1, 24).clamp(min=0)
    order = torch.arange(24).flip(0)
    try:
        whole = loss(x.view(2, 3, 4), y.view(2, 3, 4)).flatten()
        parts = torch.cat([loss(a, b) for a, b in zip(x[order].split(5), y[order].split(5))])
    except Exception:  # one of the user's own that wants the shape of the batch
        return False
    return torch.allclose(whole[order], parts, rtol=1e-5, atol=1e-7)


def _weights(criterion: Any) -> Optional[Tensor]:
    """Return the product (classes,) of the host's class weights and ours, None if there are none."""
    stock, own = criterion_weights(criterion), getattr(criterion.bce, "weights", None)
    if stock is None or own is None:
        return own if stock is None else stock.flatten()
    return stock.flatten() * own


def _answer(criterion: Any, targets: Targets, anchors: Anchors, assigned: Assignment) -> tuple:
    """Return what tasks that add terms of their own read: foreground, objects, their boxes, anchors and strides."""
    if getattr(type(criterion), "loss", None) is v8DetectionLoss.loss:  # which reads nothing of it
        return (None,) * 5
    return (*assigned_targets(assigned, targets.boxes, len(anchors.points)), anchors.points, anchors.strides)

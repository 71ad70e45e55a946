# SPDX-License-Identifier: AGPL-3.0-or-later
"""The fast engine: a criterion's step on candidates and positives only, with the host's own step as its oracle.

It replaces one method of the criterion, `get_assigned_targets_and_loss`, and returns the same outputs. The host still
prepares targets, decodes boxes and measures overlaps, but of fewer anchors.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from ultralytics.utils import tal

from yolo_lossplug.sparse.assign import Assignment, Measure
from yolo_lossplug.sparse.distance_term import bin_probabilities
from yolo_lossplug.sparse.grid import levels_of_shapes
from yolo_lossplug.sparse.topk import Gts
from yolo_lossplug.ultralytics_hook.assigner import (
    DENSE_ON_GPU,
    assigned_targets,
    gts_of,
    is_sparse,
    metric_of,
    sparse_assignment,
)
from yolo_lossplug.ultralytics_hook.attached import on_criterion
from yolo_lossplug.ultralytics_hook.decision import Decision
from yolo_lossplug.ultralytics_hook.derived import Derived
from yolo_lossplug.ultralytics_hook.engines.terms import Anchors, Targets, box_terms, class_term, has_exact_bins
from yolo_lossplug.ultralytics_hook.originals import v8DetectionLoss
from yolo_lossplug.ultralytics_hook.regions import loss as regions
from yolo_lossplug.ultralytics_hook.run.watch import meter_of, take_claims

MAX_DECODED = 2**16
"""Maximum number of anchors per call of the host's decoder."""
uncompiled = getattr(getattr(torch, "compiler", None), "disable", lambda function: function)
"""Shapes depend on values here, so `torch.compile` would only break the graph; torch before 2.1 has none."""


class FastMixin(Derived, v8DetectionLoss):
    """A criterion whose step is the fast one wherever that is defined."""

    @classmethod
    def bases(cls, stock: type) -> tuple[type, ...]:
        """Return the bases of a class of the host whose step is the fast one; what it overrides goes first."""
        return (cls,) if stock is v8DetectionLoss else (stock, cls)

    def get_assigned_targets_and_loss(self, preds: dict[str, Tensor], batch: dict[str, Any], **extra: Any) -> tuple:
        """Return the assigned targets, the loss by box, class and DFL, and its items, as the host's method does."""
        result = fast_step(self, preds, batch, extra)
        return super().get_assigned_targets_and_loss(preds, batch, **extra) if result is None else result


@uncompiled
def fast_step(
    criterion: Any, preds: dict[str, Tensor], batch: dict[str, Any], extra: dict[str, Any]
) -> Optional[tuple]:
    """Return what the host's step returns, None where the host should take the step.

    `preds` are outputs of the head: ``boxes`` (b, 4·R, A), ``scores`` (b, classes, A), ``feats``. The criterion passes
    `extra` to its own assigner.
    """
    attached, boxes, scores = on_criterion(criterion), preds["boxes"], preds["scores"]
    decision, elements = attached.decision, len(batch["batch_idx"]) * scores.shape[2]
    engine = decision.engine_at(str(scores.dtype).removeprefix("torch."), len(scores) * scores.shape[2], elements)
    if attached.kernels is not None and not extra and (engine == "triton" or decision.measured is None):
        if regions.current() is not None:  # kernels know none
            return None
        if (result := attached.kernels.step(criterion, preds, batch)) is not None:
            return result
    if is_left_to_host(decision, engine, batch, scores):
        return None
    anchors = anchors_of(criterion, preds["feats"], scores.dtype)
    targets = targets_of(criterion, batch, len(scores), anchors.imgsz)
    decoder = Decoder(criterion, boxes, anchors, targets.boxes.dtype)
    if (assigned := assigned_by(criterion, decoder, scores, targets, extra)) is None:
        return None
    total = assigned.score.sum().clamp(min=1)
    # Backward runs in reverse: buffers of the box term are freed before the gradient of the scores is allocated.
    labels = targets.labels.flatten().long()[assigned.slot].clamp_(0)
    cls = class_term(criterion, scores, assigned.anchor, labels, assigned.score) / total
    box, dfl = box_terms(criterion, boxes, targets, anchors, assigned, total, decoder.bins_of(assigned.anchor))
    gains = criterion.hyp
    loss = torch.stack([*map(Tensor.float, (box * gains.box, cls * gains.cls, dfl * gains.dfl))])
    count_positives(criterion.assigner, decoder, targets, assigned)
    names = getattr(criterion, "loss_names", None)
    items = loss.detach() if names is None else dict(zip(names, loss.detach()))
    return assignment_outputs(criterion, targets, anchors, assigned), loss, items


def is_left_to_host(decision: Decision, engine: str, batch: dict[str, Any], scores: Tensor) -> bool:
    """Return whether the host takes a step: it is faster there, and its dense tensors are small.

    `engine` is the one that a record names for this step, empty without one.
    """
    elements = len(batch["batch_idx"]) * scores.shape[2]
    if scores.is_cuda:  # how many objects the fullest image has, the GPU would have to be asked
        return engine == "reference" or (not engine and decision.is_lazy and elements < DENSE_ON_GPU)
    # Memory and time of the host depend on the fullest image, of which a record says nothing.
    return engine == "reference" and dense_size(batch, len(scores), scores.shape[2]) < max(DENSE_ON_GPU, 4 * elements)


def count_positives(assigner: Any, decoder: Decoder, targets: Targets, assigned: Assignment) -> None:
    """Count what was assigned, if the run has a report."""
    if (meter := meter_of(assigner)) is None:
        return
    is_positive = torch.ones_like(assigned.anchor, dtype=torch.bool)
    claims = take_claims(assigner) if assigned.claims is None else assigned.claims
    pred_boxes = decoder.decoded[assigned.anchor]
    meter.add(targets.boxes, targets.mask, assigned.slot, is_positive, pred_boxes, targets.labels, claims)


def anchors_of(criterion: Any, feats: Any, dtype: torch.dtype) -> Anchors:
    """Return the anchors of a criterion; cached from the last step if the image size is the same."""
    shapes = tuple((feat.shape[2], feat.shape[3]) for feat in feats)
    key = (shapes, feats[0].dtype, feats[0].device, dtype, torch.is_inference_mode_enabled())
    attached = on_criterion(criterion)
    if attached.anchors is None or attached.anchors[0] != key:
        points, strides = tal.make_anchors(feats, criterion.stride, 0.5)
        imgsz = torch.tensor(shapes[0], device=criterion.device, dtype=dtype) * criterion.stride[0]
        attached.anchors = (key, Anchors(points, strides, imgsz, shapes))
    return attached.anchors[1]


def dense_size(batch: dict[str, Any], n_images: int, n_anchors: int) -> int:
    """Return the number of elements of (images, gts, anchors) of a batch, or an upper bound if even that is small."""
    image = batch["batch_idx"].view(-1)
    bound = len(image) * n_images * n_anchors
    return bound if bound < DENSE_ON_GPU else int(torch.bincount(image.long()).max()) * n_images * n_anchors


def targets_of(criterion: Any, batch: dict[str, Any], n_images: int, imgsz: Tensor) -> Targets:
    """Return the gts of a batch, prepared by the host."""
    rows = torch.cat((batch["batch_idx"].view(-1, 1), batch["cls"].view(-1, 1), batch["bboxes"]), 1)
    padded = criterion.preprocess(rows.to(criterion.device), n_images, scale_tensor=imgsz[[1, 0, 1, 0]])
    labels, boxes = padded.split((1, 4), 2)
    return Targets(labels, boxes, boxes.sum(2, keepdim=True).gt_(0.0))


@torch.no_grad()
def assigned_by(
    criterion: Any, decoder: Decoder, scores: Tensor, targets: Targets, extra: dict[str, Any]
) -> Optional[Assignment]:
    """Return what the criterion's assigner assigns; None if the host should take the step."""
    anchors = decoder.anchors
    assigner, points = criterion.assigner, anchors.points * anchors.strides
    if not extra and is_sparse(assigner, {targets.boxes.dtype}, points):
        gts = gts_of(targets.mask, len(points))
        measure = lazy_measure(criterion, decoder, scores, targets, gts)
        levels = levels_of_shapes(points.to(targets.boxes.dtype), anchors.shapes)
        return sparse_assignment(assigner, gts, measure, levels, targets.boxes, targets.mask)
    inputs = scores.detach().permute(0, 2, 1).sigmoid(), decoder.decode_all(), points, *targets
    _, gt_boxes, target_scores, foreground, slot = assigner(*inputs, **extra)
    index = foreground.flatten().nonzero().squeeze(1)
    owner = index // len(points) * targets.mask.shape[1] + slot.flatten()[index].long()
    score = target_scores.flatten(0, 1)[index, targets.labels.flatten().long()[owner].clamp_(0)]
    # Somebody else's assigner may have targets of several classes, of the background, or other boxes.
    is_usual = target_scores.count_nonzero() == score.count_nonzero()
    if not is_usual or not torch.equal(gt_boxes.flatten(0, 1)[index], targets.boxes.flatten(0, 1)[owner]):
        return None
    return Assignment(index, owner, score)


class Decoder:
    """Boxes, of a type, that anchors predict by outputs of the head (b, 4·R, A), decoded on first use.

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

    def decode_all(self) -> Tensor:
        """Return the boxes (b, A, 4), in pixels, of all anchors, decoded by the host, in the type of `decoded`."""
        outputs = self.boxes.permute(0, 2, 1).contiguous()
        return self.keep(self.criterion.bbox_decode(self.anchors.points, outputs) * self.anchors.strides)

    def keep(self, boxes: Tensor) -> Tensor:
        """Cache the boxes (b, A, 4) of all anchors, and return them in the type of `decoded`."""
        boxes = boxes.type(self.decoded.dtype)
        self.decoded = boxes.flatten(0, 1)
        return boxes

    def bins_of(self, index: Tensor) -> Optional[Tensor]:
        """Return the bin probabilities (n, 4, R) from decoding, None unless one call decoded all these anchors."""
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
        if self.has_exact_bins:  # the host's operations; bins of the first call are cached
            bins = bin_probabilities(self.boxes, anchor)
            self.bins = (anchor, bins) if self.n_decoded == 0 else None
            return tal.dist2bbox(bins.matmul(self.criterion.proj), points, xywh=False) * strides
        parts = zip(*(values.split(MAX_DECODED) for values in (image, cell, points, strides)))
        rows = self.boxes.permute(0, 2, 1)
        decode = self.criterion.bbox_decode
        return torch.cat([decode(p, rows[i, c].unsqueeze(0))[0] * s for i, c, p, s in parts])


def lazy_measure(criterion: Any, decoder: Decoder, scores: Tensor, targets: Targets, gts: Gts) -> Measure:
    """Return a function that measures pairs, and decodes the boxes of their anchors."""
    n_anchors, logits, slot, begin = scores.shape[2], scores.detach().flatten(), gts.slot, gts.begin
    gt_boxes = targets.boxes.flatten(0, 1)[slot]
    first = (gts.image * scores.shape[1] + targets.labels.flatten().long()[slot]) * n_anchors

    def measure(row: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
        pred_boxes = decoder.boxes_of(begin[row] + anchor)
        return metric_of(criterion.assigner, logits[first[row] + anchor].sigmoid(), gt_boxes[row], pred_boxes)

    return measure


def reads_assignment(criterion: Any) -> bool:
    """Return whether a criterion adds its own terms, which read the assignment."""
    return getattr(type(criterion), "loss", None) is not v8DetectionLoss.loss


def assignment_outputs(criterion: Any, targets: Targets, anchors: Anchors, assigned: Assignment) -> tuple:
    """Return what tasks with additional terms read: foreground, gt indices, gt boxes, anchors and strides."""
    if not reads_assignment(criterion):
        return (None,) * 5
    return (*assigned_targets(assigned, targets.boxes, len(anchors.points)), anchors.points, anchors.strides)

# SPDX-License-Identifier: AGPL-3.0-or-later
"""The fast step of rotated boxes: it replaces the `loss` of the host's criterion, which has no smaller seam."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from yolo_lossplug.sparse.assign import Assignment
from yolo_lossplug.sparse.distance_term import gather
from yolo_lossplug.ultralytics_hook.attached import on_criterion
from yolo_lossplug.ultralytics_hook.engines.fast import (
    MAX_DECODED,
    Decoder,
    FastMixin,
    anchors_of,
    assigned_by,
    count_positives,
    is_left_to_host,
    uncompiled,
)
from yolo_lossplug.ultralytics_hook.engines.terms import Anchors, Targets, class_term, hosts_box_terms
from yolo_lossplug.ultralytics_hook.originals import v8OBBLoss

RESIZED = "resized_shape"
"""What a batch says of the size of its images; some releases read it there, others from the head's outputs."""
MIN_SIDE = 2.0
"""Objects with a shorter side, in pixels, are left out."""


class RotatedFastMixin(FastMixin):
    """A criterion of rotated boxes whose step is the fast one."""

    @classmethod
    def bases(cls, stock: type) -> tuple[type, ...]:
        """Return the bases of a class of the host whose step is the fast one; what this overrides goes first."""
        return cls, stock

    def loss(self, preds: dict[str, Tensor], batch: dict[str, Any]) -> tuple:
        """Return the loss by box, class, DFL and angle, and its items, as the host's method does."""
        result = rotated_step(self, preds, batch)
        return super().loss(preds, batch) if result is None else result


class RotatedDecoder(Decoder):
    """Rotated boxes that anchors predict, decoded on first use.

    Args:
        criterion: The criterion.
        preds: Outputs of the head.
        anchors: The anchors.
        dtype: Type of the boxes.

    Attributes:
        decoded: Boxes (b·A, 5): centre, width, height in pixels, angle.
    """

    def __init__(self, criterion: Any, preds: dict[str, Tensor], anchors: Anchors, dtype: torch.dtype) -> None:
        super().__init__(criterion, preds["boxes"], anchors, dtype)
        self.decoded, self.angle = self.decoded.new_empty(len(self.decoded), 5), preds["angle"].detach()

    def decode_all(self) -> Tensor:
        """Return the boxes (b, A, 5), in pixels, of all anchors, decoded by the host, in the type of `decoded`."""
        outputs = (tensor.permute(0, 2, 1).contiguous() for tensor in (self.boxes, self.angle))
        boxes = self.criterion.bbox_decode(self.anchors.points, *outputs)
        return self.keep(torch.cat((boxes[..., :4] * self.anchors.strides, boxes[..., 4:]), -1))

    def _decode(self, anchor: Tensor) -> Tensor:
        parts, n_anchors = [], len(self.anchors.points)
        for index in anchor.split(MAX_DECODED):
            image, cell = index // n_anchors, index % n_anchors
            rows = (tensor.permute(0, 2, 1)[image, cell].unsqueeze(0) for tensor in (self.boxes, self.angle))
            boxes = self.criterion.bbox_decode(self.anchors.points[cell], *rows)[0]
            parts.append(torch.cat((boxes[:, :4] * self.anchors.strides[cell], boxes[:, 4:]), -1))
        return torch.cat(parts)


@uncompiled
def rotated_step(criterion: Any, preds: dict[str, Tensor], batch: dict[str, Any]) -> Optional[tuple]:
    """Return what the host's step returns, None where the host should take the step.

    Args:
        criterion: The criterion.
        preds: Outputs of the head: ``boxes`` (b, 4·R, A), ``scores`` (b, classes, A), ``angle`` (b, 1, A), ``feats``.
        batch: The batch.
    """
    scores = preds["scores"]
    if is_left_to_host(on_criterion(criterion).decision, "", batch, scores):
        return None
    anchors = sized(anchors_of(criterion, preds["feats"], scores.dtype), batch)
    try:
        targets = rotated_targets(criterion, batch, len(scores), anchors.imgsz)
    except RuntimeError:  # not of rotated boxes: the host says what is wrong
        return None
    decoder = RotatedDecoder(criterion, preds, anchors, targets.boxes.dtype)
    assigned = assigned_by(criterion, decoder, scores, targets, {})
    if assigned is None:
        return None
    total = assigned.score.sum().clamp(min=1)
    labels = targets.labels.flatten().long()[assigned.slot].clamp_(0)
    cls = class_term(criterion, scores, assigned.anchor, labels, assigned.score) / total
    box, dfl, angle = rotated_terms(criterion, preds, targets, anchors, assigned, total)
    gains = criterion.hyp
    parts = box * gains.box, cls * gains.cls, dfl * gains.dfl, angle * gains.angle
    loss = torch.stack([part.float() for part in parts])
    count_positives(criterion.assigner, decoder, targets, assigned)
    names = getattr(criterion, "loss_names", None)
    return loss * len(scores), loss.detach() if names is None else dict(zip(names, loss.detach()))


def sized(anchors: Anchors, batch: dict[str, Any]) -> Anchors:
    """Return the anchors with the size of the images where the host reads it."""
    if RESIZED not in v8OBBLoss.loss.__code__.co_consts:
        return anchors
    return anchors._replace(imgsz=torch.as_tensor(batch[RESIZED][0]).to(anchors.imgsz))


def rotated_targets(criterion: Any, batch: dict[str, Any], n_images: int, imgsz: Tensor) -> Targets:
    """Return the gts of a batch, prepared by the host, without the smallest."""
    rows = torch.cat((batch["batch_idx"].view(-1, 1), batch["cls"].view(-1, 1), batch["bboxes"].view(-1, 5)), 1)
    width, height = rows[:, 4] * float(imgsz[1]), rows[:, 5] * float(imgsz[0])
    rows = rows[(width >= MIN_SIDE) & (height >= MIN_SIDE)]
    padded = criterion.preprocess(rows.to(criterion.device), n_images, scale_tensor=imgsz[[1, 0, 1, 0]])
    labels, boxes = padded.split((1, 5), 2)
    return Targets(labels, boxes, boxes.sum(2, keepdim=True).gt_(0.0))


def rotated_terms(
    criterion: Any,
    preds: dict[str, Tensor],
    targets: Targets,
    anchors: Anchors,
    assigned: Assignment,
    total: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the box, the DFL (or L1) and the angle term, before the gains."""
    cell, weight = assigned.anchor % len(anchors.points), assigned.score
    points, strides = anchors.points[cell], anchors.strides[cell]
    rows, angle = (gather(preds[name], assigned.anchor) for name in ("boxes", "angle"))
    predicted = criterion.bbox_decode(points, rows.unsqueeze(0), angle.unsqueeze(0))
    gt_boxes = targets.boxes.flatten(0, 1)[assigned.slot]
    gt_boxes = torch.cat((gt_boxes[:, :4] / strides, gt_boxes[:, 4:]), 1)
    anchors = anchors._replace(points=points, strides=strides)
    box, dfl = hosts_box_terms(criterion, rows, predicted, gt_boxes, anchors, weight, total)
    foreground = torch.ones(1, len(rows), dtype=torch.bool, device=rows.device)
    return box, dfl, criterion.calculate_angle_loss(predicted, gt_boxes.unsqueeze(0), foreground, weight, total)

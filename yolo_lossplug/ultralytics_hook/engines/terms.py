# SPDX-License-Identifier: AGPL-3.0-or-later
"""The terms of a criterion's loss on its positives only: box, class and DFL, and what of the criterion they read."""

from __future__ import annotations

import functools
from typing import Any, Callable, NamedTuple, Optional

import torch
from torch import Tensor, nn
from ultralytics.utils import tal
from ultralytics.utils.metrics import bbox_iou

from yolo_lossplug.selection.keys import STOCK_CLASS
from yolo_lossplug.selection.loss import Loss, create_class_loss
from yolo_lossplug.sparse.assign import Assignment
from yolo_lossplug.sparse.class_term import class_sum
from yolo_lossplug.sparse.distance_term import distances, gather
from yolo_lossplug.ultralytics_hook.attached import on_criterion
from yolo_lossplug.ultralytics_hook.originals import BboxLoss, v8DetectionLoss
from yolo_lossplug.ultralytics_hook.regions.loss import silenced_background


class Targets(NamedTuple):
    """Gts of a batch as the host prepares them, padded to n slots per image: classes, boxes in pixels, and a mask."""

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


def class_loss_of(criterion: Any) -> Optional[Loss]:
    """Return the class loss of a criterion; None if `bce` is a third-party module."""
    if has_stock_bce(criterion):
        return create_class_loss(STOCK_CLASS)
    loss = getattr(criterion.bce, "loss", None)
    return loss if isinstance(loss, Loss) else None


def has_stock_bce(criterion: Any) -> bool:
    """Return whether the class loss of a criterion is the host's, without third-party weights."""
    module = criterion.bce
    return type(module) is nn.BCEWithLogitsLoss and module.weight is None and module.pos_weight is None


def stock_bbox_loss(bbox_loss: Any) -> Any:
    """Return the host's box loss module inside ours."""
    return getattr(bbox_loss, "stock", bbox_loss)


def has_exact_bins(criterion: Any, boxes: Tensor) -> bool:
    """Return whether boxes are decoded from distributions as the host does it, in float32 without autocast."""
    return (
        criterion.use_dfl
        and boxes.dtype == torch.float32
        and not is_autocast(boxes.device.type)
        and type(criterion).bbox_decode is v8DetectionLoss.bbox_decode
        and type(stock_bbox_loss(criterion.bbox_loss)) is BboxLoss
    )


def is_autocast(device_type: str) -> bool:
    """Return whether autocast is on for a kind of device."""
    try:
        return torch.is_autocast_enabled(device_type)
    except TypeError:  # torch before 2.4 has a function for each kind of device
        return torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled()


def box_terms(
    criterion: Any,
    boxes: Tensor,
    targets: Targets,
    anchors: Anchors,
    assigned: Assignment,
    total: Tensor,
    bins: Optional[Tensor],
) -> tuple[Tensor, Tensor]:
    """Return the box and the DFL (or L1) term, before the gains; `bins` are the positives' probabilities, if cached."""
    cell = assigned.anchor % len(anchors.points)
    points, strides = anchors.points[cell], anchors.strides[cell]
    gt_boxes = targets.boxes.flatten(0, 1)[assigned.slot] / strides
    module, weight = criterion.bbox_loss, assigned.score
    stock = stock_bbox_loss(module)
    if has_exact_bins(criterion, boxes):
        sides = tal.bbox2dist(points, gt_boxes, criterion.reg_max - 1)
        limit = criterion.reg_max - 1 - 0.01
        pred_dist, dfl = distances(boxes.contiguous(), assigned.anchor, sides.clamp_(0, limit), bins)
        predicted = tal.dist2bbox(pred_dist, points, xywh=False)
        if module is stock:
            per_box = 1 - bbox_iou(predicted, gt_boxes, xywh=False, CIoU=True).squeeze(-1)
        else:
            per_box = module.loss(predicted, gt_boxes, stride=strides, imgsz=anchors.imgsz)
        return (per_box * weight).sum() / total, (dfl * weight).sum() / total
    rows = gather(boxes, assigned.anchor)
    predicted = criterion.bbox_decode(points, rows.unsqueeze(0))
    anchors = anchors._replace(points=points, strides=strides)
    return hosts_box_terms(criterion, rows, predicted, gt_boxes, anchors, weight, total)


def hosts_box_terms(
    criterion: Any, rows: Tensor, predicted: Tensor, gt_boxes: Tensor, anchors: Anchors, weight: Tensor, total: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the box and the DFL (or L1) term from the host's own module, with the rounding of its autocast.

    `rows` are outputs of the head (n, 4·R) at the n positives, `predicted` the boxes (1, n, 4 or 5) of these in cells,
    `anchors` they alone, and `gt_boxes` the boxes (n, 4 or 5) of their gts, in cells too.
    """
    module, stock = criterion.bbox_loss, stock_bbox_loss(criterion.bbox_loss)
    foreground = torch.ones(1, len(rows), dtype=torch.bool, device=rows.device)
    points, strides, imgsz, _ = anchors
    boxes = predicted if module is stock else predicted.detach(), points, gt_boxes.unsqueeze(0)
    box, dfl = stock(rows.unsqueeze(0), *boxes, weight.view(1, -1, 1), total, foreground, imgsz, strides)
    if module is not stock:
        per_box = module.loss(predicted[0], gt_boxes, stride=strides, imgsz=imgsz)
        box = (per_box * weight).sum() / total
    return box, dfl


def class_term(criterion: Any, scores: Tensor, anchor: Tensor, labels: Tensor, score: Tensor) -> Tensor:
    """Return the sum of the class loss of logits (b, classes, A), before the gain.

    Anchors (n,) are unique ones among those of all images; of these are the classes `labels`, whose target is `score`.
    """
    loss, smoothing = class_loss_of(criterion), getattr(criterion.bce, "smoothing", 0.0)
    if loss is None or not on_criterion(criterion).is_class_loss_pointwise:
        return dense_class_term(criterion, scores, anchor, labels, score)
    silenced = silenced_background(criterion.stride, anchor, score)
    n_classes, n_anchors, score = scores.shape[1], scores.shape[2], score.to(scores.dtype)
    image, cell = anchor // n_anchors, anchor % n_anchors
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
    weights = criterion_class_weights(criterion)
    return class_sum(scores, index, score, loss, background=loss.background, weights=weights, silenced=silenced)


def dense_class_term(criterion: Any, scores: Tensor, anchor: Tensor, labels: Tensor, score: Tensor) -> Tensor:
    """Return the same from the criterion's own module, called with dense targets."""
    n_images, n_classes, n_anchors = scores.shape
    dense = scores.new_zeros(n_images, n_anchors, n_classes)
    dense.view(-1, n_classes)[anchor, labels] = score.to(scores.dtype)
    result, weights = criterion.bce(scores.permute(0, 2, 1), dense), getattr(criterion, "class_weights", None)
    return (result if weights is None else result * weights).sum()


def is_class_loss_pointwise(loss: Loss) -> bool:
    """Return whether every element of a class loss depends on nothing but its logit and target; tested on parts."""
    x, y = torch.linspace(-6, 6, 24), torch.linspace(-0.7, 1, 24).clamp(min=0)
    whole = functools.partial(loss, x.view(2, 3, 4), y.view(2, 3, 4))
    return is_pointwise(loss, lambda i: loss(x[i], y[i]), whole)


def is_pointwise(loss: Loss, part: Callable[[Any], Tensor], whole: Optional[Callable[[], Tensor]] = None) -> bool:
    """Return whether a loss has no state, and is the same of a whole batch of 24 and of parts, which have an index."""
    order = torch.arange(24).flip(0)
    try:
        if loss.state is not None:
            return False
        expected = whole().flatten() if whole else part(slice(None))
        return torch.allclose(expected[order], torch.cat([part(i) for i in order.split(5)]), rtol=1e-5, atol=1e-7)
    except Exception:  # a user-defined loss that needs the whole batch, or its shape
        return False


def criterion_class_weights(criterion: Any) -> Optional[Tensor]:
    """Return the product (classes,) of the host's class weights and ours, None if there are none."""
    stock, ours = getattr(criterion, "class_weights", None), getattr(criterion.bce, "weights", None)
    if stock is None or ours is None:
        return ours if stock is None else stock.flatten()
    return stock.flatten() * ours

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Detections and objects of a run's own last validation, which a callback of the validator collects."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou
from ultralytics.utils.metrics import batch_probiou

from yolo_lossplug.regions import KEY
from yolo_lossplug.ultralytics_hook.regions.validation import shares_in_regions

Found = dict[str, Any]
"""One image: ``file``, ``shape`` (height, width), ``pad`` (left, top) around the image; of detections ``boxes``
(d, 4 or 5), ``scores``, ``classes``, ``areas``; of objects ``gt_boxes`` (g, 4 or 5), ``gt_classes``, ``gt_areas``;
``iou`` (d, g), and, if the data have regions, ``in_regions`` (d,).
Boxes are corners in pixels of the network's input, or centre, width, height and angle, whose IoU is
ProbIoU as in Ultralytics' own."""


class DetectionCollector:
    """Callback of `on_val_start`: collects the images of a validation outside of training, that of the best checkpoint.

    Attributes:
        images: What was found in each image.
    """

    def __init__(self) -> None:
        self.images: list[Found] = []

    def __call__(self, validator: Any) -> None:
        """Collect what the validator counts from now on."""
        if validator.training:
            return
        images: list[Found] = []
        self.images = images
        update = type(validator).update_metrics

        def update_metrics(preds: Any, batch: dict[str, Any]) -> None:
            if "bboxes" in batch:
                is_single = bool(validator.args.single_cls)
                labels = {key: batch[key].detach().double().cpu() for key in ("batch_idx", "cls", "bboxes")}
                images.extend(_found(pred, {**batch, **labels}, i, is_single) for i, pred in enumerate(preds))
            update(validator, preds, batch)

        validator.update_metrics = update_metrics


def _found(pred: Any, batch: dict[str, Any], i: int, is_single: bool) -> Found:
    """Return the detections and objects of one image of a batch, whose labels are on the processor in float64."""
    boxes, scores, classes = (value.detach().double().cpu() for value in _parts(pred, batch["bboxes"].shape[-1]))
    of_image = batch["batch_idx"] == i
    height, width = batch["img"].shape[2:]
    gts = batch["bboxes"][of_image]
    gts = gts * torch.tensor([width, height, width, height, 1.0])[: gts.shape[-1]]
    is_rotated = gts.shape[-1] == 5
    areas = boxes[:, 2] * boxes[:, 3] if is_rotated else (boxes[:, 2:4] - boxes[:, :2]).prod(-1)
    gt_areas, gt_classes = gts[:, 2] * gts[:, 3], batch["cls"][of_image].view(-1)
    gts = gts if is_rotated else box_convert(gts, "cxcywh", "xyxy")
    found = {"boxes": boxes, "scores": scores, "classes": classes * (not is_single), "areas": areas}
    iou = torch.zeros(len(boxes), len(gts), dtype=torch.float64)
    if len(boxes) and len(gts):
        iou = batch_probiou(boxes, gts) if is_rotated else box_iou(boxes, gts)
    found.update(gt_boxes=gts, gt_classes=gt_classes, gt_areas=gt_areas, iou=iou)
    if KEY in batch:
        found["in_regions"] = shares_in_regions(boxes, classes, batch, i)
    _, pad = batch["ratio_pad"][i]  # rectangular batches are padded on all sides; 0 where the image fills the input
    sides = [*map(float, pad)] if isinstance(pad, (tuple, list)) else [0.0, 0.0]
    about = {"file": str(batch["im_file"][i]), "shape": [int(height), int(width)], "pad": sides}
    return {**about, **{name: value.numpy() for name, value in found.items()}}


def _parts(pred: Any, coordinates: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes, scores and classes of a prediction, which is a mapping in new releases and a table in old ones."""
    if isinstance(pred, dict):
        return pred["bboxes"], pred["conf"], pred["cls"]
    boxes = pred[:, :4] if coordinates == 4 else torch.cat((pred[:, :4], pred[:, -1:]), 1)
    return boxes, pred[:, 4], pred[:, 5]

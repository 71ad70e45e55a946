# SPDX-License-Identifier: AGPL-3.0-or-later
"""Regions in validation: a detection in one that matches no object is neither right nor wrong, and is left out.

It is left out of what the host's validator counts before it counts: mAP, confusion matrix, plots, and the files of
detections that `save_json` and `save_txt` write.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable, Optional

import torch
from torch import Tensor
from ultralytics.utils.metrics import batch_probiou, box_iou
from ultralytics.utils.ops import xywh2xyxy, xywhr2xyxyxyxy

from yolo_lossplug.regions import KEY, MIN_SHARE, ImageRegions, share_by_class

COLUMNS: dict[str, Any] = {"bboxes": slice(0, 4), "conf": 4, "cls": 5}
"""Columns of detections in releases where they are a table; rotated ones have the angle last."""


def update_metrics(stock: Callable[..., Any], validator: Any, preds: Any, batch: Mapping[str, Any]) -> Any:
    """Count the detections of a batch without those that regions make neither right nor wrong."""
    images = batch.get(KEY)
    if images is not None and any(len(one.kind) for one in images):
        is_paired = isinstance(preds, tuple)  # with prototypes of masks, in older releases
        rows = preds[0] if is_paired else preds
        kept = [only(row, judged(validator, row, batch, i)) for i, row in enumerate(rows)]
        preds = (kept, *preds[1:]) if is_paired else kept
    return stock(validator, preds, batch)


def judged(validator: Any, pred: Any, batch: Mapping[str, Any], image: int) -> Tensor:
    """Return which detections of an image are right or wrong (n,), bool."""
    regions: ImageRegions = batch[KEY][image]
    boxes, cls = column(pred, "bboxes"), column(pred, "cls")
    if not len(cls) or not len(regions.kind):
        return torch.ones(len(cls), dtype=torch.bool, device=cls.device)
    height, width = batch["img"].shape[2:]
    is_mine = (batch["batch_idx"] == image).to(cls.device)
    gt_boxes, gt_cls = batch["bboxes"].to(boxes)[is_mine], batch["cls"].to(cls)[is_mine].flatten()
    gt_boxes = torch.cat((gt_boxes[:, :4] * boxes.new_tensor([width, height, width, height]), gt_boxes[:, 4:]), 1)
    is_rotated = gt_boxes.shape[1] > COLUMNS["conf"]
    if is_rotated and boxes.shape[1] == COLUMNS["conf"]:
        boxes = torch.cat((boxes, pred[:, -1:]), 1)
    in_region = shares_in_regions(boxes, cls, batch, image) > MIN_SHARE
    if not len(gt_cls) or not in_region.any():
        return ~in_region
    iou = batch_probiou(gt_boxes, boxes) if is_rotated else box_iou(xywh2xyxy(gt_boxes), boxes)
    return ~in_region | validator.match_predictions(cls, gt_cls, iou)[:, 0].to(cls.device)


def shares_in_regions(boxes: Tensor, cls: Tensor, batch: Mapping[str, Any], image: int) -> Tensor:
    """Return the largest share of the area of each detection (n,) that lies in a region of its class.

    Args:
        boxes: Corners (n, 4) in pixels of the network's input, or centre, width, height and angle (n, 5).
        cls: Classes (n,).
        batch: The batch.
        image: Index of the image.
    """
    where = xywhr2xyxyxyxy(boxes) if boxes.shape[1] > COLUMNS["conf"] else boxes
    height, width = batch["img"].shape[2:]
    shares = share_by_class(where, batch[KEY][image], (height, width), shown_part_of(batch, image))
    return shares.gather(1, cls.long().reshape(-1, 1)).flatten()


def shown_part_of(batch: Mapping[str, Any], image: int) -> Optional[tuple[float, float, float, float]]:
    """Return left, top, right and bottom of an image in the network's input, None where the host does not say."""
    if "ratio_pad" not in batch or "ori_shape" not in batch:
        return None
    (gain_y, gain_x), (left, top) = batch["ratio_pad"][image]
    height, width = batch["ori_shape"][image]
    return left, top, left + width * gain_x, top + height * gain_y


def column(pred: Any, name: str) -> Tensor:
    """Return a column of detections, which are a mapping or a table."""
    found: Tensor = pred[name] if isinstance(pred, Mapping) else pred[:, COLUMNS[name]]
    return found


def only(pred: Any, kept: Tensor) -> Any:
    """Return detections without those that are not kept."""
    if not isinstance(pred, Mapping):
        return pred[kept]
    return {
        key: value[kept] if isinstance(value, Tensor) and len(value) == len(kept) else value
        for key, value in pred.items()
    }

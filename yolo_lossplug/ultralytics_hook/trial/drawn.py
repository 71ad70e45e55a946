# SPDX-License-Identifier: AGPL-3.0-or-later
"""Batches of drawn images with labels for the task of a model; masks and keypoints belong to the boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from yolo_lossplug import shapes
from yolo_lossplug.selection.keys import CLASSIFY
from yolo_lossplug.ultralytics_hook.criterion import class_names


def drawn_batch(model: Any, cfg: Any) -> dict[str, Any]:
    """Return a batch of drawn images with labels for a model's task: the same seed gives the same batch."""
    size, count, task = int(cfg.imgsz), int(cfg.batch), model.task
    kind = "obb" if task == "obb" else "detect"
    drawings = (shapes.draw_shapes(np.random.default_rng((cfg.seed, i)), size, kind) for i in range(count))
    pictures, labels = zip(*drawings)
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    images = images[:, torch.arange(channels_of(model)) % 3]
    n_classes = len(class_names(model))
    if task == CLASSIFY:
        return {"img": images, "cls": torch.tensor([int(rows[0][0]) for rows in labels]) % n_classes}
    rows = torch.from_numpy(np.concatenate(labels)).float()
    batch: dict[str, Any] = {
        "img": images,
        "batch_idx": torch.arange(count).repeat_interleave(torch.tensor([*map(len, labels)])).float(),
        "cls": rows[:, :1] % n_classes,
        "bboxes": rows[:, 1:] if task != "obb" else _turned(rows[:, 1:]),
        "resized_shape": [(size, size)] * count,
    }
    if task == "segment":
        return {**batch, **masks_of(batch, count, size // 4, cfg.overlap_mask)}
    if task == "pose":
        return {**batch, "keypoints": keypoints_of(batch["bboxes"], *model.model[-1].kpt_shape)}
    return batch


def channels_of(model: Any) -> int:
    """Return how many channels the images of a model have."""
    return next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))


def masks_of(batch: dict[str, Tensor], n_images: int, side: int, may_overlap: bool) -> dict[str, Tensor]:
    """Return masks that fill the boxes of a batch, as the host's dataset has them.

    Args:
        batch: Images (n,), classes (n, 1) and boxes (n, 4), centre, width, height as shares of the image.
        n_images: Images of the batch.
        side: Side of a mask in pixels.
        may_overlap: Whether the masks of an image are one map with the numbers of its objects, the small ones on top.

    Returns:
        ``masks`` (images, side, side), or (n, side, side) of 0 and 1; ``sem_masks`` (images, side, side), classes.
    """
    maps, classes = torch.zeros(n_images, side, side), torch.zeros(n_images, side, side, dtype=torch.long)
    singles, images = torch.zeros(len(batch["cls"]), side, side), batch["batch_idx"].long()
    low, high = batch["bboxes"][:, :2] - batch["bboxes"][:, 2:] / 2, batch["bboxes"][:, :2] + batch["bboxes"][:, 2:] / 2
    first, last = (low * side).floor().long().clamp(0, side - 1), (high * side).ceil().long().clamp(1, side)
    for i in batch["bboxes"][:, 2:].prod(1).argsort(descending=True).tolist():
        place = slice(first[i, 1], last[i, 1]), slice(first[i, 0], last[i, 0])
        singles[i][place] = 1
        maps[images[i]][place] = float((images[:i] == images[i]).sum() + 1)
        classes[images[i]][place] = int(batch["cls"][i])
    return {"masks": maps if may_overlap else singles, "sem_masks": classes}


def keypoints_of(boxes: Tensor, n_points: int, n_values: int) -> Tensor:
    """Return keypoints (n, K, 2 or 3) on an ellipse inside of each box (n, 4), all visible, as shares of the image."""
    turn = torch.arange(n_points) / n_points * 2 * torch.pi
    circle = torch.stack((turn.cos(), turn.sin()), -1) * 0.35
    points = boxes[:, None, :2] + circle * boxes[:, None, 2:]
    return torch.cat((points, torch.full_like(points[..., :1], 2.0)), -1)[..., :n_values]


def _turned(corners: Tensor) -> Tensor:
    """Return boxes (n, 5) centre x, y, width, height, angle of rectangles (n, 8), four corners in order."""
    points = corners.view(-1, 4, 2)
    along, across = points[:, 1] - points[:, 0], points[:, 2] - points[:, 1]
    angle = torch.atan2(along[:, 1], along[:, 0])
    return torch.cat((points.mean(1), along.norm(dim=1)[:, None], across.norm(dim=1)[:, None], angle[:, None]), 1)

# SPDX-License-Identifier: AGPL-3.0-or-later
"""What batches and heads of segment, pose and obb hold besides those of detect, drawn to go with them."""

from __future__ import annotations

import math
from typing import Any, Union

import torch
from torch import Tensor

from yolo_lossplug.ultralytics_hook.host import moved
from yolo_lossplug.ultralytics_hook.trial.problems import (
    Head,
    ObjectSpec,
    Problem,
    anchor_grid,
    drawn_problem,
    owning_boxes,
)

N_PROTOTYPES, MASK_STRIDE = 32, 4
"""Prototypes of a segment head, and pixels of the image per pixel of a mask."""
KEYPOINTS = (17, 3)
"""Keypoints of a person, and numbers of each."""


def drawn_task_problem(
    task: str,
    objects: ObjectSpec,
    seed: int,
    device: Union[str, torch.device] = "cpu",
    head: Head = Head(),  # noqa: B008
) -> Problem:
    """Return a drawn batch of a task with predictions; the same arguments give the same ones."""
    problem = drawn_problem(objects, seed, "cpu", head)
    rng = torch.Generator().manual_seed(seed)
    draw = {"segment": _masks, "pose": _keypoints, "obb": _angles}.get(task)
    more, labels = draw(problem, head, rng) if draw else ({}, {})
    feats, batch = [feat.to(device) for feat in problem.feats], moved({**problem.batch, **labels}, device)
    return Problem(problem.boxes.to(device), problem.scores.to(device), feats, batch, moved(more, device))


def _masks(problem: Problem, head: Head, rng: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return coefficients and prototypes, and masks: every object is an ellipse that fills its box."""
    n_images, side = len(problem.scores), head.imgsz // MASK_STRIDE
    coefficients = torch.randn(n_images, N_PROTOTYPES, problem.scores.shape[2], generator=rng) * 0.3
    prototypes = torch.randn(n_images, N_PROTOTYPES, side, side, generator=rng)
    masks, pixels = torch.zeros(n_images, side, side), torch.arange(side) + 0.5
    image = problem.batch["batch_idx"].long()
    first = torch.searchsorted(image, image)
    for i, (x, y, width, height) in enumerate((problem.batch["bboxes"] * side).tolist()):
        across, along = (pixels - x) / max(width / 2, 0.5), (pixels - y) / max(height / 2, 0.5)
        inside = along[:, None] ** 2 + across**2 <= 1
        masks[image[i]][inside] = float(i - first[i] + 1)
    return {"mask_coefficient": coefficients, "proto": prototypes}, {"masks": masks}


def _keypoints(problem: Problem, head: Head, rng: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return keypoints that are predicted, and labelled ones inside the boxes."""
    boxes, count = problem.batch["bboxes"], math.prod(KEYPOINTS)
    points = torch.rand(len(boxes), *KEYPOINTS, generator=rng)
    points[..., :2] = boxes[:, None, :2] + (points[..., :2] - 0.5) * boxes[:, None, 2:]
    points[..., 2] = (points[..., 2] * 3).floor()
    kpts = torch.randn(len(problem.scores), count, problem.scores.shape[2], generator=rng)
    return {"kpts": kpts}, {"keypoints": points}


def _angles(problem: Problem, head: Head, rng: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return angles that are predicted, those of anchors inside an object near its own, and rotated boxes."""
    boxes, image = problem.batch["bboxes"], problem.batch["batch_idx"]
    gt_angles = (torch.rand(len(boxes), 1, generator=rng) - 0.25) * math.pi
    angles = (torch.rand(len(problem.scores), 1, problem.scores.shape[2], generator=rng) - 0.25) * math.pi
    centre, size = (boxes * head.imgsz).split(2, 1)
    corners, (points, _) = torch.cat((centre - size / 2, centre + size / 2), 1), anchor_grid(head)
    for i in range(len(angles)):
        rows = (image == i).nonzero().squeeze(1)
        owner = owning_boxes(points, corners[rows])
        index = (owner >= 0).nonzero().squeeze(1)
        noise = 0.1 * torch.randn(len(index), generator=rng)
        angles[i, 0, index] = gt_angles[rows[owner[index]], 0] + noise
    sizes = [[head.imgsz, head.imgsz]] * len(angles)
    return {"angle": angles}, {"bboxes": torch.cat((boxes, gt_angles), 1), "resized_shape": sizes}

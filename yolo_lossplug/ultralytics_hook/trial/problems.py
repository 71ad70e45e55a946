# SPDX-License-Identifier: AGPL-3.0-or-later
"""Batches of a task on which steps of the loss are timed: drawn or real objects, and predictions that fit them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Union

import torch
from torch import Tensor

from yolo_lossplug.ultralytics_hook.host import moved

Device = Union[str, torch.device]
CHUNK = 256
"""Objects that are laid over the anchors at once."""
XVIEW = -75357
"""As `ObjectSpec.mean` a published batch of xView: so many objects in 128 images, 4,967 of them in one."""
N_PROTOTYPES, MASK_STRIDE = 32, 4
"""Prototypes of a segment head, and pixels of the image per pixel of a mask."""
KEYPOINTS = (17, 3)
"""Keypoints of a person, and numbers of each."""


class Head(NamedTuple):
    """What a head predicts for images of a side in pixels; `reg_max` is 1 for no distribution of distances."""

    n_classes: int = 80
    reg_max: int = 16
    strides: tuple[int, ...] = (8, 16, 32)
    imgsz: int = 640

    @property
    def cells(self) -> list[int]:
        """Cells along the side of each level."""
        return [self.imgsz // stride for stride in self.strides]

    @property
    def n_anchors(self) -> int:
        """Anchors of an image."""
        return sum(cells**2 for cells in self.cells)


HEAD = Head()


class ObjectSpec(NamedTuple):
    """How many objects a drawn batch has, and how large they are.

    Attributes:
        batch: Images.
        mean: Objects per image, on average; their distribution is geometric. Negative: so many in one image and 7 in
            each other one. `XVIEW`: as in that batch.
        side: Median side in pixels of an image of 640; negative for boxes outside of the image; 0 for one by the mean.
        head: What the head predicts: ``trained``, ``fresh`` or ``constant``.
        is_exact: Whether every image has `mean` objects.
    """

    batch: int = 16
    mean: float = 7
    side: float = 0
    head: str = "trained"
    is_exact: bool = False


class Problem(NamedTuple):
    """A batch, and what a head predicts for it: outputs (b, 4·R, A), logits (b, classes, A), and those of other tasks.

    Of the feature maps of each level only the shape is read.
    """

    boxes: Tensor
    scores: Tensor
    feats: list[Tensor]
    batch: dict[str, Any]
    more: Mapping[str, Tensor] = MappingProxyType({})

    @property
    def n_objects(self) -> int:
        """Objects in all images."""
        return len(self.batch["batch_idx"])

    @property
    def most_objects(self) -> int:
        """Objects in the image with the most."""
        return int(torch.bincount(self.batch["batch_idx"].long().cpu()).max()) if self.n_objects else 0


def drawn_problem(objects: ObjectSpec, seed: int, device: Device = "cpu", head: Head = HEAD) -> Problem:
    """Return a drawn batch with predictions; the same arguments give the same ones."""
    rng = torch.Generator().manual_seed(seed)
    return predicted(_drawn(objects, rng, head), objects.batch, rng, device, head, objects.head)


def object_counts(objects: ObjectSpec, rng: torch.Generator) -> Tensor:
    """Return the number of objects in each image (b,)."""
    batch, mean = objects.batch, objects.mean
    if mean == 0 or objects.is_exact:
        return torch.full((batch,), int(mean))
    if mean == XVIEW:
        total = -XVIEW * batch // 128
        n = (torch.rand(batch, generator=rng).pow(2.5) * 1900).long() + 1
        n[0] = min(4967, total)
        n[1:] = (n[1:] * ((total - n[0]) / n[1:].sum())).long()
        n[-1] += total - n.sum()
        return n
    geometric = torch.rand(batch, generator=rng).log() / math.log(1 - 1 / abs(max(mean, 7)))
    n = geometric.ceil().clamp(1, 1.3 * max(mean, 100)).long()
    if mean < 0:
        n[0] = int(-mean)
    elif mean != 7:
        n = (n * mean / n.float().mean()).round().long().clamp(min=1)
    return n


def _drawn(objects: ObjectSpec, rng: torch.Generator, head: Head) -> dict[str, Any]:
    n = object_counts(objects, rng)
    total, imgsz = int(n.sum()), head.imgsz
    by_mean = 72 * (7 / max(1.0, abs(objects.mean))) ** 0.345  # 72 for 7 objects, 13 for 1,000
    median = (objects.side or by_mean) * imgsz / 640
    side = torch.randn(total, 1, generator=rng).mul(0.5).exp() * abs(median)
    size = (side * torch.randn(total, 2, generator=rng).mul(0.25).exp()).clamp(max=0.95 * imgsz)
    if median >= imgsz:
        size = torch.full((total, 2), 0.97 * imgsz)
    centre = size / 2 + torch.rand(total, 2, generator=rng) * (imgsz - size)
    if median < 0:  # wholly outside, so that the host masks them
        centre = -centre - imgsz
    return {
        "batch_idx": torch.repeat_interleave(n).float(),
        "cls": torch.randint(head.n_classes, (total, 1), generator=rng).float(),
        "bboxes": torch.cat((centre, size), 1) / imgsz,
    }


def predicted(
    batch: dict[str, Any], n_images: int, rng: torch.Generator, device: Device, head: Head, kind: str = "trained"
) -> Problem:
    """Return predictions for labels on any device: of anchors inside an object 70 % predict it, with 25 % of noise."""
    points, strides = anchor_grid(head)
    scores = torch.randn(n_images, head.n_classes, len(points), generator=rng) - 4
    boxes = torch.randn(n_images, 4 * head.reg_max, len(points), generator=rng) * 0.3
    if kind == "constant":
        scores, boxes = torch.full_like(scores, -4), torch.zeros_like(boxes)
    if head.reg_max == 1:
        boxes = boxes.abs()
    centre, size = (batch["bboxes"].cpu() * head.imgsz).split(2, 1)
    corners, labels = torch.cat((centre - size / 2, centre + size / 2), 1), batch["cls"].cpu()
    image = batch["batch_idx"].cpu()
    for i in range(n_images if kind == "trained" else 0):
        rows = (image == i).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=rng)[:1500]]
        owner = owning_boxes(points.to(device), corners[rows].to(device)).cpu()
        index = ((owner >= 0) & (torch.rand(len(points), generator=rng) < 0.7)).nonzero().squeeze(1)
        mine = rows[owner[index]]
        sides = torch.cat((points[index] - corners[mine, :2], corners[mine, 2:] - points[index]), 1) / strides[index]
        sides = sides * (1 + 0.25 * torch.randn(sides.shape, generator=rng))
        boxes[i].view(4, head.reg_max, -1)[:, :, index] += _logits(sides, head.reg_max)
        scores[i, labels[mine, 0].long(), index] += 3 * torch.rand(len(index), generator=rng)
    feats = [torch.zeros(n_images, 1, cells, cells, device=device) for cells in head.cells]
    return Problem(boxes.to(device), scores.to(device), feats, moved(batch, device))


def anchor_grid(head: Head) -> tuple[Tensor, Tensor]:
    """Return centres (A, 2) in pixels, and strides (A, 1)."""
    grids = [(torch.cartesian_prod(*[torch.arange(c)] * 2).flip(1) + 0.5) * s for c, s in zip(head.cells, head.strides)]
    strides = [torch.full((c * c, 1), float(s)) for c, s in zip(head.cells, head.strides)]
    return torch.cat(grids), torch.cat(strides)


def owning_boxes(points: Tensor, corners: Tensor) -> Tensor:
    """Return the last box (A,) that each point lies inside of, -1 for none."""
    owner = torch.full((len(points),), -1, device=points.device)
    x, y = points.unsqueeze(0).unbind(2)
    for start in range(0, len(corners), CHUNK):
        x1, y1, x2, y2 = corners[start : start + CHUNK].unsqueeze(1).unbind(2)
        inside = (x > x1) & (y > y1) & (x < x2) & (y < y2)
        rank = torch.arange(start, start + len(inside), device=points.device).unsqueeze(1)
        owner = torch.maximum(owner, torch.where(inside, rank, -1).amax(0))
    return owner


def _logits(sides: Tensor, reg_max: int) -> Tensor:
    """Return what a head outputs (4, R, n) for distances (n, 4) in cells."""
    if reg_max == 1:
        return sides.clamp(min=0).t().unsqueeze(1)
    bins = torch.arange(reg_max).float()
    shaped = (-((bins - sides.clamp(0, reg_max - 1.01).unsqueeze(-1)) ** 2) * 1.5).clamp(min=-10)
    return shaped.permute(1, 2, 0)


def drawn_task_problem(task: str, objects: ObjectSpec, seed: int, device: Device = "cpu", head: Head = HEAD) -> Problem:
    """Return a drawn batch of a task with predictions; the same arguments give the same ones."""
    problem = drawn_problem(objects, seed, "cpu", head)
    rng = torch.Generator().manual_seed(seed)
    draw = {"segment": _masks, "pose": _keypoints, "obb": _angles}.get(task)
    more, labels = draw(problem, head, rng) if draw else ({}, {})
    feats, batch = [feat.to(device) for feat in problem.feats], moved({**problem.batch, **labels}, device)
    return Problem(problem.boxes.to(device), problem.scores.to(device), feats, batch, moved(more, device))


def _masks(problem: Problem, head: Head, rng: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return coefficients and prototypes, and masks, also of classes: every object is an ellipse that fills its box."""
    n_images, side = len(problem.scores), head.imgsz // MASK_STRIDE
    coefficients = torch.randn(n_images, N_PROTOTYPES, problem.scores.shape[2], generator=rng) * 0.3
    prototypes = torch.randn(n_images, N_PROTOTYPES, side, side, generator=rng)
    masks, classes = torch.zeros(n_images, side, side), torch.zeros(n_images, side, side)
    pixels = torch.arange(side) + 0.5
    image = problem.batch["batch_idx"].long()
    first = torch.searchsorted(image, image)
    for i, (x, y, width, height) in enumerate((problem.batch["bboxes"] * side).tolist()):
        across, along = (pixels - x) / max(width / 2, 0.5), (pixels - y) / max(height / 2, 0.5)
        inside = along[:, None] ** 2 + across**2 <= 1
        masks[image[i]][inside] = float(i - first[i] + 1)
        classes[image[i]][inside] = float(problem.batch["cls"][i])
    return {"mask_coefficient": coefficients, "proto": prototypes}, {"masks": masks, "sem_masks": classes}


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

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Batches for the benchmarks of the loss step: objects as in data of several kinds, and predictions that fit them."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import NamedTuple

import torch

STRIDES, IMGSZ, N_CLASSES, REG_MAX = (8, 16, 32), 640, 80, 16


class Case(NamedTuple):
    """What a step is measured on.

    Attributes:
        batch: Images.
        mean: Objects in an image, on average; the distribution is geometric.
        side: Median side of an object in pixels.
        loss: Keys of the plugin.
        topk: Numbers of the assigner.
        head: What the head predicts: "trained", "fresh" or "constant".
        is_exact: Whether every image has `mean` objects.
    """

    batch: int = 16
    mean: float = 7
    side: float = 72
    loss: tuple = ()
    topk: tuple = (10, None)
    head: str = "trained"
    is_exact: bool = False


SETTINGS = {
    "coco7": (7, 72),
    "mosaic30": (30, 44),
    "crowd100": (100, 30),
    "crowd300": (300, 20),
    "crowd1000": (1000, 13),
    "skew1000": (-1000, 13),
}
"""Mean number and median side of objects; negative: so many in one image, and 7 in each of the others."""

CASES = {
    **{name: Case(16, *setting) for name, setting in SETTINGS.items()},
    **{f"b64-{name}": Case(64, *SETTINGS[name]) for name in ("coco7", "mosaic30", "crowd100", "crowd300", "skew1000")},
    "xview": Case(128, -75357, 14),
    "b1": Case(1),
    "b4": Case(4),
    "end-to-end": Case(topk=(7, 1)),
    "focal": Case(loss=(("cls_loss", "focal"),)),
    "qfl": Case(loss=(("cls_loss", "qfl"),)),
    "eiou": Case(loss=(("loss", "eiou"),)),
    "no-objects": Case(1, 0),
    "invalid": Case(16, 7, -72),
    "full-image": Case(4, 100, 640, is_exact=True),
    "constant": Case(16, 30, 44, head="constant"),
    "fresh": Case(16, 30, 44, head="fresh"),
}
STANDARD = [name for name in CASES if not name.startswith("b64-") and name != "xview"]


def case_of(name: str) -> Case:
    """Return a case by name, or by its numbers of images and of objects in each, as in "4x300"."""
    if name in CASES:
        return CASES[name]
    batch, n = map(int, name.split("x"))
    return Case(batch, n, 20, is_exact=True)


def counts(case: Case, rng: torch.Generator) -> torch.Tensor:
    """Return the number of objects in each image."""
    if case.mean == 0:
        return torch.zeros(case.batch, dtype=torch.long)
    if case.is_exact:
        return torch.full((case.batch,), int(case.mean))
    geometric = torch.rand(case.batch, generator=rng).log() / math.log(1 - 1 / abs(max(case.mean, 7)))
    n = geometric.ceil().clamp(1, 1.3 * max(case.mean, 100)).long()
    if case.mean == -75357:  # a published batch of xView: so many objects in all, 4,967 in one image
        n = (torch.rand(case.batch, generator=rng).pow(2.5) * 1900).long() + 1
        n[0] = 4967
        n[1:] = (n[1:] * ((75357 - 4967) / n[1:].sum())).long()
        n[1] += 75357 - n.sum()
    elif case.mean < 0:
        n[0] = int(-case.mean)
    elif case.mean > 7:
        n = (n * case.mean / n.float().mean()).round().long().clamp(min=1)
    return n


def problem(case: Case, seed: int, device: str = "cpu") -> SimpleNamespace:
    """Return predictions and a batch: boxes (b, 64, A), scores (b, 80, A), feats, batch."""
    rng = torch.Generator().manual_seed(seed)
    n = counts(case, rng)
    total, image = int(n.sum()), torch.repeat_interleave(n)
    side = torch.randn(total, 1, generator=rng).mul(0.5).exp() * abs(case.side)
    size = (side * torch.randn(total, 2, generator=rng).mul(0.25).exp()).clamp(max=0.95 * IMGSZ)
    if case.side >= IMGSZ:
        size = torch.full((total, 2), 0.97 * IMGSZ)
    centre = size / 2 + torch.rand(total, 2, generator=rng) * (IMGSZ - size)
    if case.side < 0:  # wholly outside, so that the host masks them
        centre = -centre - IMGSZ
    labels = torch.randint(N_CLASSES, (total,), generator=rng)
    batch = {
        "batch_idx": image.float(),
        "cls": labels.float().unsqueeze(1),
        "bboxes": torch.cat((centre, size), 1) / IMGSZ,
    }

    cells = [IMGSZ // stride for stride in STRIDES]
    points = torch.cat(
        [(torch.cartesian_prod(torch.arange(c), torch.arange(c)).flip(1) + 0.5) * s for c, s in zip(cells, STRIDES)]
    )
    strides = torch.cat([torch.full((c * c, 1), float(s)) for c, s in zip(cells, STRIDES)])
    scores = torch.randn(case.batch, N_CLASSES, len(points), generator=rng) - 4
    boxes = torch.randn(case.batch, 4 * REG_MAX, len(points), generator=rng) * 0.3
    if case.head == "constant":
        scores, boxes = torch.full_like(scores, -4), torch.zeros_like(boxes)
    bins = torch.arange(REG_MAX).float()
    start = 0
    for i, count in enumerate(n.tolist() if case.head == "trained" else []):
        mine = slice(start, start + count)
        start += count
        corners = torch.cat((centre[mine] - size[mine] / 2, centre[mine] + size[mine] / 2), 1)
        owner = torch.full((len(points),), -1)
        for j in torch.randperm(count, generator=rng).tolist()[:1500]:
            x1, y1, x2, y2 = corners[j].tolist()
            inside = (points[:, 0] > x1) & (points[:, 1] > y1) & (points[:, 0] < x2) & (points[:, 1] < y2)
            owner[inside] = j
        found = (owner >= 0) & (torch.rand(len(points), generator=rng) < 0.7)
        target = corners[owner[found]]
        where = points[found]
        sides = torch.cat((where - target[:, :2], target[:, 2:] - where), 1) / strides[found]
        sides = (sides * (1 + 0.25 * torch.randn(sides.shape, generator=rng))).clamp(0, REG_MAX - 1.01)
        shaped = (-((bins - sides.unsqueeze(-1)) ** 2) * 1.5).clamp(min=-10)
        boxes[i].view(4, REG_MAX, -1)[:, :, found] += shaped.permute(1, 2, 0)
        scores[i, labels[mine][owner[found]], found.nonzero().squeeze(1)] += 3 * torch.rand(
            int(found.sum()), generator=rng
        )
    feats = [torch.zeros(case.batch, 1, c, c, device=device) for c in cells]
    batch = {key: value.to(device) for key, value in batch.items()}
    return SimpleNamespace(boxes=boxes.to(device), scores=scores.to(device), feats=feats, batch=batch, n_objects=total)

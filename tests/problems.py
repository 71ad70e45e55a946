# SPDX-License-Identifier: AGPL-3.0-or-later
"""Random problems for the task-aligned assigner, of every kind that has its own rule."""

import torch

STRIDES = (8, 16, 32)
N_CLASSES = 5
SHAPES = ((320, 320), (256, 416), (416, 256), (640, 192))


def points(height, width, strides=STRIDES):
    """Anchor centres (A, 2) of an image in pixels, level after level."""
    levels = []
    for stride in strides:
        y, x = torch.meshgrid(torch.arange(height // stride), torch.arange(width // stride), indexing="ij")
        levels.append((torch.stack((x, y), -1).view(-1, 2) + 0.5) * stride)
    return torch.cat(levels)


def problem(family, seed, size=None, b=2):
    """Return the inputs of an assigner by name: scores, boxes, points, labels, objects, mask."""
    rng = torch.Generator().manual_seed(seed)
    height, width = size or SHAPES[seed % len(SHAPES)]

    def uniform(*shape):
        return torch.rand(*shape, generator=rng)

    def integers(low, high, *shape):
        return torch.randint(low, high, shape, generator=rng)

    places, n = points(height, width), int(integers(1, 12, 1))
    if family == "crowded":
        n = int(integers(40, 120, 1))
    extent = torch.tensor([width, height]).float()
    centre, side = uniform(b, n, 2) * extent, (uniform(b, n, 2) * 3.5 + 1.5).exp2() * 8
    if family in ("crowded", "tiny"):
        side = uniform(b, n, 2) * 20
    if family == "overlapping":
        centre = extent / 2 + uniform(b, n, 2) * 20
    if family == "zero_size":
        side = side * (uniform(b, n, 1) > 0.5)
    if family == "outside":
        centre = (uniform(b, n, 2) * 3 - 1) * extent
    if family == "edges":
        centre, side = (centre / 4).round() * 4, (side / 8).round() * 8
    if family == "near_first":
        centre, side = uniform(b, n, 2) * 24, uniform(b, n, 2) * 60 + 10
    boxes = torch.cat((centre - side / 2, centre + side / 2), -1)
    if family == "negative":
        boxes = boxes[..., [2, 3, 0, 1]] * (uniform(b, n, 1) > 0.5) + boxes * (uniform(b, n, 1) > 0.5)
    if family == "duplicates":
        boxes = boxes[:, integers(0, max(n // 2, 1), n)]
    labels = integers(0, N_CLASSES, b, n, 1).float()
    if family == "duplicates":
        labels[:] = labels[:, :1]
    counts = integers(0, n + 1, b, 1)
    mask = torch.arange(n) < counts
    if family == "holes":
        mask = uniform(b, n) > 0.4
    if family == "no_objects":
        mask[:] = False
    mask = mask.unsqueeze(-1).float()
    boxes, labels = boxes * mask, labels * mask
    if family == "holes":  # a place that is masked may hold anything
        boxes = boxes + (1 - mask) * 30

    a = len(places)
    scores = (uniform(b, a, N_CLASSES) * 8 - 7).sigmoid()
    sides = (uniform(b, a, 2) * 3 + 2).exp2() * 4
    predicted = torch.cat((places - sides / 2, places + sides / 2), -1)
    if family not in ("early", "zero_metrics"):  # most anchors predict an object around them, with some noise
        pick = integers(0, n, b, a)
        near = boxes.gather(1, pick.unsqueeze(-1).expand(-1, -1, 4))
        noise = torch.randn(b, a, 4, generator=rng) * (side.mean() * 0.15)
        predicted = torch.where((uniform(b, a) < 0.7).unsqueeze(-1), near + noise, predicted)
    if family == "zero_metrics":
        predicted = predicted + extent.repeat(2) * 5 * (uniform(b, a, 1) > 0.02)
    if family == "near_first":
        scores = scores * (uniform(b, a, 1) > 0.7)
    if family == "equal":
        scores = torch.full_like(scores, 0.3)
        predicted = torch.cat((places - 40, places + 40), -1).expand(b, -1, -1)
    if family == "quantised":
        scores, predicted = (scores * 4).round() / 4, (predicted / 32).round() * 32
    if family == "half_scores":
        scores = scores.half()
    return scores, predicted, places, labels, boxes, mask


FAMILIES = (
    *("realistic", "early", "crowded", "overlapping", "tiny", "zero_size", "outside", "edges", "negative"),
    *("zero_metrics", "near_first", "equal", "quantised", "duplicates", "holes", "no_objects", "half_scores"),
)

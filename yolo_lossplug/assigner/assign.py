# SPDX-License-Identifier: AGPL-3.0-or-later
"""The whole assignment of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable, NamedTuple, Optional

import torch
from torch import Tensor

from yolo_lossplug.assigner.grid import Level, rectangles
from yolo_lossplug.assigner.pairs import Pairs, counts, enumerate_pairs
from yolo_lossplug.assigner.selection import Objects, Positives, best, keep_best, normalise, resolve

PAIRS_PER_ANCHOR = 4
"""Pairs that are held at a time, per anchor of the batch: as much memory as the gradients of the head's outputs."""

Measure = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Assignment(NamedTuple):
    """Assigned anchors, each once.

    Attributes:
        anchor: Index (n,) of the anchor among those of all images, ascending.
        object: Index (n,) of its object among the places of all images.
        score: Normalised metric (n,), the target of the object's class.
    """

    anchor: Tensor
    object: Tensor
    score: Tensor


def assign(
    boxes: Tensor,
    objects: Objects,
    levels: tuple[Level, ...],
    measure: Measure,
    *,
    topk: int,
    topk2: int,
    eps: float,
) -> Optional[Assignment]:
    """Assign anchors to objects.

    Args:
        boxes: Boxes (G, 4), x1 y1 x2 y2 in pixels, inside which an object looks for anchors.
        objects: The G objects.
        levels: The anchors.
        measure: Takes objects (P,) and anchors (P,) of their images; returns metrics and overlaps (P,), >= 0.
        topk: Anchors that an object selects.
        topk2: Anchors that it keeps after every anchor was given to one object; as `topk`, nothing more is done.
        eps: Added to the largest metric of an object when the others are divided by it.

    Returns:
        The assignment, None if a metric is not finite.
    """
    cells = rectangles(boxes, levels)
    found = []
    for rows in _groups(counts(cells), objects):
        pairs = enumerate_pairs(cells[rows], levels)
        some = objects._replace(image=objects.image[rows], place=objects.place[rows])
        metric, overlap = _measured(pairs, rows.start, measure, _largest(objects))
        if not metric.isfinite().all():
            return None
        selected = best(pairs, metric, topk, objects.n_anchors)
        positives = resolve(pairs, metric, overlap, selected, some)
        found.append(positives if topk2 == topk else keep_best(positives, topk2, objects.n_anchors))
    positives = Positives(*(torch.cat(fields) for fields in zip(*found))) if len(found) > 1 else found[0]
    score = normalise(positives, objects.n_images * objects.n_places, eps)
    return Assignment(positives.anchor, positives.object, score)


def _groups(count: Tensor, objects: Objects) -> Iterator[slice]:
    """Yield the objects of whole images, as many at a time as their pairs allow."""
    limit = _largest(objects)
    if len(count) == 0 or count.sum() <= limit:
        yield slice(0, len(count))
        return
    per_image = torch.zeros(objects.n_images, dtype=count.dtype, device=count.device)
    ends = torch.bincount(objects.image, minlength=objects.n_images).cumsum(0).tolist()
    start, end, total = 0, 0, 0
    for image_end, n in zip(ends, per_image.scatter_add_(0, objects.image, count).tolist()):
        if total and total + n > limit:
            yield slice(start, end)
            start, total = end, 0
        end, total = image_end, total + n
    yield slice(start, end)


def _largest(objects: Objects) -> int:
    """Return the number of pairs that are held at a time."""
    return max(1, int(PAIRS_PER_ANCHOR * objects.n_images * objects.n_anchors))


def _measured(pairs: Pairs, first_row: int, measure: Measure, limit: int) -> tuple[Tensor, Tensor]:
    """Return metrics and overlaps of pairs, measured a part at a time where they are many."""
    parts = [measure(row + first_row, anchor) for row, anchor in zip(pairs.row.split(limit), pairs.anchor.split(limit))]
    if len(parts) == 1:
        return parts[0]
    metrics, overlaps = zip(*parts)
    return torch.cat(metrics), torch.cat(overlaps)

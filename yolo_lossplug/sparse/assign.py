# SPDX-License-Identifier: AGPL-3.0-or-later
"""The whole assignment of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable, NamedTuple, Optional

from torch import Tensor

from yolo_lossplug.sparse.grid import Level, rectangles
from yolo_lossplug.sparse.pairs import Pairs, counts, enumerate_pairs
from yolo_lossplug.sparse.topk import Candidates, Objects, best, keep_best, normalise, resolve

PAIRS_PER_ANCHOR, FEWEST_PAIRS = 2, 2**16
"""Pairs that are held at a time, per anchor of the batch, and at least: less memory than the head's gradients take."""

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

    The pairs of many objects are listed and measured a part at a time. Of each part only what was selected is kept, and
    the pairs of anchors that several objects select are listed once more.

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
    parts, chosen = list(_parts(counts(cells), objects)), []
    for rows in parts:
        pairs = enumerate_pairs(cells[rows], levels)
        every = Candidates(pairs.row + rows.start, pairs.anchor, *measure(pairs.row + rows.start, pairs.anchor))
        if not every.metric.isfinite().all():
            return None
        chosen.append(every.only(best(pairs, every.metric, topk, objects.n_anchors)))

    def around(is_contested: Tensor) -> Candidates:
        if len(parts) == 1:
            return every.only(is_contested[objects.begin[every.row] + every.anchor])
        found = [_contested(enumerate_pairs(cells[rows], levels), rows, objects, is_contested) for rows in parts]
        return Candidates.joined([Candidates(row, anchor, *measure(row, anchor)) for row, anchor in found])

    positives = resolve(Candidates.joined(chosen), around, objects)
    if topk2 != topk:
        positives = keep_best(positives, topk2, objects.n_anchors)
    score = normalise(positives, objects.n_images * objects.n_places, eps)
    return Assignment(positives.anchor, positives.object, score)


def _contested(pairs: Pairs, rows: slice, objects: Objects, is_contested: Tensor) -> tuple[Tensor, Tensor]:
    """Return objects and anchors of the pairs of contested anchors."""
    row = pairs.row + rows.start
    kept = is_contested[objects.begin[row] + pairs.anchor]
    return row[kept], pairs.anchor[kept]


def _parts(count: Tensor, objects: Objects) -> Iterator[slice]:
    """Yield the objects, as many at a time as their numbers of pairs allow."""
    limit = max(FEWEST_PAIRS, int(PAIRS_PER_ANCHOR * objects.n_images * objects.n_anchors))
    if len(count) == 0 or count.sum() <= limit:
        yield slice(0, len(count))
        return
    start = total = 0
    for row, n in enumerate(count.tolist()):
        if total and total + n > limit:
            yield slice(start, row)
            start, total = row, 0
        total += n
    yield slice(start, len(count))

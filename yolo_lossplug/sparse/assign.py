# SPDX-License-Identifier: AGPL-3.0-or-later
"""The assignment of a whole batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable, NamedTuple, Optional

import torch
from torch import Tensor

from yolo_lossplug.sparse.grid import Level, rectangles
from yolo_lossplug.sparse.pairs import Pairs, enumerate_pairs, filtered, n_cells
from yolo_lossplug.sparse.topk import Candidates, Gts, best, keep_best, normalised_scores, resolve_conflicts

PAIRS_PER_ANCHOR, MIN_PAIRS = 2, 2**16
"""Pairs in memory at a time: per anchor of the batch, and the minimum. They take less than the head's gradients."""

Measure = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Inside = Callable[[Tensor, Tensor], Tensor]


class Assignment(NamedTuple):
    """The positives: assigned anchors, each once.

    Attributes:
        anchor: Index (n,) of the anchor among those of all images, ascending.
        slot: Slot (n,) of its gt among those of all images.
        score: Normalised metric (n,), the target of the gt's class.
        claims: Number of gts (b·A,) that select each anchor, before conflicts are resolved; None if it is not counted.
    """

    anchor: Tensor
    slot: Tensor
    score: Tensor
    claims: Optional[Tensor] = None


def assign_pairs(
    boxes: Tensor,
    gts: Gts,
    levels: tuple[Level, ...],
    measure: Measure,
    *,
    topk: int,
    topk2: int,
    eps: float,
    inside: Optional[Inside] = None,
) -> Optional[Assignment]:
    """Assign anchors to gts.

    Pairs are enumerated and measured in chunks of gts. Of each chunk only the selected pairs are kept, and the pairs of
    anchors that several gts select are enumerated again.

    Args:
        boxes: Boxes (G, 4), x1 y1 x2 y2 in pixels; the anchors inside are a gt's candidates, unless `inside` says more.
        gts: The G gts.
        levels: Levels of the anchors.
        measure: Takes gts (P,) and anchors (P,) of their images; returns metrics and overlaps (P,), >= 0.
        topk: Number of anchors that a gt selects.
        topk2: Number of anchors that a gt keeps once conflicts are resolved; no second selection if equal to `topk`.
        eps: Added to the denominator when the metrics of a gt are divided by their maximum.
        inside: Takes gts (P,) and anchors (P,) of their images whose centres lie inside `boxes`; returns which of them
            are candidates. None if all are.

    Returns:
        The assignment, None if a metric is NaN or infinite.
    """
    cells = rectangles(boxes, levels)
    chunks, selected = list(_chunks(n_cells(cells), gts)), []
    for rows in chunks:
        pairs = _pairs(cells[rows], levels, rows, inside)
        candidates = Candidates(pairs.row + rows.start, pairs.anchor, *measure(pairs.row + rows.start, pairs.anchor))
        if not candidates.metric.isfinite().all():
            return None
        selected.append(candidates.only(best(pairs, candidates.metric, topk, gts.n_anchors)))

    def candidates_of(is_contested: Tensor) -> Candidates:
        if len(chunks) == 1:
            return candidates.only(is_contested[gts.begin[candidates.row] + candidates.anchor])
        contested = [_contested(_pairs(cells[rows], levels, rows, inside), rows, gts, is_contested) for rows in chunks]
        return Candidates.joined([Candidates(row, anchor, *measure(row, anchor)) for row, anchor in contested])

    chosen = Candidates.joined(selected)
    claimed = gts.begin[chosen.row] + chosen.anchor
    claims = torch.bincount(claimed, minlength=gts.n_images * gts.n_anchors)
    positives = resolve_conflicts(chosen, claimed, claims, candidates_of, gts)
    if topk2 != topk:
        positives = keep_best(positives, topk2, gts.n_anchors)
    score = normalised_scores(positives, gts.n_images * gts.n_slots, eps)
    return Assignment(positives.anchor, positives.slot, score, claims)


def _pairs(cells: Tensor, levels: tuple[Level, ...], rows: slice, inside: Optional[Inside]) -> Pairs:
    """Return the candidates of the gts in a slice, whose rows count from its start."""
    pairs = enumerate_pairs(cells, levels)
    return pairs if inside is None else filtered(pairs, inside(pairs.row + rows.start, pairs.anchor))


def _contested(pairs: Pairs, rows: slice, gts: Gts, is_contested: Tensor) -> tuple[Tensor, Tensor]:
    """Return gts and anchors of the pairs of contested anchors."""
    row = pairs.row + rows.start
    kept = is_contested[gts.begin[row] + pairs.anchor]
    return row[kept], pairs.anchor[kept]


def _chunks(count: Tensor, gts: Gts) -> Iterator[slice]:
    """Yield slices of gts whose pairs do not exceed the limit together, or single gts."""
    limit = max(MIN_PAIRS, int(PAIRS_PER_ANCHOR * gts.n_images * gts.n_anchors))
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

# SPDX-License-Identifier: AGPL-3.0-or-later
"""From metrics of pairs to assigned anchors: best k of each object, one object of each anchor, normalised score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from yolo_lossplug.sparse.pairs import Pairs, members

DENSE_ROWS = 256
"""Rows that are rebuilt in their dense form at a time."""
NARROWEST, WIDENING = 32, 4
"""Objects are selected from in groups of at most 32, 128, 512, ... pairs, so that padding costs little."""


class Objects(NamedTuple):
    """Objects to assign to, in the order of images and of places.

    Attributes:
        image: Image of each object (G,).
        place: Place of each object among the n_places of its image (G,); there may be places without an object.
        n_images: Number of images.
        n_places: Number of places in an image.
        n_anchors: Number of anchors in an image.
    """

    image: Tensor
    place: Tensor
    n_images: int
    n_places: int
    n_anchors: int

    @property
    def begin(self) -> Tensor:
        """First anchor (G,) of each object's image among those of all images."""
        return self.image * self.n_anchors

    @property
    def slot(self) -> Tensor:
        """Place (G,) of each object among those of all images."""
        return self.image * self.n_places + self.place


class Candidates(NamedTuple):
    """Measured pairs, in the order of objects and, of one object, of anchors.

    Attributes:
        row: Object of each pair (P,).
        anchor: Anchor of each pair in its image (P,).
        metric: Alignment metric (P,), >= 0.
        overlap: Overlap (P,), >= 0.
    """

    row: Tensor
    anchor: Tensor
    metric: Tensor
    overlap: Tensor

    def only(self, kept: Tensor) -> Candidates:
        """Return the pairs that a mask (P,) names."""
        index = kept.nonzero().squeeze(1)
        return Candidates(*(values[index] for values in self))

    @staticmethod
    def joined(parts: Sequence[Candidates]) -> Candidates:
        """Return the pairs of all parts."""
        return parts[0] if len(parts) == 1 else Candidates(*(torch.cat(values) for values in zip(*parts)))


class Positives(NamedTuple):
    """Assigned anchors, each once.

    Attributes:
        anchor: Index (n,) of the anchor among those of all images, ascending.
        object: Index (n,) of its object among the places of all images.
        metric: Alignment metric (n,), 0 where the object is not around the anchor.
        overlap: Overlap (n,), likewise.
    """

    anchor: Tensor
    object: Tensor
    metric: Tensor
    overlap: Tensor


def is_exact(k: int, n_anchors: int, device_type: str) -> bool:
    """Return whether `torch.topk` breaks ties among zeros by the rule that `best` relies on.

    On the CPU it keeps a heap of the first k values if k is small for the row, and replaces only by larger ones, so
    that zeros come from the first k places; for larger k it partitions the row. On CUDA the lowest place wins.
    """
    return device_type == "cuda" or k * 64 <= n_anchors


def best(pairs: Pairs, metric: Tensor, k: int, n_anchors: int) -> Tensor:
    """Return which pairs `torch.topk` would select from the dense row of each object, which is 0 outside its pairs.

    Args:
        pairs: The pairs.
        metric: Their metrics (P,), finite and >= 0.
        k: Number to select of each object.
        n_anchors: Length of a dense row.

    Returns:
        Selected pairs (P,), bool. Of an object with fewer than k metrics above 0, pairs with metric 0 are selected
        as far as the dense row has them among those that fill up.
    """
    selected = metric > 0
    above = _sums(selected, pairs)
    crowded = above > k
    again = _rank(pairs, metric, selected, crowded, k)
    # Zeros fill up a row that has too few values, but only those of the first k anchors.
    filling = (metric == 0) & (pairs.anchor < k)
    again |= (_sums(filling, pairs) > 0) & (above < k)
    rows = again.nonzero().squeeze(1)
    for some in rows.split(DENSE_ROWS):
        index, place = members(pairs, some)
        dense = metric.new_zeros(len(some), n_anchors)
        dense[place, pairs.anchor[index]] = metric[index]
        chosen = torch.zeros_like(dense, dtype=torch.bool).scatter_(1, dense.topk(k).indices, True)
        selected[index] = chosen[place, pairs.anchor[index]]
    return selected


def resolve(chosen: Candidates, around: Callable[[Tensor], Candidates], objects: Objects) -> Positives:
    """Give every selected anchor to one object.

    An anchor that several objects select goes to the one of all objects around it, whether they select it or not, that
    it overlaps most; the first of equals; the first of the image, wherever that is, if it overlaps none.

    Args:
        chosen: The selected pairs.
        around: Takes which anchors of all images are contested; returns all pairs of these.
        objects: The objects.

    Returns:
        The positives.
    """
    claimed = objects.begin[chosen.row] + chosen.anchor
    claims = torch.bincount(claimed, minlength=objects.n_images * objects.n_anchors)
    anchor, is_contested = claims.nonzero().squeeze(1), claims > 1
    pair_of = torch.empty_like(claims).scatter_(0, claimed, torch.arange(len(claimed), device=claims.device))
    if is_contested.any():
        rivals = around(is_contested)
        contested = is_contested.nonzero().squeeze(1)
        winner = _winners(rivals, contested, objects)
        pair_of[contested] = torch.where(winner < 0, winner, winner + len(chosen.row))
        chosen = Candidates.joined((chosen, rivals))
    pair = pair_of[anchor]
    is_around = pair >= 0
    pair.clamp_(min=0)
    first = anchor // objects.n_anchors * objects.n_places
    owner = objects.slot[chosen.row[pair]]
    return Positives(
        anchor,
        torch.where(is_around, owner, first),
        chosen.metric[pair] * is_around,
        chosen.overlap[pair] * is_around,
    )


def keep_best(positives: Positives, k: int, n_anchors: int) -> Positives:
    """Return the positives without those beyond the best k of each object."""
    if not len(positives.object):
        return positives
    order = positives.object.argsort(stable=True)
    _, row, count = positives.object[order].unique_consecutive(return_inverse=True, return_counts=True)
    pairs = Pairs(row, positives.anchor[order] % n_anchors, count.cumsum(0) - count, count)
    kept = order[best(pairs, positives.metric[order], k, n_anchors)].sort().values
    return Positives(*(field[kept] for field in positives))


def normalise(positives: Positives, n_objects: int, eps: float) -> Tensor:
    """Return the score (n,) of each positive: metric × largest overlap of its object / its largest metric."""
    largest_metric, largest_overlap = (
        values.new_zeros(n_objects).scatter_reduce_(0, positives.object, values, "amax")
        for values in (positives.metric, positives.overlap)
    )
    return positives.metric * largest_overlap[positives.object] / (largest_metric[positives.object] + eps)


def _rank(pairs: Pairs, metric: Tensor, selected: Tensor, crowded: Tensor, k: int) -> Tensor:
    """Select, in place, the k largest metrics of the crowded objects; return those (G,) where the k-th has an equal."""
    again = torch.zeros_like(crowded)
    rows = crowded.nonzero().squeeze(1)
    widest = int(pairs.length[rows].max()) if len(rows) else 0
    low, width = 0, max(NARROWEST, k + 1)
    while low < widest:
        count = pairs.length[rows]
        some = rows[(count > low) & (count <= width)]
        low, wide, width = width, min(width, widest), width * WIDENING
        if not len(some):
            continue
        place = torch.arange(wide, device=metric.device)
        index = pairs.first[some].unsqueeze(1) + place
        is_outside = place >= pairs.length[some].unsqueeze(1)
        index.clamp_(max=len(metric) - 1)
        values, places = metric[index].masked_fill_(is_outside, -1).topk(k + 1)
        again[some] = values[:, k - 1] == values[:, k]
        index = index.gather(1, places[:, :k])
        every, _ = members(pairs, some)
        selected[every] = False
        selected[index.flatten()] = True
    return again


def _winners(rivals: Candidates, contested: Tensor, objects: Objects) -> Tensor:
    """Return the pair (c,) of each contested anchor (c,) that keeps it, -1 for the first object that is not around."""
    rank = torch.empty(objects.n_images * objects.n_anchors, dtype=torch.long, device=contested.device)
    rank[contested] = torch.arange(len(contested), device=contested.device)
    place = rank[objects.begin[rivals.row] + rivals.anchor]
    largest = rivals.overlap.new_zeros(len(contested)).scatter_reduce_(0, place, rivals.overlap, "amax")
    # Pairs of one anchor are in the order of objects: the first that reaches the largest overlap wins. Where that is 0,
    # every object does, whether around or not, and so the first of the image.
    wins = (rivals.overlap == largest[place]) & ((rivals.overlap > 0) | (objects.place[rivals.row] == 0))
    wins, none = wins.nonzero().squeeze(1), len(place)
    winner = wins.new_full((len(contested),), none).scatter_reduce_(0, place[wins], wins, "amin")
    return torch.where(winner == none, -1, winner)


def _sums(flags: Tensor, pairs: Pairs) -> Tensor:
    """Return the number of flagged pairs of each object (G,)."""
    total = torch.cat((pairs.first.new_zeros(1), flags.cumsum(0)))
    return total[pairs.first + pairs.length] - total[pairs.first]

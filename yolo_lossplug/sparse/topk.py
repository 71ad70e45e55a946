# SPDX-License-Identifier: AGPL-3.0-or-later
"""From metrics of pairs to positives: best k anchors of each gt, one gt per anchor, normalised score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from yolo_lossplug.sparse.pairs import Pairs, members

DENSE_ROWS = 256
"""Rows per chunk where the dense form is rebuilt."""
FIRST_WIDTH, WIDTH_FACTOR = 32, 4
"""Gts are grouped by number of pairs, up to 32, 128, 512, ..., which bounds the padding of `topk`."""


class Gts(NamedTuple):
    """Gts to assign anchors to, ordered by image and slot.

    Attributes:
        image: Image of each gt (G,).
        image_slot: Slot of each gt among the n_slots of its image (G,); slots may be empty.
        n_images: Number of images.
        n_slots: Number of slots per image.
        n_anchors: Number of anchors per image.
    """

    image: Tensor
    image_slot: Tensor
    n_images: int
    n_slots: int
    n_anchors: int

    @property
    def begin(self) -> Tensor:
        """First anchor (G,) of each gt's image among those of all images."""
        return self.image * self.n_anchors

    @property
    def slot(self) -> Tensor:
        """Slot (G,) of each gt among those of all images."""
        return self.image * self.n_slots + self.image_slot


class Candidates(NamedTuple):
    """Measured pairs, ordered by gt, then by anchor.

    Attributes:
        row: Gt of each pair (P,).
        anchor: Anchor of each pair in its image (P,).
        metric: Alignment metric (P,), >= 0.
        overlap: Overlap (P,), >= 0.
    """

    row: Tensor
    anchor: Tensor
    metric: Tensor
    overlap: Tensor

    def only(self, kept: Tensor) -> Candidates:
        """Return the pairs where a mask (P,) is true."""
        index = kept.nonzero().squeeze(1)
        return Candidates(*(values[index] for values in self))

    @staticmethod
    def joined(parts: Sequence[Candidates]) -> Candidates:
        """Return the concatenation of all parts."""
        return parts[0] if len(parts) == 1 else Candidates(*(torch.cat(values) for values in zip(*parts)))


class Positives(NamedTuple):
    """Assigned anchors, unique.

    Attributes:
        anchor: Index (n,) of the anchor among those of all images, ascending.
        slot: Slot (n,) of its gt among those of all images.
        metric: Alignment metric (n,), 0 where the anchor is no candidate of the gt.
        overlap: Overlap (n,), likewise.
    """

    anchor: Tensor
    slot: Tensor
    metric: Tensor
    overlap: Tensor


def is_exact(k: int, n_anchors: int, device_type: str) -> bool:
    """Return whether `torch.topk` breaks ties among zeros by the rule that `best` relies on.

    On the CPU it keeps a heap of the first k values if k is small relative to the row, and replaces them only by larger
    ones, so that zeros come from the first k indices; for larger k it partitions the row. On CUDA the lowest index
    wins.
    """
    return device_type == "cuda" or k * 64 <= n_anchors


def best(pairs: Pairs, metric: Tensor, k: int, n_anchors: int) -> Tensor:
    """Return the pairs that `torch.topk` would select from the dense row of each gt, which is 0 outside its pairs.

    Args:
        pairs: The pairs.
        metric: Metrics (P,) of the pairs, finite and >= 0.
        k: Number of anchors to select per gt.
        n_anchors: Length of a dense row.

    Returns:
        Selected pairs (P,), bool. For a gt with fewer than k metrics above 0, they include the pairs with metric 0
        that `torch.topk` would fill up with.
    """
    selected = metric > 0
    above = _sums(selected, pairs)
    is_crowded = above > k
    again = _rank(pairs, metric, selected, is_crowded, k)
    # A row with fewer than k positive values is filled up with zeros, but only with those of the first k anchors.
    filling = (metric == 0) & (pairs.anchor < k)
    again |= (_sums(filling, pairs) > 0) & (above < k)
    rows = again.nonzero().squeeze(1)
    for chunk in rows.split(DENSE_ROWS):
        index, position = members(pairs, chunk)
        dense = metric.new_zeros(len(chunk), n_anchors)
        dense[position, pairs.anchor[index]] = metric[index]
        is_chosen = torch.zeros_like(dense, dtype=torch.bool).scatter_(1, dense.topk(k).indices, True)
        selected[index] = is_chosen[position, pairs.anchor[index]]
    return selected


def resolve_conflicts(
    selected_pairs: Candidates, claimed: Tensor, claims: Tensor, candidates_of: Callable[[Tensor], Candidates], gts: Gts
) -> Positives:
    """Assign every selected anchor to one gt.

    An anchor that several gts select goes to the gt with the largest overlap among all whose candidate it is, selected
    or not; in a tie to the first of these; without any overlap to the first slot of the image, wherever that gt is.

    Args:
        selected_pairs: The selected pairs.
        claimed: Anchors (P,) of these among those of all images.
        claims: How many of them (b·A,) have an anchor.
        candidates_of: Takes a mask of the contested anchors of all images; returns all pairs of these anchors.
        gts: The gts.

    Returns:
        The positives.
    """
    anchor, is_contested = claims.nonzero().squeeze(1), claims > 1
    pair_of = torch.empty_like(claims).scatter_(0, claimed, torch.arange(len(claimed), device=claims.device))
    if is_contested.any():
        candidates = candidates_of(is_contested)
        contested = is_contested.nonzero().squeeze(1)
        winner = _winners(candidates, contested, gts)
        pair_of[contested] = torch.where(winner < 0, winner, winner + len(selected_pairs.row))
        selected_pairs = Candidates.joined((selected_pairs, candidates))
    pair = pair_of[anchor]
    is_candidate = pair >= 0
    pair.clamp_(min=0)
    first = anchor // gts.n_anchors * gts.n_slots
    owner = gts.slot[selected_pairs.row[pair]]
    return Positives(
        anchor,
        torch.where(is_candidate, owner, first),
        selected_pairs.metric[pair] * is_candidate,
        selected_pairs.overlap[pair] * is_candidate,
    )


def keep_best(positives: Positives, k: int, n_anchors: int) -> Positives:
    """Return the best k positives of each gt."""
    if not len(positives.slot):
        return positives
    order = positives.slot.argsort(stable=True)
    _, row, count = positives.slot[order].unique_consecutive(return_inverse=True, return_counts=True)
    pairs = Pairs(row, positives.anchor[order] % n_anchors, count.cumsum(0) - count, count)
    kept = order[best(pairs, positives.metric[order], k, n_anchors)].sort().values
    return Positives(*(field[kept] for field in positives))


def normalised_scores(positives: Positives, n_gts: int, eps: float) -> Tensor:
    """Return the score (n,) of each positive: metric × largest overlap of its gt / largest metric of its gt."""
    largest_metric, largest_overlap = (
        values.new_zeros(n_gts).scatter_reduce_(0, positives.slot, values, "amax")
        for values in (positives.metric, positives.overlap)
    )
    return positives.metric * largest_overlap[positives.slot] / (largest_metric[positives.slot] + eps)


def _rank(pairs: Pairs, metric: Tensor, selected: Tensor, is_crowded: Tensor, k: int) -> Tensor:
    """Select, in-place, the k largest metrics of the crowded gts; return those (G,) whose k-th metric is tied."""
    again = torch.zeros_like(is_crowded)
    rows = is_crowded.nonzero().squeeze(1)
    widest = int(pairs.length[rows].max()) if len(rows) else 0
    low, width = 0, max(FIRST_WIDTH, k + 1)
    while low < widest:
        count = pairs.length[rows]
        group = rows[(count > low) & (count <= width)]
        low, wide, width = width, min(width, widest), width * WIDTH_FACTOR
        if not len(group):
            continue
        position = torch.arange(wide, device=metric.device)
        index = pairs.first[group].unsqueeze(1) + position
        is_padding = position >= pairs.length[group].unsqueeze(1)
        index.clamp_(max=len(metric) - 1)
        values, positions = metric[index].masked_fill_(is_padding, -1).topk(k + 1)
        again[group] = values[:, k - 1] == values[:, k]
        index = index.gather(1, positions[:, :k])
        every, _ = members(pairs, group)
        selected[every] = False
        selected[index.flatten()] = True
    return again


def _winners(candidates: Candidates, contested: Tensor, gts: Gts) -> Tensor:
    """Return the winning pair (c,) of each contested anchor (c,), -1 if only the image's first slot is left."""
    rank = torch.empty(gts.n_images * gts.n_anchors, dtype=torch.long, device=contested.device)
    rank[contested] = torch.arange(len(contested), device=contested.device)
    position = rank[gts.begin[candidates.row] + candidates.anchor]
    largest = candidates.overlap.new_zeros(len(contested)).scatter_reduce_(0, position, candidates.overlap, "amax")
    # Pairs of one anchor are ordered by gt: the first that reaches the largest overlap wins. Where that is 0, every gt
    # reaches it, candidate or not, and so the first of the image wins.
    is_first = gts.image_slot[candidates.row] == 0
    wins = (candidates.overlap == largest[position]) & ((candidates.overlap > 0) | is_first)
    wins, none = wins.nonzero().squeeze(1), len(position)
    winner = wins.new_full((len(contested),), none).scatter_reduce_(0, position[wins], wins, "amin")
    return torch.where(winner == none, -1, winner)


def _sums(flags: Tensor, pairs: Pairs) -> Tensor:
    """Return the number of flagged pairs of each gt (G,)."""
    total = torch.cat((pairs.first.new_zeros(1), flags.cumsum(0)))
    return total[pairs.first + pairs.length] - total[pairs.first]

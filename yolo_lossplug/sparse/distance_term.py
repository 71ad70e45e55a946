# SPDX-License-Identifier: AGPL-3.0-or-later
"""What assigned anchors predict of their boxes, gathered from the head's outputs, and its distribution focal loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Optional

import torch
from torch import Tensor

from yolo_lossplug.sparse.huge_pages import empty, zeros

PART = {"cpu": 4096}
"""Anchors that are worked on at a time, by kind of device: on a CPU as many as its cache holds."""
LARGEST_PART = 2**20
SMALLEST_PROBABILITY = 1e-30
"""Probabilities down to this have a logarithm that is as exact as that of a log-softmax."""


def gather(features: Tensor, anchor: Tensor) -> Tensor:
    """Return the features of anchors.

    Args:
        features: Outputs of the head (b, C, A).
        anchor: Anchors (n,) among those of all images, each once.

    Returns:
        Their features (n, C).
    """
    return _Gather.apply(features, anchor)


def bin_probabilities(features: Tensor, anchor: Tensor) -> Tensor:
    """Return the softmax over the bins of the four sides (n, 4, R) at anchors (n,); see `distances`."""
    n_bins = features.shape[1] // 4
    found, start = empty(torch.Size((len(anchor), 4, n_bins)), like=features), 0
    for some in anchor.split(_part_size(anchor)):
        torch.softmax(_bins(features, some), -1, out=found[start : start + len(some)])
        start += len(some)
    return found


def distances(
    features: Tensor, anchor: Tensor, targets: Tensor, probabilities: Optional[Tensor] = None
) -> tuple[Tensor, Tensor]:
    """Return the distances that anchors predict from their centre to the sides of their box, and the loss of these.

    The loss is the distribution focal loss, −((r − t)·ln pₗ + (t − l)·ln pᵣ) with l ≤ t < r = l + 1, mean of the sides.
    Li et al., Generalized Focal Loss, NeurIPS 2020, Eq. 6.

    Args:
        features: Logits of the bins of four sides (b, 4·R, A), float32.
        anchor: Anchors (n,) among those of all images, each once.
        targets: Distances to predict (n, 4), in [0, R − 1).
        probabilities: What `bin_probabilities` returns for these, where it is known.

    Returns:
        Expected distances (n, 4), and loss (n,).
    """
    if probabilities is None:
        probabilities = bin_probabilities(features.detach(), anchor)
    return _Distances.apply(features, anchor, targets, probabilities)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, anchor: Tensor) -> Tensor:
        ctx.save_for_backward(anchor)
        ctx.shape = features.shape
        return _rows(features)[_place(anchor, features.shape[2])]

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (anchor,) = ctx.saved_tensors
        gradient = slope.new_zeros(ctx.shape)
        _rows(gradient)[_place(anchor, ctx.shape[2])] = slope  # each anchor once, so nothing is to be added up
        return gradient, None


class _Distances(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, anchor: Tensor, targets: Tensor, probabilities: Tensor
    ) -> tuple[Tensor, Tensor]:
        expected = probabilities @ _values(probabilities)
        losses, start = targets.new_empty(len(targets)), 0
        for some, t in _parts(anchor, targets):
            part = slice(start, start + len(some))
            start = part.stop
            left, weight = _left(t)
            logs = _logs(features, some, probabilities[part], torch.cat((left, left + 1), -1))
            losses[part] = -torch.lerp(logs[..., 0], logs[..., 1], weight.squeeze(-1)).mean(-1)
        ctx.save_for_backward(anchor, targets, expected, probabilities)
        ctx.shape = features.shape
        return expected, losses

    @staticmethod
    def backward(ctx: Any, slope: Tensor, loss_slope: Tensor) -> tuple[Optional[Tensor], ...]:
        anchor, targets, expected, probabilities = ctx.saved_tensors
        gradient = zeros(ctx.shape, like=probabilities)
        rows, start = _rows(gradient), 0
        values = _values(probabilities)
        for some, t in _parts(anchor, targets):
            part = slice(start, start + len(some))
            start = part.stop
            per_side = (loss_slope[part] / 4).view(-1, 1, 1)
            # d(expected) = p·(bin − expected); d(loss) = p − the two bins next to the target, by their weights.
            g = (values - expected[part].unsqueeze(-1)).mul_(slope[part].unsqueeze(-1)).add_(per_side)
            g *= probabilities[part]
            left, weight = _left(t)
            g.scatter_add_(-1, torch.cat((left, left + 1), -1), torch.cat((weight - 1, -weight), -1) * per_side)
            rows[_place(some, ctx.shape[2])] = g.flatten(1)
        return gradient, None, None, None


def _rows(features: Tensor) -> Tensor:
    """Return features (b, C, A) by anchor (b, A, C)."""
    return features.permute(0, 2, 1)


def _place(anchor: Tensor, n_anchors: int) -> tuple[Tensor, Tensor]:
    return anchor // n_anchors, anchor % n_anchors


def _bins(features: Tensor, anchor: Tensor) -> Tensor:
    """Return the logits (n, 4, R) of anchors (n,)."""
    return _rows(features)[_place(anchor, features.shape[2])].unflatten(-1, (4, -1))


def _values(probabilities: Tensor) -> Tensor:
    """Return the distances (R,) that the bins stand for."""
    return torch.arange(probabilities.shape[-1], dtype=probabilities.dtype, device=probabilities.device)


def _logs(features: Tensor, anchor: Tensor, p: Tensor, bins: Tensor) -> Tensor:
    """Return the logarithms of the probabilities p (n, 4, R) of anchors (n,) at some bins (n, 4, 2)."""
    taken = p.gather(-1, bins)
    if not taken.is_cuda and taken.min() > SMALLEST_PROBABILITY:  # asking a GPU would cost more
        return taken.log_()
    return _bins(features, anchor).log_softmax(-1).gather(-1, bins)


def _left(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bin to the left of targets (n, 4, 1), and the weight of the one to the right."""
    left = targets.long()
    return left.unsqueeze(-1), (targets - left).unsqueeze(-1)


def _parts(anchor: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield anchors and targets, a part at a time; nothing if there are none."""
    size = _part_size(anchor)
    return zip(anchor.split(size), targets.split(size)) if len(anchor) else iter(())


def _part_size(anchor: Tensor) -> int:
    return PART.get(anchor.device.type, LARGEST_PART)

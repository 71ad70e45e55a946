# SPDX-License-Identifier: AGPL-3.0-or-later
"""Box distances that positives predict, gathered from the head's outputs, and their distribution focal loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Optional

import torch
from torch import Tensor

from yolo_lossplug.sparse.huge_pages import empty, zeros

ANCHORS_PER_CHUNK = {"cpu": 4096}
"""Anchors per chunk, by device type: on a CPU as many as its cache holds."""
MAX_ANCHORS = 2**20
MIN_PROBABILITY = 1e-30
"""Above this, the logarithm of a probability is as accurate as a log-softmax."""


def gather(features: Tensor, anchor: Tensor) -> Tensor:
    """Return the features (n, C) of unique anchors (n,) of all images, from outputs of the head (b, C, A)."""
    return _Gather.apply(features, anchor)


def bin_probabilities(features: Tensor, anchor: Tensor) -> Tensor:
    """Return the softmax over the bins of the four sides (n, 4, R) at anchors (n,); see `distances`."""
    probabilities = empty(torch.Size((len(anchor), 4, features.shape[1] // 4)), like=features)
    for rows in _chunks(anchor):
        torch.softmax(_bins(features, anchor[rows]), -1, out=probabilities[rows])
    return probabilities


def distances(
    features: Tensor, anchor: Tensor, targets: Tensor, probabilities: Optional[Tensor] = None
) -> tuple[Tensor, Tensor]:
    """Return the predicted distances from anchor centres to the sides of their boxes, and the loss of each anchor.

    The loss is the distribution focal loss, −((r − t)·ln pₗ + (t − l)·ln pᵣ) with l ≤ t < r = l + 1, mean over
    the sides. Li et al., Generalized Focal Loss, NeurIPS 2020, Eq. 6.

    Args:
        features: Logits of the bins of four sides (b, 4·R, A), float32.
        anchor: Indices (n,) of anchors among those of all images, unique.
        targets: Target distances (n, 4), in [0, R − 1).
        probabilities: Result of `bin_probabilities` for these anchors, None to compute it.

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
        return _rows(features)[_image_and_cell(anchor, features.shape[2])]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (anchor,) = ctx.saved_tensors
        gradient = grad.new_zeros(ctx.shape)
        _rows(gradient)[_image_and_cell(anchor, ctx.shape[2])] = grad  # each anchor once, so no accumulation is needed
        return gradient, None


class _Distances(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, anchor: Tensor, targets: Tensor, probabilities: Tensor
    ) -> tuple[Tensor, Tensor]:
        expected = probabilities @ _values(probabilities)
        losses = targets.new_empty(len(targets))
        for rows in _chunks(anchor):
            left, weight = _left(targets[rows])
            logs = _logs(features, anchor[rows], probabilities[rows], torch.cat((left, left + 1), -1))
            losses[rows] = -torch.lerp(logs[..., 0], logs[..., 1], weight.squeeze(-1)).mean(-1)
        ctx.save_for_backward(anchor, targets, expected, probabilities)
        ctx.shape = features.shape
        return expected, losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor, loss_grad: Tensor) -> tuple[Optional[Tensor], ...]:
        anchor, targets, expected, probabilities = ctx.saved_tensors
        gradient = zeros(ctx.shape, like=probabilities)
        grad_rows, values = _rows(gradient), _values(probabilities)
        for rows in _chunks(anchor):
            per_side = (loss_grad[rows] / 4).view(-1, 1, 1)
            # d(expected) = p·(bin − expected); d(loss) = p − the two bins next to the target, by their weights.
            g = (values - expected[rows].unsqueeze(-1)).mul_(grad[rows].unsqueeze(-1)).add_(per_side)
            g *= probabilities[rows]
            left, weight = _left(targets[rows])
            g.scatter_add_(-1, torch.cat((left, left + 1), -1), torch.cat((weight - 1, -weight), -1) * per_side)
            grad_rows[_image_and_cell(anchor[rows], ctx.shape[2])] = g.flatten(1)
        return gradient, None, None, None


def _rows(features: Tensor) -> Tensor:
    """Return features (b, C, A) as rows of anchors (b, A, C), a view."""
    return features.permute(0, 2, 1)


def _image_and_cell(anchor: Tensor, n_anchors: int) -> tuple[Tensor, Tensor]:
    return anchor // n_anchors, anchor % n_anchors


def _bins(features: Tensor, anchor: Tensor) -> Tensor:
    """Return the logits (n, 4, R) of anchors (n,)."""
    return _rows(features)[_image_and_cell(anchor, features.shape[2])].unflatten(-1, (4, -1))


def _values(probabilities: Tensor) -> Tensor:
    """Return the distances (R,) of the bins."""
    return torch.arange(probabilities.shape[-1], dtype=probabilities.dtype, device=probabilities.device)


def _logs(features: Tensor, anchor: Tensor, p: Tensor, bins: Tensor) -> Tensor:
    """Return the logarithms of the probabilities p (n, 4, R) of anchors (n,) at some bins (n, 4, 2)."""
    probability = p.gather(-1, bins)
    if not probability.is_cuda and probability.min() > MIN_PROBABILITY:  # the check would synchronise a GPU
        return probability.log_()
    return _bins(features, anchor).log_softmax(-1).gather(-1, bins)


def _left(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bin left of each target (n, 4, 1), and the weight of the bin right of it."""
    left = targets.long()
    return left.unsqueeze(-1), (targets - left).unsqueeze(-1)


def _chunks(anchor: Tensor) -> Iterator[slice]:
    """Yield slices of anchors, whose last may reach beyond them."""
    size = ANCHORS_PER_CHUNK.get(anchor.device.type, MAX_ANCHORS)
    return (slice(start, start + size) for start in range(0, len(anchor), size))

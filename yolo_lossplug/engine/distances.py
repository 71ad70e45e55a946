# SPDX-License-Identifier: AGPL-3.0-or-later
"""What assigned anchors predict of their boxes, gathered from the head's outputs, and its distribution focal loss."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from yolo_lossplug.engine.memory import zeros_like

PART = {"cpu": 4096}
"""Anchors that are worked on at a time, by kind of device: on a CPU as many as its cache holds."""
LARGEST_PART = 2**20


def gather(features: Tensor, anchor: Tensor) -> Tensor:
    """Return the features of anchors.

    Args:
        features: Outputs of the head (b, C, A).
        anchor: Anchors (n,) among those of all images, each once.

    Returns:
        Their features (n, C).
    """
    return _Gather.apply(features, anchor)


def distances(features: Tensor, anchor: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distances that anchors predict from their centre to the sides of their box, and the loss of these.

    The loss is the distribution focal loss, −((r − t)·ln pₗ + (t − l)·ln pᵣ) with l ≤ t < r = l + 1, mean of the sides.
    Li et al., Generalized Focal Loss, NeurIPS 2020, Eq. 6.

    Args:
        features: Logits of the bins of four sides (b, 4·R, A), float32.
        anchor: Anchors (n,) among those of all images, each once.
        targets: Distances to predict (n, 4), in [0, R − 1).

    Returns:
        Expected distances (n, 4), and loss (n,).
    """
    return _Distances.apply(features, anchor, targets)


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
    def forward(ctx: Any, features: Tensor, anchor: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(features, anchor, targets)
        expected, losses = [targets[:0]], [targets[:0, 0]]
        for some, t in _parts(anchor, targets):
            x = _bins(features, some)
            logs = x.log_softmax(-1)
            left, weight = _left(t)
            taken = logs.gather(-1, left), logs.gather(-1, left + 1)
            losses.append(-(taken[0] * (1 - weight) + taken[1] * weight).mean((-2, -1)))
            expected.append(logs.exp_() @ _values(x))
        return torch.cat(expected), torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, slope: Tensor, loss_slope: Tensor) -> tuple[Optional[Tensor], ...]:
        features, anchor, targets = ctx.saved_tensors
        gradient = zeros_like(features)
        rows, start = _rows(gradient), 0
        for some, t in _parts(anchor, targets):
            end = start + len(some)
            x = _bins(features, some)
            p, values = x.softmax(-1), _values(x)
            per_side = (loss_slope[start:end] / 4).view(-1, 1, 1)
            # d(expected) = p·(bin − expected); d(loss) = p − the two bins next to the target, by their weights.
            g = (values - (p @ values).unsqueeze(-1)).mul_(slope[start:end].unsqueeze(-1)).add_(per_side).mul_(p)
            left, weight = _left(t)
            g.scatter_add_(-1, torch.cat((left, left + 1), -1), torch.cat((weight - 1, -weight), -1) * per_side)
            rows[_place(some, features.shape[2])] = g.flatten(1)
            start = end
        return gradient, None, None


def _rows(features: Tensor) -> Tensor:
    """Return features (b, C, A) by anchor (b, A, C)."""
    return features.permute(0, 2, 1)


def _place(anchor: Tensor, n_anchors: int) -> tuple[Tensor, Tensor]:
    return anchor // n_anchors, anchor % n_anchors


def _bins(features: Tensor, anchor: Tensor) -> Tensor:
    """Return the logits (n, 4, R) of anchors (n,)."""
    return _rows(features)[_place(anchor, features.shape[2])].unflatten(-1, (4, -1))


def _values(x: Tensor) -> Tensor:
    return torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)


def _left(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bin to the left of targets (n, 4, 1), and the weight of the one to the right."""
    left = targets.long()
    return left.unsqueeze(-1), (targets - left).unsqueeze(-1)


def _parts(anchor: Tensor, targets: Tensor) -> zip[tuple[Tensor, Tensor]]:
    size = PART.get(anchor.device.type, LARGEST_PART)
    return zip(anchor.split(size), targets.split(size))

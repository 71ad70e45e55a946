# SPDX-License-Identifier: AGPL-3.0-or-later
"""Geometry of paired boxes: row i of the predictions belongs to row i of the targets.

Every quantity is finite, and has a finite gradient, for every finite pair: zero-size, inverted, identical, far apart.
Nothing here is biased by an epsilon: a guard acts only where a denominator is smaller than `EPS`.
"""

from __future__ import annotations

from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor

SIZES = ("small", "medium", "large")
LIMITS = (32.0**2, 96.0**2)
"""Sizes of objects, and the minimum areas in pixels of medium and large ones, as in COCO's evaluation."""
EPS = 1e-14
"""Smallest denominator, in squared box units: a square of a millionth of a unit is far above it."""

MIN_SIDE = EPS**0.5
"""Smallest side that is divided by, in box units: ratios to it stay below the root of the largest float32."""

LIMIT = 1e8
"""Largest coordinate, in box units. Areas, and the squares of areas in gradients, of larger boxes overflow float32."""


class _Float32(torch.autograd.Function):
    """A half precision tensor as float32, whose gradient saturates where half precision would overflow."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.dtype = tensor.dtype
        return tensor.float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        limit = torch.finfo(ctx.dtype).max
        return gradients[0].clamp(-limit, limit).to(ctx.dtype)


def as_float(tensor: Tensor) -> Tensor:
    """Return a tensor as float32; float64 stays."""
    if tensor.dtype in (torch.float32, torch.float64):
        return tensor
    return _Float32.apply(tensor) if tensor.is_floating_point() else tensor.float()


def promote(boxes: Tensor) -> Tensor:
    """Return boxes as float32 (float64 stays), with coordinates clamped to ±`LIMIT`."""
    return as_float(boxes).clamp(-LIMIT, LIMIT)


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return numerator / denominator, and 0 with gradient 0 where the denominator is not above `EPS`."""
    return torch.where(denominator > EPS, numerator / denominator.clamp(min=EPS), torch.zeros_like(denominator))


def power(base: Tensor, exponent: float) -> Tensor:
    """Return base ** exponent of a base >= 0, finite and with finite gradient; rounding below 0 counts as 0.

    An exponent below 1 has an infinite derivative at 0: there a base up to `EPS` gives 0 with gradient 0.
    """
    if exponent >= 1 or exponent == 0:
        return base.clamp(min=0).pow(exponent)
    return torch.where(base > EPS, base.clamp(min=EPS).pow(exponent), torch.zeros_like(base))


class Pair:
    """Predicted and target boxes, and what several losses need of them, each computed at most once.

    Args:
        pred: Predicted boxes (N, 4) as x1, y1, x2, y2, any unit, with gradient.
        target: Target boxes (N, 4) in the same unit.
    """

    def __init__(self, pred: Tensor, target: Tensor) -> None:
        self.pred, self.target = pred, target
        self._corners = pred[:, :2], pred[:, 2:]
        self._target_corners = target[:, :2], target[:, 2:]

    @cached_property
    def size(self) -> Tensor:
        """Width and height of the predictions (N, 2); negative where a box is inverted."""
        return self._corners[1] - self._corners[0]

    @cached_property
    def target_size(self) -> Tensor:
        """Width and height of the targets (N, 2)."""
        return self._target_corners[1] - self._target_corners[0]

    @cached_property
    def offset(self) -> Tensor:
        """Vector from the centre of the target to the centre of the prediction (N, 2)."""
        return (torch.add(*self._corners) - torch.add(*self._target_corners)) / 2

    @cached_property
    def hull_size(self) -> Tensor:
        """Width and height of the smallest box that encloses all corners of both boxes (N, 2), never negative."""
        corners = (*self._corners, *self._target_corners)
        return reduce(torch.maximum, corners) - reduce(torch.minimum, corners)

    @cached_property
    def intersection(self) -> Tensor:
        """Area that both boxes cover (N,)."""
        (low, high), (target_low, target_high) = self._corners, self._target_corners
        # relu has gradient 0 at 0 where clamp has 1: a touching box is not pulled by a vanished overlap.
        sides = (torch.minimum(high, target_high) - torch.maximum(low, target_low)).relu()
        return sides[:, 0] * sides[:, 1]

    @cached_property
    def union(self) -> Tensor:
        """Area that either box covers (N,)."""
        return _area(self.size) + _area(self.target_size) - self.intersection

    @cached_property
    def iou(self) -> Tensor:
        """Intersection over union (N,), in [0, 1]; 0 where both boxes are empty."""
        return ratio(self.intersection, self.union)

    @cached_property
    def hull_area(self) -> Tensor:
        """Area of the enclosing box (N,)."""
        return _area(self.hull_size)

    def scaled(self, factor: float) -> Pair:
        """Return the pair with both boxes scaled by a factor about their own centres."""
        return Pair(*(_scale(*corners, factor) for corners in (self._corners, self._target_corners)))

    @cached_property
    def centre_distance(self) -> Tensor:
        """Squared distance of the centres over the squared diagonal of the enclosing box (N,), in [0, 1]."""
        return ratio(self.offset.square().sum(-1), self.hull_size.square().sum(-1))


def aspect_angle(size: Tensor) -> Tensor:
    """Return arctan(width / height) of sizes (N, 2) in radians (N,), finite with finite gradient at size zero."""
    width, height = size.unbind(-1)
    is_point = size.square().sum(-1) < EPS * EPS
    return torch.atan2(width, torch.where(is_point, torch.ones_like(height), height))


def relative_difference(size: Tensor, target_size: Tensor) -> Tensor:
    """Return |w − W| / max(w, W) and |h − H| / max(h, H) (N, 2), in [0, 1]; an inverted side counts as 0."""
    size, target_size = size.clamp(min=0), target_size.clamp(min=0)
    return (size - target_size).abs() / torch.maximum(size, target_size).clamp(min=MIN_SIDE)


def _scale(top_left: Tensor, bottom_right: Tensor, factor: float) -> Tensor:
    centre, half = (top_left + bottom_right) / 2, (bottom_right - top_left) * (factor / 2)
    return torch.cat((centre - half, centre + half), -1)


def _area(size: Tensor) -> Tensor:
    return size[:, 0] * size[:, 1]

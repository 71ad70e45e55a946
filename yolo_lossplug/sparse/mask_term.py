# SPDX-License-Identifier: AGPL-3.0-or-later
"""The mask loss of instance segmentation, computed inside boxes.

A mask is a linear combination of prototypes (Bolya et al., YOLACT: Real-time Instance Segmentation, ICCV 2019, Eq. 1),
and its loss the binary cross-entropy inside the box of its gt. The dense form draws each positive's mask over the whole
plane, and crops the loss afterwards. Here all positives of a gt share one rectangle, on which their masks are drawn by
one matrix product. Loss and gradients come from the same pass, so nothing but the gradients is saved for backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from yolo_lossplug.sparse.huge_pages import zeros

CHUNK = {"cpu": 2**17}
"""Pixels of masks in memory at a time, by device type: on a CPU as many as its cache holds."""
MAX_CHUNK = 2**24


class MaskedObjects(NamedTuple):
    """Gts with positives, whose coefficients follow each other.

    Attributes:
        n_positives: Number of positives of each gt (O,), on the CPU.
        image: Image of each gt (O,), on the CPU.
        rectangle: First column and row, last column and row plus 1 (O, 4) in pixels of the prototypes, on the CPU.
        plane: Which mask holds each gt (O,), on the CPU.
        number: Value (O,) of the gt's pixels in that mask, on the CPU; None for masks of one gt each.
        weight: Weight (O,) of each gt's loss.
    """

    n_positives: Tensor
    image: Tensor
    rectangle: Tensor
    plane: Tensor
    number: Optional[Tensor]
    weight: Tensor


def mask_sum(coefficients: Tensor, prototypes: Tensor, masks: Tensor, objects: MaskedObjects) -> Tensor:
    """Return Σ w·BCE(x, t) over each gt's positives and the pixels of its rectangle, x = coefficients · prototypes.

    Args:
        coefficients: Coefficients (n, M) of the positives, ordered by gt.
        prototypes: Prototypes (b, M, H, W).
        masks: Gt masks (m, H, W): numbers of gts, or one mask with values in [0, 1] per gt.
        objects: The gts of the positives.

    Returns:
        The sum (), float32.
    """
    return _MaskSum.apply(coefficients, prototypes, masks, objects)


class _Part(NamedTuple):
    """Some lines of a gt's rectangle.

    Attributes:
        rows: Which coefficients are those of its positives.
        place: Where the lines are in the prototypes (b, M, H, W).
        mask: The gt mask there (R,), float32.
        weight: Weight of the gt's loss ().
    """

    rows: slice
    place: tuple[int, slice, slice, slice]
    mask: Tensor
    weight: Tensor


class _MaskSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, prototypes: Tensor, masks: Tensor, objects: MaskedObjects) -> Tensor:
        ctx.save_for_backward(coefficients, prototypes, masks)
        ctx.objects = objects
        sums = [prototypes.new_zeros((), dtype=torch.float32)]
        for part in _parts(prototypes, masks, objects):
            x = coefficients[part.rows].float() @ prototypes[part.place].flatten(1).float()
            # Not Σ softplus(x) − Σ x·t, which cancels where masks fit.
            sums.append(binary_cross_entropy_with_logits(x, part.mask.expand_as(x), reduction="sum") * part.weight)
        return torch.stack(sums).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Optional[Tensor], ...]:
        coefficients, prototypes, masks = ctx.saved_tensors
        gradient = torch.zeros_like(coefficients, dtype=torch.float32)
        prototype_gradient = zeros(prototypes.shape, like=gradient)
        for part in _parts(prototypes, masks, ctx.objects):
            values, plane = coefficients[part.rows].float(), prototypes[part.place].flatten(1).float()
            slope = (values @ plane).sigmoid_().sub_(part.mask)
            weight = part.weight * scale
            gradient[part.rows] += (slope @ plane.T) * weight
            here = prototype_gradient[part.place]
            here += ((values * weight).T @ slope).view_as(here)
        return gradient.to(coefficients.dtype), prototype_gradient.to(prototypes.dtype), None, None


def _parts(prototypes: Tensor, masks: Tensor, objects: MaskedObjects) -> Iterator[_Part]:
    """Yield the gts, in parts of as many lines as the limit of pixels allows."""
    limit, end = CHUNK.get(prototypes.device.type, MAX_CHUNK), 0
    number = objects.plane if objects.number is None else objects.number
    table = [
        values.tolist() for values in (objects.n_positives, objects.image, objects.rectangle, objects.plane, number)
    ]
    for count, image, (left, top, right, bottom), plane, number, weight in zip(*table, objects.weight):
        rows, end = slice(end, end + count), end + count
        height = max(1, limit // max(1, count * (right - left)))
        for y in range(top, bottom if right > left else top, height):
            lines, columns = slice(y, min(y + height, bottom)), slice(left, right)
            mask = masks[plane, lines, columns].flatten()
            mask = mask if objects.number is None else mask == number
            yield _Part(rows, (image, slice(None), lines, columns), mask.float(), weight)

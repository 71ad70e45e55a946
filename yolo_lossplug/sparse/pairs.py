# SPDX-License-Identifier: AGPL-3.0-or-later
"""All pairs of a gt and an anchor inside its box, as one ragged list."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from yolo_lossplug.sparse.grid import Level


class Pairs(NamedTuple):
    """Pairs ordered by gt, then by anchor, as `nonzero` of the dense mask returns them.

    Attributes:
        row: Gt of each pair (P,).
        anchor: Anchor of each pair in its image (P,).
        first: First pair of each gt (G,).
        length: Number of pairs of each gt (G,).
    """

    row: Tensor
    anchor: Tensor
    first: Tensor
    length: Tensor


def n_cells(rectangles: Tensor) -> Tensor:
    """Return the number of cells (G,) in the rectangles (G, L, 4) of each gt."""
    return _sides(rectangles).prod(-1).sum(-1)


def enumerate_pairs(rectangles: Tensor, levels: tuple[Level, ...]) -> Pairs:
    """Return the cells of the rectangles (G, L, 4) of G gts as pairs."""
    sides = _sides(rectangles)
    widths, heights = sides.flatten(0, 1).unbind(-1)
    steps = torch.tensor([len(level.x) for level in levels], device=rectangles.device)
    offsets = torch.tensor([level.offset for level in levels], device=rectangles.device)
    corner = (offsets + rectangles[..., 1] * steps + rectangles[..., 0]).flatten()

    # Expand rectangles into rows of cells, and these into cells.
    rect = _repeat(heights)
    line = torch.arange(len(rect), device=rect.device) - _starts(heights)[rect]
    begin, length = corner[rect] + line * steps.repeat(len(rectangles))[rect], widths[rect]
    cells = _repeat(length)
    anchor = (begin - _starts(length))[cells] + torch.arange(len(cells), device=cells.device)
    count = sides.prod(-1).sum(-1)
    return Pairs(_repeat(count), anchor, _starts(count), count)


def members(pairs: Pairs, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pairs (M,) of some gts (R,), and the position (M,) of each pair's gt in `rows`."""
    count = pairs.length[rows]
    position = _repeat(count)
    begin = (pairs.first[rows] - _starts(count))[position]
    return begin + torch.arange(len(position), device=position.device), position


def filtered(pairs: Pairs, kept: Tensor) -> Pairs:
    """Return the pairs where a mask (P,) is true."""
    index = kept.nonzero().squeeze(1)
    row = pairs.row[index]
    count = torch.bincount(row, minlength=len(pairs.length))
    return Pairs(row, pairs.anchor[index], _starts(count), count)


def _sides(rectangles: Tensor) -> Tensor:
    """Return width and height in cells (G, L, 2), both 0 for an empty rectangle."""
    sides = (rectangles[..., 2:] - rectangles[..., :2]).clamp(min=0)
    return sides * (sides.prod(-1, keepdim=True) > 0)


def _repeat(counts: Tensor) -> Tensor:
    return torch.repeat_interleave(counts)


def _starts(counts: Tensor) -> Tensor:
    return counts.cumsum(0) - counts

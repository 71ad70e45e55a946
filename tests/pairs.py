# SPDX-License-Identifier: AGPL-3.0-or-later
"""Pairs of boxes that break losses: never only squares, never only overlapping, and every degenerate kind."""

import torch

KINDS = {
    "same": ((0, 0, 4, 2), (0, 0, 4, 2)),
    "nested": ((1, 1, 3, 2), (0, 0, 6, 4)),
    "overlapping": ((0, 0, 4, 2), (1, -1, 4, 5)),
    "same centre": ((1, 0, 3, 6), (0, 2, 4, 4)),
    "touching": ((0, 0, 2, 3), (2, 0, 5, 3)),
    "apart": ((0, 0, 1, 2), (50, 70, 53, 71)),
    "tall and wide": ((0, 0, 1, 40), (0, 0, 40, 1)),
    "point": ((2, 2, 2, 2), (0, 0, 4, 3)),
    "point on its own": ((9, 9, 9, 9), (0, 0, 4, 3)),
    "two points": ((2, 2, 2, 2), (5, 6, 5, 6)),
    "same point": ((2, 2, 2, 2), (2, 2, 2, 2)),
    "zero width": ((2, 0, 2, 4), (0, 0, 4, 4)),
    "zero height": ((0, 2, 4, 2), (0, 0, 4, 4)),
    "both zero height": ((0, 2, 4, 2), (1, 2, 6, 2)),
    "crossed lines": ((0, 2, 4, 2), (2, 0, 2, 4)),
    "inverted": ((4, 3, 0, 0), (0, 0, 4, 3)),
    "inverted in x": ((4, 0, 0, 3), (0, 0, 4, 3)),
    "both inverted": ((4, 3, 0, 0), (5, 3, 1, 0)),
    "inverted and small": ((1e5, 0, 0, 3), (0, 0, 1e-6, 1e-6)),
    "tiny": ((0, 0, 1e-6, 2e-6), (0, 0, 2e-6, 1e-6)),
    "same and tiny": ((0, 0, 1e-6, 2e-6), (0, 0, 1e-6, 2e-6)),
    "tiny in huge": ((1, 1, 1 + 1e-6, 1 + 1e-6), (-1e5, -1e5, 1e5, 1e5)),
    "huge": ((-1e5, 0, 1e5, 1e5), (0, 0, 1e5, 2e5)),
    "huge and apart": ((-1e5, -1e5, -1e5 + 1, -1e5 + 1), (1e5, 1e5, 1e5 + 2, 1e5 + 1)),
    "largest": ((-3e38, -3e38, 3e38, 3e38), (0, 0, 3e38, 1)),
    "largest inverted": ((3e38, 3e38, -3e38, -3e38), (-3e38, 0, -3e38, 1)),
    "denormal": ((0, 0, 1e-40, 1e-40), (0, 0, 1e-40, 2e-40)),
    "needle": ((0, 0, 1e5, 1e-20), (0, 0, 1e-20, 1e5)),
}


def boxes(dtype=torch.float32, device="cpu"):
    """Return predictions and targets (N, 4) of every kind that the dtype can hold."""
    limit = torch.finfo(dtype).max
    pred, target = (torch.tensor([kind[side] for kind in KINDS.values()], dtype=torch.float64) for side in (0, 1))
    return pred.clamp(-limit, limit).to(device, dtype), target.clamp(-limit, limit).to(device, dtype)

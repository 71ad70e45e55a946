# SPDX-License-Identifier: AGPL-3.0-or-later
"""Overlap of objects, as NMS measures it: IoU, of rotated boxes the host's ProbIoU."""

from __future__ import annotations

from typing import Callable

import numpy as np
import torch

from yolo_lossplug.ultralytics_hook.run.counts import overlaps


def overlap_of(boxes: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return a function that measures the overlap (P,) of boxes, given by two lists of indices (P,).

    Args:
        boxes: Boxes (G, 4), x1 y1 x2 y2, or (G, 5), x y w h and an angle.
    """
    rows = torch.from_numpy(boxes)

    def overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        measured: np.ndarray = overlaps(rows[torch.from_numpy(one)], rows[torch.from_numpy(other)]).numpy()
        return measured

    return overlap

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Regions in the loss: the class term of silenced classes has weight 0 at anchors and queries that are not positive.

The regions of a batch are known while a model computes its loss. A criterion has a hook on its class loss, which is the
same member in every supported release, so that no method of the criterion is overridden.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Optional

import torch
from torch import Tensor

from yolo_lossplug.regions import KEY, ImageRegions, lies_in_region, silenced_cells
from yolo_lossplug.registry import LossPlugError


class BatchRegions:
    """The regions of a batch.

    Args:
        images: Regions of each image.
        size: Height and width of the network input in pixels.
    """

    def __init__(self, images: tuple[ImageRegions, ...], size: tuple[int, int]) -> None:
        self.images, self.size = images, size
        self._cells: dict[tuple[Any, ...], Tensor] = {}

    def cells(self, strides: tuple[float, ...], device: torch.device) -> Tensor:
        """Return which classes are silenced at which anchors (b, classes, A); cached, as branches share it."""
        key = (strides, device)
        if key not in self._cells:
            shapes = [(round(self.size[0] / stride), round(self.size[1] / stride)) for stride in strides]
            self._cells[key] = silenced_cells(self.images, self.size, shapes, device)
        return self._cells[key]

    def count(self, strides: Any, like: Tensor) -> Tensor:
        """Return the number of anchors of all classes, and of those that are silenced (2,), of the type of a tensor."""
        cells = self.cells(tuple(float(stride) for stride in strides), like.device)
        return torch.stack((torch.full_like(like[0], cells.numel()), cells.sum().to(like.dtype)))

    def queries(self, boxes: Tensor) -> Tensor:
        """Return which classes are silenced at queries (b, queries, classes) from their boxes (b, queries, 4), xywh."""
        boxes = boxes.detach().float()
        half = boxes[..., 2:] / 2
        corners = torch.cat((boxes[..., :2] - half, boxes[..., :2] + half), -1)
        return torch.stack([lies_in_region(one, regions, (1, 1)) for one, regions in zip(corners, self.images)])


_current: ContextVar[Optional[BatchRegions]] = ContextVar("regions", default=None)


def current() -> Optional[BatchRegions]:
    """Return the regions of the batch whose loss is computed, None if its data have none, or it has no region."""
    return _current.get()


@contextmanager
def regions_of(batch: Mapping[str, Any]) -> Iterator[Optional[BatchRegions]]:
    """Let criteria know the regions of a batch, if it has any."""
    images = batch.get(KEY) or ()
    regions = BatchRegions(tuple(images), tuple(batch["img"].shape[2:])) if images else None
    token = _current.set(regions if any(len(one.kind) for one in images) else None)
    try:
        yield regions
    finally:
        _current.reset(token)


def silence(criterion: Any, strides: Any) -> None:
    """Make the class loss of a criterion leave out what regions silence, once.

    Args:
        criterion: A criterion with a class loss `bce` of logits and targets (b, A, classes).
        strides: Strides of its levels.
    """
    module = criterion.bce
    if getattr(module, "lossplug", None) is not None:
        return
    steps = tuple(float(stride) for stride in strides)

    def silenced(pred: Tensor, target: Tensor) -> Optional[Tensor]:
        return silenced_elements(target, steps) if current() else None

    def leave_out(_: Any, args: tuple[Tensor, Tensor], result: Tensor) -> Optional[Tensor]:
        mask = silenced(*args)
        return None if mask is None else result.masked_fill(mask, 0)

    module.lossplug = silenced
    module.register_forward_hook(leave_out)


def silenced_elements(target: Tensor, strides: tuple[float, ...]) -> Tensor:
    """Return which elements of targets (b, A, classes) are silenced: of anchors without a target above 0."""
    regions = current()
    assert regions is not None
    cells = regions.cells(strides, target.device).permute(0, 2, 1)
    if cells.shape != target.shape:
        raise LossPlugError(
            f"ignore and annotated cannot be used with this model: its {target.shape[1]} anchors of "
            f"{target.shape[2]} classes are not those of the levels {strides}, {tuple(cells.shape[1:])}. Remove them."
        )
    return cells & (target.amax(-1, keepdim=True) <= 0)


def silenced_background(strides: Any, anchor: Tensor, score: Tensor) -> Optional[Tensor]:
    """Return which elements of logits (b, classes, A) are silenced, None if none is.

    Args:
        strides: Strides of the levels.
        anchor: Assigned anchors (n,) among those of all images.
        score: Their targets (n,).
    """
    regions = current()
    if regions is None:
        return None
    cells = regions.cells(tuple(float(stride) for stride in strides), anchor.device).clone()
    positive = anchor[score > 0]
    cells.permute(0, 2, 1)[positive // cells.shape[2], positive % cells.shape[2]] = False
    return cells

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Regions in the host's plots of batches: hatched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

import torch
from torch import Tensor

from yolo_lossplug.regions import KEY, silenced_cells

STRIPE = 4
"""Width of a stripe in pixels."""


def plot_hatched(stock: Callable[..., Any], owner: Any, batch: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Plot a batch as the host does, with its regions hatched."""
    if batch.get(KEY) is not None:
        batch = {**batch, "img": hatched(batch)}
    return stock(owner, batch, *args, **kwargs)


def hatched(batch: Mapping[str, Any]) -> Tensor:
    """Return the images (b, channels, h, w) of a batch, with stripes of half their brightness where regions are."""
    images = batch["img"]
    height, width = images.shape[2:]
    regions = [one._replace(table=one.table.any(1, keepdims=True)) for one in batch[KEY]]
    where = silenced_cells(regions, (height, width), [(height, width)], images.device).view(-1, 1, height, width)
    x, y = (torch.arange(n, device=images.device) for n in (width, height))
    is_stripe = (x + y.unsqueeze(1)) // STRIPE % 2 == 0
    return torch.where(where & is_stripe, (images.float() / 2).to(images.dtype), images)

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which share of the anchors is silenced in a dataset, before augmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from yolo_lossplug.regions import ImageRegions, silenced_cells, upright_corners
from yolo_lossplug.selection.regions import Rules

MAX_IMAGES = 1000
"""Images that the share is measured in, evenly spread over the dataset."""
CELLS = 80
"""Cells along each side of an image in which it is measured: anchors of stride 8 in an image of 640 pixels."""


def silenced_share(dataset: Any) -> np.ndarray:
    """Return the share of the anchors of a dataset that is silenced, by class (classes,)."""
    of = dataset.lossplug
    step = max(1, -(-len(dataset.labels) // MAX_IMAGES))
    images = [regions_of_label(of, label) for label in dataset.labels[::step]]
    total = np.zeros(of.rules.count)
    for one in images:
        if len(one.kind):
            cells = silenced_cells([one], (CELLS, CELLS), [(CELLS, CELLS)], torch.device("cpu"))
            total += cells[0].float().mean(1).double().numpy()
    return total / max(1, len(images))


def regions_of_label(of: Any, label: dict[str, Any]) -> ImageRegions:
    """Return the regions of an image, upright and as shares of it, from its label and what its dataset knows."""
    cls = np.asarray(label["cls"]).reshape(-1).astype(np.int64)
    is_ignored = np.isin(cls, list(of.rules.kinds))
    centre, half = label["bboxes"][is_ignored, :2], label["bboxes"][is_ignored, 2:] / 2
    boxes = np.concatenate((centre - half, centre + half), 1)
    kind = [of.rules.kinds[one] for one in cls[is_ignored].tolist()]
    whole = of.kind_of_image(label["im_file"])
    if whole is not None:
        boxes, kind = np.concatenate((boxes, [[0, 0, 1, 1]])), [*kind, whole]
    return ImageRegions(upright_corners(boxes.astype(np.float32)), np.array(kind, np.int64), of.table)


def silence_in_words(rules: Rules, dataset: Any) -> str:
    """Return what is not taught, as the banner has it; of no share where a dataset is not the host's own."""
    if not hasattr(dataset, "lossplug"):
        return rules.describe()
    return f"{rules.describe()}, {100 * silenced_share(dataset).mean():.1f} % of anchors silenced"

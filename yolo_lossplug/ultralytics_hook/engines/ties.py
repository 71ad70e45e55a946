# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which differences between two assignments are ties: what is equal up to rounding may be selected either way.

Kernels evaluate powers and arctangents by another library than PyTorch does, so that metrics differ in their last
places. Two anchors of a gt may be exchanged if their metrics, computed in float64, differ by at most 1e-5 of the larger
one, or are all below the smallest normal float32, which one side may flush to 0; in a contest the same holds of the
overlaps of both gts with the anchor. Nothing else may differ.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

TIE = 1e-5
"""Maximum relative difference of two values that are tied."""
MAX_EXCHANGED = 1000
"""Number of differences from which on none is looked at: they are no ties."""


class Exchanged(NamedTuple):
    """Numbers of anchors that two assignments exchange in ties, and of those that differ otherwise."""

    tied: int
    wrong: int


class AssignerInputs(NamedTuple):
    """What the host's assigner is called with: scores, boxes (b, A, ...) and centres (A, 2) of anchors, and the gts."""

    scores: Tensor
    boxes: Tensor
    points: Tensor
    labels: Tensor
    gts: Tensor
    mask: Tensor


def exchanged_anchors(
    assigner: Any, inputs: AssignerInputs, expected: Sequence[Tensor], actual: Sequence[Tensor]
) -> Exchanged:
    """Return how many anchors differ between foreground and gt indices (b, A) of the host's assigner and an engine."""
    one, other = (torch.where(foreground, slot.long(), -1) for foreground, slot in (expected[:2], actual[:2]))
    differs = one != other
    total, wrong = int(differs.sum()), 0
    if total > MAX_EXCHANGED:
        return Exchanged(0, total)
    for image in differs.any(1).nonzero().flatten().tolist():
        anchors = differs[image].nonzero().flatten()
        metrics, overlaps = _in_float64(assigner, inputs, image, anchors)
        wrong += _wrong(one[image, anchors].tolist(), other[image, anchors].tolist(), metrics, overlaps)
    return Exchanged(total - wrong, wrong)


def _in_float64(assigner: Any, inputs: AssignerInputs, image: int, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Return metrics and overlaps (n, m) of all gts of an image with some anchors, on the CPU."""
    here = slice(image, image + 1)
    scores, boxes = inputs.scores[here, anchors].double(), inputs.boxes[here, anchors].double()
    n = inputs.gts.shape[1]
    mask = inputs.mask[here].bool().expand(1, n, len(anchors))
    sizes = {name: getattr(assigner, name, None) for name in ("bs", "n_max_boxes")}
    assigner.bs, assigner.n_max_boxes = 1, n
    try:
        with torch.autocast(scores.device.type, enabled=False):
            found = assigner.get_box_metrics(scores, boxes, inputs.labels[here], inputs.gts[here].double(), mask)
    finally:
        vars(assigner).update(sizes)
    metrics, overlaps = (values[0].double().cpu() for values in found[:2])
    return metrics, overlaps


def _wrong(one: list[int], other: list[int], metrics: Tensor, overlaps: Tensor) -> int:
    """Return how many anchors of an image, with gts by either side, -1 for none, are not exchanged in ties."""
    wrong, by_gt = 0, defaultdict(lambda: ([], []))  # type: ignore[var-annotated]
    for i, (expected, actual) in enumerate(zip(one, other)):
        if min(expected, actual) >= 0:
            wrong += not is_tie([float(overlaps[expected, i])], [float(overlaps[actual, i])])
        else:
            gt = max(expected, actual)
            by_gt[gt][actual >= 0].append(float(metrics[gt, i]))
    return wrong + sum(len(lost) + len(gained) for lost, gained in by_gt.values() if not is_tie(lost, gained))


def is_tie(lost: Sequence[float], gained: Sequence[float]) -> bool:
    """Return whether values may be exchanged for others.

    >>> is_tie([0.5], [0.500001]), is_tie([0.5], [0.51]), is_tie([0.5], []), is_tie([1e-42], [])
    (True, False, False, True)
    """
    values = [*lost, *gained]
    if max(values) < torch.finfo(torch.float32).tiny:
        return True
    return bool(lost and gained) and max(values) - min(values) <= TIE * max(values)


@contextlib.contextmanager
def seen_inputs(assigner: Any) -> Iterator[list[AssignerInputs]]:
    """Return a context in which what an assigner is called with is appended to a list."""
    seen: list[AssignerInputs] = []
    handle = assigner.register_forward_pre_hook(lambda module, args: seen.append(AssignerInputs(*args[:6])))
    try:
        yield seen
    finally:
        handle.remove()


def assigned_as(assigner: Any, actual: Sequence[Tensor]) -> Any:
    """Return a context in which the host's assigner assigns what an engine has assigned, and scores it by itself."""
    stock, (foreground, slot) = assigner.get_pos_mask, actual[:2]

    def get_pos_mask(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        mask, metrics, overlaps = stock(*args, **kwargs)
        if len(mask) == len(foreground):  # not one image at a time
            index = slot.long().clamp(min=0).unsqueeze(1)
            mask = torch.zeros_like(mask).scatter_(1, index, foreground.unsqueeze(1).to(mask.dtype))
        return mask, metrics, overlaps

    return mock.patch.object(assigner, "get_pos_mask", get_pos_mask)

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether an engine's step is the host's: the same assignment up to ties, the same loss and gradients.

The trial before a run, `lossplug bench` and the tests all ask this. What is equal up to rounding is tied: kernels
evaluate powers and arctangents by another library than PyTorch does, so that metrics differ in their last places. Two
anchors of a gt may be exchanged if their metrics, computed in float64, differ by at most 1e-5 of the larger one, or are
all below the smallest normal float32, which one side may flush to 0; in a contest the same holds of the overlaps of
both gts with the anchor. Nothing else may differ.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Optional
from unittest import mock

import torch
from torch import Tensor
from ultralytics.utils.loss import v8OBBLoss

from yolo_lossplug.ultralytics_hook.derived import Derived, derive

TOLERANCE, GRAD_TOLERANCE = 1e-5, 1e-4
"""Maximum relative error of the loss, and of its gradients in norm, with which an engine may run."""
HALF_TOLERANCE, HALF_GRAD_TOLERANCE = 1e-4, 5e-3
"""The same in half precision, to which the host rounds gradients on their way."""
TIE = 1e-5
"""Maximum relative difference of two values that are tied."""
MAX_EXCHANGED = 1000
"""Number of differences from which on none is looked at: they are no ties."""

Inputs = Callable[[], tuple[dict[str, Any], dict[str, Tensor]]]
"""Makes predictions as a criterion reads them, and the outputs of the head among them, as new leaves."""


class Agreement(NamedTuple):
    """Where steps of an engine deviate, in words, and how many anchors are exchanged in ties."""

    differs: list[str]
    n_exchanged: int = 0


class Taken(NamedTuple):
    """A step: assigned targets, None of rotated boxes, terms of the loss, and gradients by output of the head."""

    assigned: Any
    loss: Tensor
    grads: dict[str, Optional[Tensor]]


class Reading(Derived):
    """A criterion that says that it reads the assignment, which engines leave out where nothing does."""

    def loss(self, preds: Any, batch: Any) -> Any:
        """Return what the host's method returns."""
        return super().loss(preds, batch)  # type: ignore[misc]


def tolerance_error(error: float, grad_error: float) -> Optional[str]:
    """Return which errors are beyond the tolerances, None if none is."""
    if error <= TOLERANCE and grad_error <= GRAD_TOLERANCE:
        return None
    return f"its loss would differ by {error:.0e} and its gradients by {grad_error:.0e} from those of the host"


def compared_steps(one: Any, other: Any, inputs: Inputs, batch: dict[str, Any], context: Any = None) -> Agreement:
    """Return whether a criterion of the host and one with an engine in it agree on a batch.

    The latter is told to return its assignment from now on. `context` makes the context of a step, as of autocast.
    """
    context = context or contextlib.nullcontext
    derive(Reading, other)
    with seen_inputs(one.assigner) as seen:
        expected = _taken(one, inputs, batch, context)
    actual = _taken(other, inputs, batch, context)
    texts, exchanged = [], Exchanged(0, 0)
    if expected.assigned is not None:
        exchanged = exchanged_anchors(one.assigner, seen[0], expected.assigned, actual.assigned)
    if exchanged.wrong:
        n_positives = int(expected.assigned[0].sum())
        texts.append(f"assignment of {exchanged.wrong} anchors, where {n_positives} are positive")
    if exchanged.tied and not exchanged.wrong:  # the loss of the same assignment
        with assigned_as(one.assigner, actual.assigned):
            expected = _taken(one, inputs, batch, context)
    return Agreement([*texts, *_differences(expected, actual)], exchanged.tied)


def _taken(leaf: Any, inputs: Inputs, batch: dict[str, Any], context: Any) -> Taken:
    preds, leaves = inputs()
    assigned = None
    with context():
        if not isinstance(leaf, v8OBBLoss):  # whose assignment shows in the gradients alone
            assigned, loss, _ = leaf.get_assigned_targets_and_loss(preds, batch)
        if leaves.keys() - {"boxes", "scores"}:
            loss, _ = leaf.loss(preds, batch)
    grads = torch.autograd.grad(loss.sum(), tuple(leaves.values()), allow_unused=True)
    return Taken(assigned, loss.detach().float(), dict(zip(leaves, grads)))


def _differences(expected: Taken, actual: Taken) -> list[str]:
    """Return where loss and gradients deviate."""
    is_half = any(grad is not None and grad.dtype != torch.float32 for grad in expected.grads.values())
    rtol, grad_rtol = (HALF_TOLERANCE, HALF_GRAD_TOLERANCE) if is_half else (TOLERANCE, GRAD_TOLERANCE)
    texts = []
    if not torch.allclose(actual.loss, expected.loss, rtol=rtol, atol=1e-6):
        texts.append(f"loss {_listed(actual.loss)} instead of {_listed(expected.loss)}")
    for name, grad in expected.grads.items():
        error = relative_error(grad, actual.grads[name])
        if not error <= grad_rtol:
            texts.append(f"gradients of {name} by {error:.1e} of their norm")
    return texts


def _listed(values: Tensor) -> str:
    return " ".join(f"{value:.6g}" for value in values.tolist())


def relative_error(expected: Optional[Tensor], actual: Optional[Tensor]) -> float:
    """Return the relative error of a tensor in norm; None is a gradient of 0."""
    if expected is None or actual is None:  # the host's loss may not depend on the boxes where there is no gt
        other = actual if expected is None else expected
        return 0.0 if other is None else float(other.float().norm())
    return float((actual.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-9))


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
        try:
            metrics, overlaps = _in_float64(assigner, inputs, image, anchors)
        except TypeError:  # metrics that read masks or keypoints as well
            return Exchanged(0, total)
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

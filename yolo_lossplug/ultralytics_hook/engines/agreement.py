# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether an engine's step is the host's: the same assignment up to ties, the same loss and gradients.

The trial before a run, `lossplug bench` and the tests all ask this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor
from ultralytics.utils.loss import v8OBBLoss

from yolo_lossplug.ultralytics_hook.derived import Derived, derive
from yolo_lossplug.ultralytics_hook.engines.ties import Exchanged, assigned_as, exchanged_anchors, seen_inputs

TOLERANCE, GRAD_TOLERANCE = 1e-5, 1e-4
"""Maximum relative error of the loss, and of its gradients in norm, with which an engine may run."""
HALF_TOLERANCE, HALF_GRAD_TOLERANCE = 1e-4, 5e-3
"""The same in half precision, to which the host rounds gradients on their way."""

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

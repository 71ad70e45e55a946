# SPDX-License-Identifier: AGPL-3.0-or-later
"""An engine beside the host's own step on the same batches: are they identical, and what does each take?

A step is the criterion's forward and the backward to the outputs of the head. Nothing is timed that differs.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Sequence
from typing import Any, Callable, Optional
from unittest import mock

import torch
from torch import Tensor

from yolo_lossplug.ultralytics_hook.attached import on_criterion
from yolo_lossplug.ultralytics_hook.derived import Derived, derive
from yolo_lossplug.ultralytics_hook.engines.choice import REFERENCE, TRITON, use_kernels
from yolo_lossplug.ultralytics_hook.engines.install import install_fast_step
from yolo_lossplug.ultralytics_hook.engines.parity import GRAD_TOLERANCE, TOLERANCE
from yolo_lossplug.ultralytics_hook.engines.parts import install_part, proven_part
from yolo_lossplug.ultralytics_hook.originals import v8OBBLoss
from yolo_lossplug.ultralytics_hook.running import branches
from yolo_lossplug.ultralytics_hook.trial.problems import Problem

MAX_PAIRS = 60
HALF_TOLERANCE, HALF_GRAD_TOLERANCE = 1e-4, 5e-3
"""As those of `parity`, in half precision, to which gradients themselves are rounded."""


class Reading(Derived):
    """A criterion that says that it reads the assignment, which engines leave out where nothing does."""

    def loss(self, preds: Any, batch: Any) -> Any:
        """Return what the host's method returns."""
        return super().loss(preds, batch)  # type: ignore[misc]


def set_engine(leaf: Any, engine: str) -> None:
    """Make a criterion of the host take every step of an engine, and raise where the engine cannot."""
    if engine != REFERENCE:
        install_fast_step(leaf, is_lazy=False)
        install_part(leaf, proven_part(leaf))
    if engine == TRITON:
        use_kernels(leaf, is_trial=True)


def engine_criterion(model: Any, engine: str) -> Any:
    """Return a criterion of a model without keys of ours, whose steps an engine takes."""
    criterion = model.init_criterion()
    for _, leaf in branches(criterion):
        set_engine(leaf, engine)
    return criterion


def dtype_of(amp: bool) -> torch.dtype:
    """Return the type of the head's outputs."""
    return torch.float16 if amp else torch.float32


def autocast(device: torch.device, amp: bool) -> Any:
    """Return the context of a step."""
    return torch.autocast(device.type, torch.float16) if amp else contextlib.nullcontext()


def synchronise(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def inputs_of(problem: Problem, amp: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return predictions as a criterion reads them, and the outputs of the head among them, as new leaves."""
    dtype = dtype_of(amp)
    outputs = {"boxes": problem.boxes, "scores": problem.scores, **problem.more}
    leaves = {name: x.detach().to(dtype).requires_grad_() for name, x in outputs.items()}
    return {**leaves, "feats": [f.to(dtype) for f in problem.feats]}, leaves


def preds_of(criterion: Any, problem: Problem, amp: bool) -> tuple[Any, tuple[Tensor, ...]]:
    """Return predictions as a criterion takes them, and the outputs of the head, one pair for each branch."""
    names = [name for name, _ in branches(criterion)]
    made = {name: inputs_of(problem, amp) for name in names}
    leaves = tuple(x for _, outputs in made.values() for x in outputs.values())
    return made[names[0]][0] if names == ["main"] else {name: preds for name, (preds, _) in made.items()}, leaves


def timed_step(criterion: Any, problem: Problem, amp: bool) -> float:
    """Take a step of a criterion, and return its seconds; each branch of an end-to-end head has outputs of its own."""
    preds, device = preds_of(criterion, problem, amp)[0], problem.scores.device
    synchronise(device)
    start = time.perf_counter()
    with autocast(device, amp):
        loss, _ = criterion(preds, problem.batch)
    loss.sum().backward()
    synchronise(device)
    return time.perf_counter() - start


def engine_mismatches(stock: Any, ours: Any, problem: Problem, amp: bool = False) -> list[str]:
    """Return where an engine deviates from the host on a batch: assignments, loss and gradients to the head's outputs.

    Ours is a criterion of the same kind with the engine in it, which is told to return its assignment from now on.
    """
    texts = []
    for (branch, stock_leaf), (_, our_leaf) in zip(branches(stock), branches(ours)):
        derive(Reading, our_leaf)
        where = "" if branch == "main" else f" ({branch})"
        is_interpreted = on_criterion(our_leaf).kernels is not None and not problem.scores.is_cuda
        with gpu_ties() if is_interpreted else contextlib.nullcontext():
            texts += [f"{text}{where}" for text in _branch_differences((stock_leaf, our_leaf), problem, amp)]
    return texts


def gpu_ties() -> Any:
    """Return a context in which `torch.topk` breaks ties by the lowest index, as on GPUs, which kernels are for."""
    made: Any = torch.return_types

    def topk(values: Tensor, k: int, dim: int = -1, largest: bool = True) -> Any:
        order = values.sort(dim=dim, descending=largest, stable=True)
        return made.topk(side.narrow(dim, 0, k) for side in order)

    return mock.patch.object(torch, "topk", topk)


def _branch_differences(leaves: tuple[Any, Any], problem: Problem, amp: bool) -> list[str]:
    (assigned, loss, grads), (our_assigned, our_loss, our_grads) = (_taken(leaf, problem, amp) for leaf in leaves)
    texts = []
    if assigned is not None:
        (foreground, slot), (our_foreground, our_slot) = assigned[:2], our_assigned[:2]
        n = int((foreground != our_foreground).sum()) + int((slot != our_slot)[foreground & our_foreground].sum())
        texts += [f"assignment of {n} anchors, where {int(foreground.sum())} are positive"] if n else []
    rtol, grad_rtol = (HALF_TOLERANCE, HALF_GRAD_TOLERANCE) if amp else (TOLERANCE, GRAD_TOLERANCE)
    if not torch.allclose(our_loss, loss, rtol=rtol, atol=1e-6):
        texts.append(f"loss {_listed(our_loss)} instead of {_listed(loss)}")
    for name, grad, our_grad in zip(("boxes", "scores", *problem.more), grads, our_grads):
        error = _relative_error(grad, our_grad)
        if not error <= grad_rtol:
            texts.append(f"gradients of {name} by {error:.1e} of their norm")
    return texts


def _taken(leaf: Any, problem: Problem, amp: bool) -> tuple[Any, Tensor, tuple[Optional[Tensor], ...]]:
    preds, inputs = inputs_of(problem, amp)
    assigned = None
    with autocast(problem.scores.device, amp):
        if not isinstance(leaf, v8OBBLoss):  # whose assignment shows in the gradients alone
            assigned, loss, _ = leaf.get_assigned_targets_and_loss(preds, problem.batch)
        if problem.more:
            loss, _ = leaf.loss(preds, problem.batch)
    grads = torch.autograd.grad(loss.sum(), tuple(inputs.values()), allow_unused=True)
    return assigned, loss.detach().float(), grads


def _listed(values: Tensor) -> str:
    return " ".join(f"{value:.6g}" for value in values.tolist())


def _relative_error(expected: Optional[Tensor], actual: Optional[Tensor]) -> float:
    """Return the norm of a difference relative to that of what is expected; no gradient is a gradient of zero."""
    if expected is None or actual is None:
        other = actual if expected is None else expected
        return 0.0 if other is None or not other.any() else float("inf")
    return float((actual.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-9))


def alternate(
    sides: tuple[Any, Any],
    problems: Sequence[Any],
    n_pairs: int,
    seconds: float,
    take: Callable[[Any, Any], float],
    tick: Callable[[], None] = lambda: None,
) -> tuple[list[float], tuple[list[float], list[float]]]:
    """Take steps of two sides in turn, in the order ABBA.

    Args:
        sides: Both sides.
        problems: Batches, used in rotation.
        n_pairs: Minimum number of pairs.
        seconds: Minimum time, if that is not `MAX_PAIRS` pairs.
        take: Takes a step of a side, and returns its seconds.
        tick: Called after each step.

    Returns:
        Seconds of one first step of each side, and of all others by side.
    """

    def timed(side: Any, problem: Any) -> float:
        result = take(side, problem)
        tick()
        return result

    first = [timed(side, problems[0]) for side in sides]
    times: tuple[list[float], list[float]] = ([], [])
    begin = time.perf_counter()
    while len(times[0]) < n_pairs or (time.perf_counter() - begin < seconds and len(times[0]) < MAX_PAIRS):
        i = len(times[0])
        for which in ((0, 1), (1, 0))[i % 2]:
            times[which].append(timed(sides[which], problems[i % len(problems)]))
    return first, times


def quartiles(values: Sequence[float]) -> list[float]:
    """Return quartiles: low, median, high."""
    return statistics.quantiles(values, n=4) if len(values) > 1 else [*values] * 3


def time_summary(times: tuple[Sequence[float], Sequence[float]]) -> dict[str, Any]:
    """Return milliseconds of both sides with quartiles, and the ratio of the pairs, all as quartiles."""
    stock, ours = ([1e3 * value for value in quartiles(side)] for side in times)
    ratio = quartiles([theirs / ours for theirs, ours in zip(*times)])
    is_steady = ratio[2] - ratio[0] <= 0.3 * ratio[1]
    return {"stock_ms": stock, "ours_ms": ours, "ratio": ratio, "pairs": len(times[0]), "is_steady": is_steady}


def training_step(model: Any, optimizer: Any, criterion: Any, batch: dict[str, Any], amp: bool) -> float:
    """Take a whole training step, forward to optimiser, and return its seconds."""
    device = batch["img"].device
    synchronise(device)
    start = time.perf_counter()
    with autocast(device, amp):
        loss, _ = criterion(model(batch["img"]), batch)
    loss.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    synchronise(device)
    return time.perf_counter() - start


def set_deterministic() -> None:
    """Set what the host's trainer sets."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

# SPDX-License-Identifier: AGPL-3.0-or-later
"""An engine beside the host's own step on the same batches: are they identical, and what does each take?

A step is the criterion's forward and the backward to the outputs of the head. Nothing is timed that differs.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Callable
from unittest import mock

import torch
from torch import Tensor

from yolo_lossplug.ultralytics_hook.attached import on_criterion
from yolo_lossplug.ultralytics_hook.engines.agreement import Agreement, compared_steps
from yolo_lossplug.ultralytics_hook.engines.choice import REFERENCE, TRITON, use_kernels
from yolo_lossplug.ultralytics_hook.engines.install import install_fast_step, install_part, proven_part
from yolo_lossplug.ultralytics_hook.running import branch_criteria, branches
from yolo_lossplug.ultralytics_hook.trial.problems import Problem

MAX_PAIRS = 60
MAX_SPREAD = 0.3
"""Distance of the quartiles, as a share of the median, from which times are unsteady."""
QUEUED = 10
"""Steps between two events of a GPU."""


def engine_criterion(model: Any, engine: str) -> Any:
    """Return a criterion of a model without keys of ours, whose every step an engine takes, and raises if it cannot."""
    criterion = model.init_criterion()
    for leaf in branch_criteria(criterion) if engine != REFERENCE else ():
        install_fast_step(leaf, is_lazy=False)
        install_part(leaf, proven_part(leaf))
        if engine == TRITON:
            use_kernels(leaf, is_trial=True)
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


def queued_seconds(criterion: Any, problem: Problem, amp: bool = False, n: int = QUEUED) -> float:
    """Return the seconds of a step among some that are queued without waiting for the GPU, as in a training."""
    (preds, leaves), device = preds_of(criterion, problem, amp), problem.scores.device
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
    synchronise(device)
    start = time.perf_counter()
    for event in events[:1]:
        event.record()
    for _ in range(n):
        with autocast(device, amp):
            loss, _ = criterion(preds, problem.batch)
        loss.sum().backward()
        for leaf in leaves:
            leaf.grad = None
    for event in events[1:]:
        event.record()
    synchronise(device)
    return (events[0].elapsed_time(events[1]) / 1e3 if events else time.perf_counter() - start) / n


def engine_agreement(stock: Any, ours: Any, problem: Problem, amp: bool = False) -> Agreement:
    """Return where a criterion with an engine deviates from the host's on a batch; see `compared_steps`."""
    texts, n_exchanged = [], 0
    inputs, context = partial(inputs_of, problem, amp), partial(autocast, problem.scores.device, amp)
    for (branch, one), (_, other) in zip(branches(stock), branches(ours)):
        where = "" if branch == "main" else f" ({branch})"
        is_interpreted = on_criterion(other).kernels is not None and not problem.scores.is_cuda
        with gpu_ties() if is_interpreted else contextlib.nullcontext():
            found = compared_steps(one, other, inputs, problem.batch, context)
        texts += [f"{text}{where}" for text in found.differs]
        n_exchanged += found.n_exchanged
    return Agreement(texts, n_exchanged)


def gpu_ties() -> Any:
    """Return a context in which `torch.topk` breaks ties by the lowest index, as on GPUs, which kernels are for."""
    made: Any = torch.return_types

    def topk(values: Tensor, k: int, dim: int = -1, largest: bool = True) -> Any:
        order = values.sort(dim=dim, descending=largest, stable=True)
        return made.topk(side.narrow(dim, 0, k) for side in order)

    return mock.patch.object(torch, "topk", topk)


def alternate(
    sides: tuple[Any, Any],
    problems: Sequence[Any],
    n_pairs: int,
    seconds: float,
    take: Callable[[Any, Any], float],
    tick: Callable[[], None] = lambda: None,
    warm_up: float = 0.0,
) -> tuple[list[float], tuple[list[float], list[float]]]:
    """Take steps of two sides in turn, in the order ABBA, of batches in rotation, until pairs and seconds are enough.

    Args:
        sides: Both sides.
        problems: The batches.
        n_pairs: Minimum number of pairs.
        seconds: Minimum time, if that is not `MAX_PAIRS` pairs.
        take: Takes a step of a side, and returns its seconds.
        tick: Called after each step.
        warm_up: Seconds of steps before the first that counts, until the clocks of a GPU have risen.

    Returns:
        Seconds of one first step of each side, and of all others by side.
    """

    def timed(side: Any, problem: Any) -> float:
        result = take(side, problem)
        tick()
        return result

    first = [timed(side, problems[0]) for side in sides]
    begin = time.perf_counter()
    while time.perf_counter() - begin < warm_up:
        for side in sides:
            timed(side, problems[0])
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
    is_steady = ratio[2] - ratio[0] <= MAX_SPREAD * ratio[1]
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

# SPDX-License-Identifier: AGPL-3.0-or-later
"""The regression experiment of Zheng et al., Distance-IoU Loss, AAAI 2020: how fast boxes reach their targets.

5,000 anchor points lie uniformly in a disc of radius 3 around (10, 10). Each point has anchors of 7 areas and 7 aspect
ratios, and each of these is moved to 7 targets of area 1 at (10, 10): 1,715,000 cases. A case takes 200 steps of
gradient descent,

    B ← B − η·(2 − IoU)·∂L/∂B with B = (x, y, w, h), centre and size,

with η = 0.1 for the first 80 % of the steps, 0.01 up to 90 %, and 0.001 then. IoU is a constant factor in it. The error
is |x − X| + |y − Y| + |w − W| + |h − H|. As in the authors' program the areas of anchors are multiples of the target's,
aspect ratios of both are 1:4 to 4:1, and a pair without overlap has IoU 0.

Gradients are the true ones, by automatic differentiation, so that every loss can take part. Those of the authors'
program are written by hand and differ: those of the IoU by w and h are twice the true ones; GIoU's intersection of
disjoint boxes is a product of negative lengths instead of 0; DIoU's and CIoU's enclosing diagonal has the other sign by
x and y, and mixes both axes by w and h; CIoU's v lacks the factor 1/(w² + h²). `gradients=published` takes them
(`published_gradients.py`), and gives the published order: IoU last, then GIoU, DIoU, CIoU. With the true gradients
GIoU ends before DIoU: its own is right then, and that of DIoU also grows the enclosing box, which slows it down. In
both, IoU is last, because it never moves a box without overlap, and CIoU is before DIoU.

A side that a step would make smaller than `MIN_SIDE` becomes `MIN_SIDE`; the authors let boxes turn inside out. Numbers
are float32. Lengths are grid cells; losses that measure in pixels get a stride of 8 and an image of 20 x 20 cells, so
that a target is 8 x 8 pixels. A loss with a state starts with an empty one, sees all cases in each step, and takes
steps for epochs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from threading import Event, Lock
from typing import Any, Callable, Optional, Union

import torch
from torch import Tensor

from yolo_lossplug.boxes import Pair
from yolo_lossplug.selection.loss import Loss
from yolo_lossplug.state import State

CENTRE, RADIUS, POINTS = 10.0, 3.0, 5000
AREAS = (0.5, 0.67, 0.75, 1.0, 1.33, 1.5, 2.0)
ASPECTS = (1 / 4, 1 / 3, 1 / 2, 1.0, 2.0, 3.0, 4.0)
CASES_PER_POINT = len(AREAS) * len(ASPECTS) ** 2
"""Area and aspect ratio of the anchor, and aspect ratio of the target."""
ALL = POINTS * CASES_PER_POINT
ITERATIONS = 200
STRIDE, IMGSZ = 8.0, 160.0
"""Pixels per cell, and side of the image in pixels, for losses that need them."""
MIN_SIDE = 1e-3
"""Smallest side of a box, in cells."""
CHUNK = 1 << 16
"""Cases that are moved together on a CPU. Measured: 2**15 to 2**17 are alike, fewer pay for calls, more take memory."""


@dataclass(frozen=True)
class Published:
    """A gradient of the authors' program in place of that of a loss.

    Attributes:
        gradient: ``(boxes, targets) -> gradients``, (4, N) each, by x, y, w, h.
        state: None: it has no state.
    """

    gradient: Callable[[Tensor, Tensor], Tensor]
    state: None = None

    def within(self, scope: Any) -> Published:
        """Return itself, as a loss without a state does."""
        return self


Descent = Union[Loss, Published]
"""What gives the gradients of a descent."""


@dataclass(frozen=True)
class Cases:
    """Pairs of anchors and targets.

    Attributes:
        points: Anchor points (P, 2), in cells.
        point: Index of the point of each case (N,).
        anchors: x, y, w, h of the boxes to move (4, N): a coordinate is contiguous, which makes losses twice as fast.
        targets: x, y, w, h of their targets (4, N).
    """

    points: Tensor
    point: Tensor
    anchors: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return self.anchors.shape[1]


@dataclass(frozen=True)
class Run:
    """Result of the cases with one loss.

    Attributes:
        name: The loss with its options.
        errors: Sum of the errors of all cases before the first iteration and after each one (iterations + 1,).
        count: Number of cases.
        point_errors: Mean final error of the cases of each point (P,); NaN for a point without cases.
        disjoint: Share of the cases without overlap at the end.
        seconds: Duration.
    """

    name: str
    errors: Tensor
    count: int
    point_errors: Tensor
    disjoint: float
    seconds: float

    @property
    def means(self) -> Tensor:
        """Mean error per case, for each iteration."""
        return self.errors / self.count


def anchor_points(generator: torch.Generator) -> Tensor:
    """Return the anchor points (5000, 2), uniform in the disc, float64."""
    radius, angle = torch.rand(2, POINTS, generator=generator, dtype=torch.float64)
    radius, angle = RADIUS * radius.sqrt(), 2 * math.pi * angle
    return CENTRE + torch.stack((radius * angle.cos(), radius * angle.sin()), 1)


def shapes() -> Tensor:
    """Return widths and heights of the boxes of area 1, (7, 2), float64."""
    aspect = torch.tensor(ASPECTS, dtype=torch.float64)
    return torch.stack((aspect.sqrt(), aspect.rsqrt()), 1)


def draw_cases(count: int = ALL, seed: int = 0) -> Cases:
    """Return cases of the experiment, float32: all of them, or a subset spread evenly over shapes and points.

    Args:
        count: Number of cases, in 1 to `ALL`; a smaller subset is the beginning of a larger one.
        seed: Seed of the points and of the subset.
    """
    generator = torch.Generator().manual_seed(seed)
    points = anchor_points(generator)
    order = torch.randperm(CASES_PER_POINT, generator=generator)
    start = torch.randint(POINTS, (CASES_PER_POINT,), generator=generator)
    index = torch.arange(count)
    kind = order[index % CASES_PER_POINT]  # every kind of pair once, then again on the next points
    point = (start[kind] + index // CASES_PER_POINT) % POINTS
    area, aspect, target = _digits(kind, len(AREAS), len(ASPECTS), len(ASPECTS))
    sizes = shapes()[aspect] * torch.tensor(AREAS, dtype=torch.float64).sqrt()[area, None]
    anchors = torch.cat((points[point], sizes), 1)
    targets = torch.cat((torch.full_like(sizes, CENTRE), shapes()[target]), 1)
    return Cases(points, point, *(boxes.t().float().contiguous() for boxes in (anchors, targets)))


def learning_rate(iteration: int, iterations: int = ITERATIONS) -> float:
    """Return η of an iteration, the first is 0."""
    done = iteration / iterations
    return 0.1 if done < 0.8 else 0.01 if done < 0.9 else 0.001


def corners(boxes: Tensor) -> Tensor:
    """Return boxes x, y, w, h (4, N) as x1, y1, x2, y2 (N, 4)."""
    centre, half = boxes[:2], boxes[2:] / 2
    return torch.cat((centre - half, centre + half)).t()


def overlap(boxes: Tensor, targets: Tensor) -> Tensor:
    """Return the IoU (N,) of boxes x, y, w, h (4, N) and their targets (4, N), without gradient."""
    with torch.no_grad():
        return Pair(corners(boxes), corners(targets)).iou


def gradient(loss: Descent, boxes: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient (4, N) of a loss by x, y, w, h of boxes (4, N), each with its own target (4, N)."""
    if isinstance(loss, Published):
        return loss.gradient(boxes, targets)
    boxes = boxes.detach().requires_grad_()
    stride = boxes.new_full((boxes.shape[1], 1), STRIDE)
    values = loss(corners(boxes), corners(targets), stride=stride, imgsz=boxes.new_full((2,), IMGSZ))
    return torch.autograd.grad(values.sum(), boxes)[0]


def step(loss: Descent, boxes: Tensor, targets: Tensor, rate: float) -> Tensor:
    """Return boxes x, y, w, h (4, N) after one step of gradient descent towards their targets (4, N)."""
    factor = rate * (2 - overlap(boxes, targets))
    moved = boxes - factor * gradient(loss, boxes, targets)
    moved[2:].clamp_(min=MIN_SIDE)
    return moved


def trajectory(loss: Descent, boxes: Tensor, targets: Tensor, iterations: int = ITERATIONS) -> Iterator[Tensor]:
    """Yield boxes (4, N) as they are and after every iteration; a loss with a state starts with an empty one."""
    state = State()
    state.epochs = iterations
    loss = loss.within(state.scoped("simulate"))
    yield boxes
    for iteration in range(iterations):
        state.epoch = iteration
        boxes = step(loss, boxes, targets, learning_rate(iteration, iterations))
        yield boxes


def errors(boxes: Tensor, targets: Tensor) -> Tensor:
    """Return the error (N,) of boxes x, y, w, h (4, N): the sum of the four distances to the target's."""
    return (boxes - targets).abs().sum(0)


def simulate(
    name: str,
    loss: Descent,
    sample: Cases,
    iterations: int = ITERATIONS,
    device: Optional[torch.device] = None,
    chunk: Optional[int] = None,
    tick: Callable[[int], Any] = lambda count: None,
) -> Run:
    """Move the boxes of all cases with a loss.

    Args:
        name: Name of the run.
        loss: A box loss, or a published gradient.
        sample: The cases.
        iterations: Steps of gradient descent.
        device: Where to compute; None for the CPU.
        chunk: Cases that are moved together; None for what is fast on the device. A loss with a state moves all cases
            together whatever this is, because each step changes the state.
        tick: Called with the number of cases after each step, by one thread at a time.
    """
    started = time.perf_counter()
    device = device or torch.device("cpu")
    size = len(sample) if loss.state is not None else chunk or (CHUNK if device.type == "cpu" else len(sample))
    lock = Lock()

    def locked_tick(count: int) -> None:
        with lock:
            tick(count)

    move = partial(_move, loss=loss, iterations=iterations, device=device, tick=locked_tick)
    parts = _side_by_side(move, list(zip(sample.anchors.split(size, 1), sample.targets.split(size, 1))), device)
    sums, final, disjoint = zip(*parts)
    point_errors = _means(torch.cat(final), sample.point, len(sample.points))
    seconds = time.perf_counter() - started
    return Run(name, torch.stack(sums).sum(0), len(sample), point_errors, sum(disjoint) / len(sample), seconds)


def _move(
    anchors: Tensor,
    targets: Tensor,
    stopped: Event,
    *,
    loss: Descent,
    iterations: int,
    device: torch.device,
    tick: Callable[[int], Any],
) -> tuple[Tensor, Tensor, int]:
    """Move boxes (4, N); return sums of errors (iterations + 1,), final errors (N,) and the number without overlap."""
    anchors, targets = anchors.contiguous().to(device), targets.contiguous().to(device)
    totals = []
    for boxes in trajectory(loss, anchors, targets, iterations):
        totals.append(errors(boxes, targets).sum(dtype=torch.float64))
        tick(boxes.shape[1])
        if stopped.is_set():
            raise KeyboardInterrupt
    return torch.stack(totals).cpu(), errors(boxes, targets).cpu(), int((overlap(boxes, targets) == 0).sum())


def _side_by_side(move: Callable[..., Any], chunks: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> list[Any]:
    """Move chunks, on a CPU one in each thread of torch, and without threads inside operations.

    Threads inside operations of 1 ms or less spin while they wait for each other, and beside busy processes for a whole
    time slice each time: a run took a hundred times as long.
    """
    stopped, threads = Event(), torch.get_num_threads()
    if device.type != "cpu":
        return [move(*chunk, stopped) for chunk in chunks]
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            futures = [pool.submit(move, *chunk, stopped) for chunk in chunks]
            try:
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()
            finally:  # after Ctrl-C or an error: end those at work, and begin no others
                stopped.set()
                for future in futures:
                    future.cancel()
            return [future.result() for future in futures]
    finally:
        torch.set_num_threads(threads)


def _means(values: Tensor, group: Tensor, count: int) -> Tensor:
    """Return the mean of values (N,) in each of some groups (count,), NaN for a group without any."""
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, group, values.double())
    return sums / torch.bincount(group, minlength=count)


def _digits(number: Tensor, *bases: int) -> list[Tensor]:
    """Return the digits of numbers that are written in mixed bases, the highest first."""
    digits = []
    for base in reversed(bases):
        digits.append(number % base)
        number = number // base
    return digits[::-1]

# SPDX-License-Identifier: AGPL-3.0-or-later
"""The regression experiment of Zheng et al., Distance-IoU Loss, AAAI 2020: how fast boxes reach their targets.

5,000 anchor points lie uniformly in a disc of radius 3 around (10, 10). On each stand anchors of 7 areas and 7 aspects,
and each is moved to 7 targets of area 1 at (10, 10): 1,715,000 cases. A case takes 200 steps of gradient descent,

    B ← B − η·(2 − IoU)·∂L/∂B with B = (x, y, w, h), centre and size,

with η = 0.1 for the first 80 % of the steps, 0.01 up to 90 %, and 0.001 then. IoU is a constant factor in it. The error
is |x − X| + |y − Y| + |w − W| + |h − H|. As in the authors' program the areas of anchors are multiples of the target's,
both are 1:4 to 4:1 in aspect, and a pair without overlap has IoU 0.

Gradients are the true ones, by automatic differentiation, so that every loss can take part. Those of the authors'
program are written by hand and differ: those of the IoU by w and h are twice the true ones; GIoU's intersection of
boxes apart is a product of lengths below 0 instead of 0; DIoU's and CIoU's enclosing diagonal has the other sign by x
and y, and mixes both axes by w and h; CIoU's v lacks the factor 1/(w² + h²). `gradients=published` takes them
(`published_gradients.py`), and gives the published order: IoU last, then GIoU, DIoU, CIoU. With the true gradients
GIoU ends before DIoU: its own is right then, and that of DIoU also grows the enclosing box, which slows it down. In
both, IoU is last, because it never moves a box without overlap, and CIoU is before DIoU.

A side that a step would make smaller than `SMALLEST` becomes `SMALLEST`; the authors let boxes turn inside out. Numbers
are float32. Lengths are grid cells; losses that measure in pixels get a stride of 8 and an image of 20 x 20 cells, so
that a target is 8 x 8 pixels. Losses that remember start afresh, see all cases in each step, and take steps for epochs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Callable, Optional, Union

import torch
from matplotlib.colors import LogNorm
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from yolo_lossplug import charts
from yolo_lossplug.boxes import Pair
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection import Loss, refuse_unknown
from yolo_lossplug.state import State
from yolo_lossplug.tools import published_gradients
from yolo_lossplug.tools.arms import arms, know_own
from yolo_lossplug.tools.curves import labels, legend_columns, refuse_keys_of_training, refuse_task
from yolo_lossplug.ultralytics_hook.console import folder, progress, say

HELP = """\
usage: lossplug simulate [loss=NAME,NAME,...] [option=VALUE,...] [--cases N] [seed=N] [device=0] [name=NAME]

The regression experiment of the DIoU paper: 1,715,000 boxes are moved to their targets by gradient descent.
Writes simulate.png (error by step), map.png (error by place of the anchor), simulate.csv and simulate.gif.
  loss=     box losses with their prefixes; iou,giou,diou,ciou if not given. Options of theirs, and lists of these, too
  cases=    how many cases, evenly drawn; all if not given, which takes a minute or two for each loss on two CPU cores
  seed=     of the anchor points and of the cases that are drawn; 0 if not given
  device=   cpu, or cuda or the index of a GPU
  gradients=true,published   of the formulas, or those of the authors' program, which the published figure shows
  project=, name=   folder of the results; runs/simulate/simulate if not given
Example: lossplug simulate loss=iou,giou,diou,ciou,focal-eiou focal_gamma=0.3,0.5 cases=50000\
"""
DEFAULT = "iou,giou,diou,ciou"
CENTRE, RADIUS, POINTS = 10.0, 3.0, 5000
AREAS = (0.5, 0.67, 0.75, 1.0, 1.33, 1.5, 2.0)
ASPECTS = (1 / 4, 1 / 3, 1 / 2, 1.0, 2.0, 3.0, 4.0)
ON_A_POINT = len(AREAS) * len(ASPECTS) ** 2
"""Cases of one anchor point: areas and aspects of the anchor, aspects of the target."""
ALL = POINTS * ON_A_POINT
ITERATIONS = 200
STRIDE, IMGSZ = 8.0, 160.0
"""Pixels per cell, and side of the image in pixels, for losses that want them."""
TRUE, PUBLISHED, SUFFIX = "true", "published", ", published"
"""Kinds of gradients, and what is added to the names of runs with published ones."""
SMALLEST = 1e-3
"""Smallest side of a box, in cells."""
CHUNK = 1 << 16
"""Cases that are moved together on a CPU. Measured: 2**15 to 2**17 are alike, fewer pay for calls, more take memory."""
SHOWN = (0, 50, 100, 200)
"""Iterations in the printed table."""
SCENES = (
    ("disjoint", (11.9, 8.4, 0.9, 1.2), (10.0, 10.0, 1.0, 1.0)),
    ("enclosing", (10.2, 9.8, 2.4, 2.4), (10.0, 10.0, 1.0, 1.0)),
    ("other aspect", (10.3, 10.2, 1.8, 0.5), (10.0, 10.0, 0.5, 2.0)),
)
"""Boxes of the animation: title, anchor, target."""


@dataclass(frozen=True)
class Published:
    """A gradient of the authors' program in place of that of a loss.

    Attributes:
        slope: ``(boxes, targets) -> gradients``, (4, N) all, by x, y, w, h.
        state: It remembers nothing.
    """

    slope: Callable[[Tensor, Tensor], Tensor]
    state: None = None

    def within(self, scope: Any) -> Published:
        """Return itself, as a loss that remembers nothing does."""
        return self


@dataclass(frozen=True)
class Cases:
    """Pairs of boxes that are to become one.

    Attributes:
        points: Anchor points (P, 2), in cells.
        point: Index of the point of each case (N,).
        anchors: x, y, w, h of the boxes to move (4, N): a coordinate is contiguous, which makes losses twice as fast.
        targets: x, y, w, h of where they are to arrive (4, N).
    """

    points: Tensor
    point: Tensor
    anchors: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Run:
    """What became of the cases with one loss.

    Attributes:
        name: The loss with its options.
        errors: Sum of the errors of all cases before the first iteration and after each one (iterations + 1,).
        count: Number of cases.
        places: Mean final error of the cases of each point (P,); NaN where a point has none.
        disjoint: Share of the cases without overlap at the end.
        seconds: Duration.
    """

    name: str
    errors: Tensor
    count: int
    places: Tensor
    disjoint: float
    seconds: float

    @property
    def means(self) -> Tensor:
        """Mean error per case, for each iteration."""
        return self.errors / self.count


def main(args: Mapping[str, Any]) -> None:
    """Simulate, write the results and print a table.

    Args:
        args: Keys as `HELP` lists them.

    Raises:
        LossPlugError: If a key or a value is wrong.
        KeyboardInterrupt: With Ctrl-C; the losses that are finished are written before.
    """
    know_own(args)
    refuse_unknown(args, "task", "cases", "seed", "device", "gradients", "project", "name")
    refuse_task(args)
    refuse_keys_of_training(args, "cls_loss")
    chosen = arms({"loss": DEFAULT, **args})
    sample = draw_cases(_whole(args, "cases", ALL, ALL, at_least=1), _whole(args, "seed", 0, 2**63 - 1))
    device = _device(args.get("device"))
    losses = _descents({label: arm.selection.box for label, arm in zip(labels(chosen), chosen)}, args.get("gradients"))
    runs: list[Run] = []
    try:
        for name, loss in losses.items():
            runs.append(_simulate_with_bar(name, loss, sample, device))
    finally:
        if runs:
            finished = {run.name: losses[run.name] for run in runs}
            place = folder("simulate", args.get("name"), args.get("project"))
            write(runs, finished, sample.points, place)
            print(table(runs))
            say(f"simulated {sample.anchors.shape[1]:,} cases, results in {place}")


def points(generator: torch.Generator) -> Tensor:
    """Return the anchor points (5000, 2), uniform in the disc, float64."""
    radius, angle = torch.rand(2, POINTS, generator=generator, dtype=torch.float64)
    radius, angle = RADIUS * radius.sqrt(), 2 * math.pi * angle
    return CENTRE + torch.stack((radius * angle.cos(), radius * angle.sin()), 1)


def shapes() -> Tensor:
    """Return widths and heights of the boxes of area 1, (7, 2), float64."""
    aspect = torch.tensor(ASPECTS, dtype=torch.float64)
    return torch.stack((aspect.sqrt(), aspect.rsqrt()), 1)


def draw_cases(count: int = ALL, seed: int = 0) -> Cases:
    """Return cases of the experiment, float32: all of them, or as many of every shape, and of every point, as can be.

    Args:
        count: Number of cases, in 1 to `ALL`; fewer are the first of more.
        seed: Seed of the points and of what is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    where = points(generator)
    order = torch.randperm(ON_A_POINT, generator=generator)
    start = torch.randint(POINTS, (ON_A_POINT,), generator=generator)
    index = torch.arange(count)
    kind = order[index % ON_A_POINT]  # every kind of pair once, then again on the next points
    point = (start[kind] + index // ON_A_POINT) % POINTS
    area, aspect, target = _digits(kind, len(AREAS), len(ASPECTS), len(ASPECTS))
    sizes = shapes()[aspect] * torch.tensor(AREAS, dtype=torch.float64).sqrt()[area, None]
    anchors = torch.cat((where[point], sizes), 1)
    targets = torch.cat((torch.full_like(sizes, CENTRE), shapes()[target]), 1)
    return Cases(where, point, *(boxes.t().float().contiguous() for boxes in (anchors, targets)))


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


def gradient(loss: Union[Loss, Published], boxes: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient (4, N) of a loss by x, y, w, h of boxes (4, N), each with its own target (4, N)."""
    if isinstance(loss, Published):
        return loss.slope(boxes, targets)
    boxes = boxes.detach().requires_grad_()
    stride = boxes.new_full((boxes.shape[1], 1), STRIDE)
    values = loss(corners(boxes), corners(targets), stride=stride, imgsz=boxes.new_full((2,), IMGSZ))
    return torch.autograd.grad(values.sum(), boxes)[0]


def step(loss: Union[Loss, Published], boxes: Tensor, targets: Tensor, rate: float) -> Tensor:
    """Return boxes x, y, w, h (4, N) after one step of gradient descent towards their targets (4, N)."""
    factor = rate * (2 - overlap(boxes, targets))
    moved = boxes - factor * gradient(loss, boxes, targets)
    moved[2:].clamp_(min=SMALLEST)
    return moved


def trajectory(
    loss: Union[Loss, Published], boxes: Tensor, targets: Tensor, iterations: int = ITERATIONS
) -> Iterator[Tensor]:
    """Yield boxes (4, N) as they are and after every iteration; a loss that remembers starts afresh."""
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
    loss: Union[Loss, Published],
    sample: Cases,
    iterations: int = ITERATIONS,
    device: Optional[torch.device] = None,
    chunk: Optional[int] = None,
    tick: Callable[[int], Any] = lambda count: None,
) -> Run:
    """Return what becomes of cases with a loss.

    Args:
        name: Name of the run.
        loss: A box loss, or a published gradient.
        sample: The cases.
        iterations: Steps of gradient descent.
        device: Where to compute; None for the CPU.
        chunk: Cases that are moved together; None for what is fast on the device. A loss that remembers moves all
            cases together whatever this is, because each step changes what it remembers.
        tick: Called with the number of cases after each step.
    """
    started, count = time.perf_counter(), sample.anchors.shape[1]
    device = device or torch.device("cpu")
    size = count if loss.state is not None else chunk or (CHUNK if device.type == "cpu" else count)
    lock = Lock()

    def move(anchors: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, int]:
        anchors, targets = anchors.contiguous().to(device), targets.contiguous().to(device)
        totals = []
        for boxes in trajectory(loss, anchors, targets, iterations):
            totals.append(errors(boxes, targets).sum(dtype=torch.float64))
            with lock:
                tick(boxes.shape[1])
        return torch.stack(totals).cpu(), errors(boxes, targets).cpu(), int((overlap(boxes, targets) == 0).sum())

    parts = _side_by_side(move, list(zip(sample.anchors.split(size, 1), sample.targets.split(size, 1))), device)
    sums, final, disjoint = zip(*parts)
    places = _means(torch.cat(final), sample.point, len(sample.points))
    return Run(name, torch.stack(sums).sum(0), count, places, sum(disjoint) / count, time.perf_counter() - started)


def write(runs: Sequence[Run], losses: Mapping[str, Union[Loss, Published]], where: Tensor, folder: Path) -> Path:
    """Write the table, both plots and the animation of runs into a folder, and return it.

    Args:
        runs: What became of the cases.
        losses: The losses of these runs by name.
        where: Anchor points (P, 2).
        folder: Where to write; made if it is not there.
    """
    charts.save_table(rows(runs), folder / "simulate.csv")
    draw_convergence(runs, folder / "simulate.png")
    draw_map(runs, where, folder / "map.png")
    animate(losses, folder / "simulate.gif")
    return folder


def rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the errors as a table: loss, iteration, total_error, mean_error."""
    return [
        {"loss": run.name, "iteration": i, "total_error": total, "mean_error": total / run.count}
        for run in runs
        for i, total in enumerate(run.errors.tolist())
    ]


def table(runs: Sequence[Run]) -> str:
    """Return the summary that is printed."""
    width = max(len(run.name) for run in runs)
    shown = [i for i in SHOWN if i < min(len(run.errors) for run in runs)]
    lines = [f"{'loss':<{width}}" + "".join(f"{f'error@{i}':>11}" for i in shown) + "  disjoint   seconds"]
    for run in runs:
        means = "".join(f"{run.means[i]:>11.4f}" for i in shown)
        lines.append(f"{run.name:<{width}}{means}{run.disjoint:>9.1%} {run.seconds:>9.1f}")
    return "\n".join(lines)


def draw_convergence(runs: Sequence[Run], file: Path) -> Path:
    """Draw the mean error against the iteration, with a logarithmic axis, and return the file.

    Published gradients have a panel of their own beside that of the formulas, where there are both.
    """
    panels = [
        (title, shown)
        for title, shown in (
            ("gradients of the authors' program", [run for run in runs if run.name.endswith(SUFFIX)]),
            ("gradients of the formulas", [run for run in runs if not run.name.endswith(SUFFIX)]),
        )
        if shown
    ]
    names = list(dict.fromkeys(run.name.removesuffix(SUFFIX) for run in runs))
    looks = dict(zip(names, charts.styles()))
    columns = legend_columns(names, 90)
    made, (row,) = charts.figure(1, len(panels), 8 if len(panels) == 1 else 6, 4.5 + 0.25 * (len(names) / columns))
    for axes, (title, shown) in zip(row, panels):
        for run in shown:
            name = run.name.removesuffix(SUFFIX)
            start = 3 * names.index(name) % 20
            # An error of exactly 0 has no logarithm; 1e-9 of a cell is below what float32 can tell.
            axes.plot(run.means.clamp(min=1e-9), label=name, markevery=(start, 20), **looks[name])
        axes.set(xlabel="iteration", ylabel="mean error (cells)", yscale="log")
        axes.set_title(title if len(panels) > 1 or shown[0].name.endswith(SUFFIX) else "", fontsize=11)
        axes.grid(alpha=0.3, which="both")
    lowest, highest = (pick(axes.get_ylim()[i] for axes in row) for i, pick in enumerate((min, max)))
    for axes in row:
        axes.set_ylim(lowest, highest)
    made.suptitle(f"|Δx| + |Δy| + |Δw| + |Δh| of {runs[0].count:,} boxes on the way to their targets", fontsize=11)
    charts.legend_below(made, max(row, key=lambda axes: len(axes.lines)), columns)
    return charts.save(made, file)


def draw_map(runs: Sequence[Run], where: Tensor, file: Path) -> Path:
    """Draw the mean final error over the anchor points, one panel for each loss, one colour scale; return the file."""
    columns = 2 if len(runs) == 4 else min(len(runs), 3)
    made, grid = charts.figure(-(-len(runs) // columns), columns, 4.2, 4.0)
    found = torch.cat([run.places[run.places.isfinite()] for run in runs]).clamp(min=1e-9)
    norm = LogNorm(float(found.min()), max(float(found.max()), 1.001 * float(found.min())))
    for axes, run in zip(grid.flat, runs):
        known = run.places.isfinite()
        x, y = where[known].t()
        drawn = axes.scatter(x, y, c=run.places[known].clamp(min=1e-9), s=5, norm=norm, cmap="viridis", linewidths=0)
        axes.set_title(_wrapped(run.name, 34), fontsize=10)
        axes.set(xlabel="x of the anchor (cells)", ylabel="y of the anchor (cells)", aspect="equal")
    for axes in grid.flat[len(runs) :]:
        axes.set_visible(False)
    made.colorbar(drawn, ax=list(grid.flat), aspect=40, label="mean final error of the cases of a point (cells)")
    return charts.save(made, file)


def animate(losses: Mapping[str, Union[Loss, Published]], file: Path, iterations: int = ITERATIONS) -> Path:
    """Write an animated GIF of three boxes on their way, one column for each loss, and return the file.

    Args:
        losses: Box losses by name; one that remembers sees only these three boxes here.
        file: Where to write.
        iterations: Steps of gradient descent.
    """
    anchors, targets = (torch.tensor([scene[i] for scene in SCENES]).t().contiguous() for i in (1, 2))
    paths = {name: list(trajectory(loss, anchors, targets, iterations)) for name, loss in losses.items()}
    # Most happens at the start: quadratic times, none twice.
    times = sorted({round(iterations * (i / 40) ** 2) for i in range(41)})
    frames = [_frame({name: path[i] for name, path in paths.items()}, targets, i) for i in times]
    file.parent.mkdir(parents=True, exist_ok=True)
    pauses = [600] + [120] * (len(frames) - 2) + [2500]
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=pauses, loop=0, optimize=True)
    return file


def _frame(boxes: Mapping[str, Tensor], targets: Tensor, iteration: int) -> Image.Image:
    """Draw one picture of the animation, in a few colours."""
    side, left = (170 if len(boxes) < 9 else 120), 96
    names = {name: _wrapped(name, side // 8) for name in boxes}
    head = 16 + 14 * max(2, *(name.count("\n") + 1 for name in names.values()))
    drawn = Image.new("RGB", (left + side * len(boxes), head + side * len(SCENES) + 6), "white")
    canvas = ImageDraw.Draw(drawn)
    font = partial(ImageFont.truetype, findfont("DejaVu Sans"))
    canvas.text((6, 6), f"iteration\n{iteration}", "black", font(13))
    for row, (title, _, _) in enumerate(SCENES):
        canvas.text((6, head + side * (row + 0.5)), title.replace(" ", "\n"), "black", font(13), anchor="lm")
    for column, (name, now) in enumerate(boxes.items()):
        middle = left + side * (column + 0.5)
        canvas.text((middle, head / 2), names[name], "black", font(11), anchor="mm", align="center")
        for row in range(len(SCENES)):
            origin = (left + side * column, head + side * row)
            _draw_scene(canvas, origin, side, now[:, row].tolist(), targets[:, row].tolist())
    return drawn.quantize(16)


def _draw_scene(
    canvas: ImageDraw.ImageDraw, origin: tuple[int, int], side: int, box: Sequence[float], target: Sequence[float]
) -> None:
    """Draw a target, filled, and a box on its way, with its centre, into a square that shows 5 x 5 cells."""
    scale = side / 5

    def place(x: float, y: float) -> tuple[float, float]:
        """Return where a point of the plane is drawn; what is far away stays at the edge of the square."""
        left, top = (o + 1 + min(max((c - CENTRE + 2.5) * scale, 0), side - 3) for o, c in zip(origin, (x, y)))
        return left, top

    def edges(x: float, y: float, w: float, h: float) -> tuple[float, ...]:
        return (*place(x - w / 2, y - h / 2), *place(x + w / 2, y + h / 2))

    canvas.rectangle((*origin, origin[0] + side - 2, origin[1] + side - 2), outline="#bbbbbb")
    canvas.rectangle(edges(*target), fill="#b8d8b8", outline="#2f7d32")
    canvas.rectangle(edges(*box), outline="#d55e00", width=2)
    x, y = place(box[0], box[1])
    canvas.ellipse((x - 2, y - 2, x + 2, y + 2), fill="#d55e00")


def _wrapped(text: str, width: int) -> str:
    """Break a name with options after commas, brackets and hyphens, so that lines have at most a width if they can."""
    lines = [""]
    for part in text.replace("(", "(\0").replace(", ", ", \0").replace("-", "-\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.strip() for line in lines)


def _simulate_with_bar(name: str, loss: Union[Loss, Published], sample: Cases, device: torch.device) -> Run:
    bar = progress(sample.anchors.shape[1] * (ITERATIONS + 1), name)
    try:
        return simulate(name, loss, sample, device=device, tick=bar.update)
    finally:
        bar.close()


def _descents(losses: Mapping[str, Loss], given: Any) -> dict[str, Union[Loss, Published]]:
    """Return what to simulate by name: losses, and published gradients where these are asked for."""
    words = given if isinstance(given, (list, tuple)) else str(TRUE if given is None else given).split(",")
    kinds = [str(word).strip().lower() for word in words]
    known = published_gradients.GRADIENTS
    found: dict[str, Union[Loss, Published]] = {}
    for kind in kinds:
        if kind not in (TRUE, PUBLISHED):
            raise LossPlugError(f"gradients={given} is unknown. Known: {TRUE}, {PUBLISHED}.")
        for label, loss in losses.items():
            if kind == TRUE:
                found[label] = loss
            elif loss.name in known:
                found[f"{label}{SUFFIX}"] = Published(known[loss.name])
            elif len(kinds) == 1:
                raise LossPlugError(f"gradients=published has no loss={loss.name}: the paper has {', '.join(known)}.")
    return found


def _side_by_side(
    move: Callable[[Tensor, Tensor], Any], chunks: Sequence[tuple[Tensor, Tensor]], device: torch.device
) -> list[Any]:
    """Move chunks, on a CPU one in each thread of torch: threads inside operations this small wait for each other."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or len(chunks) < threads or threads == 1:
        return [move(*chunk) for chunk in chunks]
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            futures = [pool.submit(move, *chunk) for chunk in chunks]
            try:
                return [future.result() for future in futures]
            except BaseException:  # Ctrl-C: do not begin the others
                for future in futures:
                    future.cancel()
                raise
    finally:
        torch.set_num_threads(threads)


def _means(values: Tensor, group: Tensor, count: int) -> Tensor:
    """Return the mean of values (N,) in each of some groups (count,), NaN for a group without any."""
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, group, values.double())
    return sums / torch.bincount(group, minlength=count)


def _digits(number: Tensor, *bases: int) -> list[Tensor]:
    """Return the digits of numbers that are written in mixed bases, the highest first."""
    found = []
    for base in reversed(bases):
        found.append(number % base)
        number = number // base
    return found[::-1]


def _whole(args: Mapping[str, Any], key: str, default: int, at_most: int, at_least: int = 0) -> int:
    """Return a whole number of the arguments."""
    value = args.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value <= at_most:
        raise LossPlugError(f"{key}={value} must be a whole number from {at_least} to {at_most}, e.g. {key}=1000.")
    return value


def _device(value: Any) -> torch.device:
    """Return the device of a key such as ``cpu``, ``cuda``, ``cuda:1`` or ``1``."""
    word = "cpu" if value is None else str(value).strip().lower()
    word = f"cuda:{word}" if word.isdigit() else word
    try:
        device = torch.device(word)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise LossPlugError(f"device={value} cannot be used here; give cpu, cuda, or the index of a GPU.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise LossPlugError(f"device={value}: PyTorch sees {torch.cuda.device_count()} GPUs here; give device=cpu.")
    return device

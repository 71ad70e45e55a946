# SPDX-License-Identifier: AGPL-3.0-or-later
"""Plots and the animation of `lossplug simulate`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from yolo_lossplug import charts
from yolo_lossplug.tools.simulate_experiment import CENTRE, ITERATIONS, RADIUS, Descent, Run, trajectory

SUFFIX = ", published"
"""Ends the names of runs with published gradients."""
ARRIVED = 0.5
"""Mean final error, in cells, that some part of a disc must have to be worth a map: the side of the smallest target."""
BINS = 24
"""Squares of the map, in each direction."""
MIN_ERROR = 1e-9
"""Drawn in place of 0, which has no logarithm; below what float32 can tell, in cells."""
SCENES = (
    ("disjoint", (11.9, 8.4, 0.9, 1.2), (10.0, 10.0, 1.0, 1.0)),
    ("enclosing", (10.2, 9.8, 2.4, 2.4), (10.0, 10.0, 1.0, 1.0)),
    ("other aspect", (10.3, 10.2, 1.8, 0.5), (10.0, 10.0, 0.5, 2.0)),
)
"""Boxes of the animation: title, anchor, target."""
FRAMES = 41
MARGIN = 96
"""Width of the titles of scenes in the animation, in pixels."""


def draw_convergence(runs: Sequence[Run], file: Path) -> Path:
    """Draw the mean error against the iteration, with a logarithmic axis, and return the file.

    Published gradients have a panel of their own beside that of the formulas, where there are both.
    """
    panels = _panels(runs)
    names = list(dict.fromkeys(run.name.removesuffix(SUFFIX) for run in runs))
    columns = charts.legend_columns(names, 90)
    figure, (row,) = charts.figure(1, len(panels), 8 if len(panels) == 1 else 6, 4.5 + 0.25 * (len(names) / columns))
    for axes, (title, shown) in zip(row, panels):
        _draw_errors(axes, shown, names)
        axes.set_title(title if len(panels) > 1 or shown[0].name.endswith(SUFFIX) else "", fontsize=11)
    _share_limits(row)
    figure.suptitle(f"|Δx| + |Δy| + |Δw| + |Δh| of {runs[0].count:,} boxes on the way to their targets", fontsize=11)
    charts.legend_below(figure, max(row, key=lambda axes: len(axes.lines)), columns)
    return charts.save(figure, file)


def _panels(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Return titles and runs of the panels that have any."""
    published = [run for run in runs if run.name.endswith(SUFFIX)]
    true = [run for run in runs if not run.name.endswith(SUFFIX)]
    panels = [("gradients of the authors' program", published), ("gradients of the formulas", true)]
    return [(title, shown) for title, shown in panels if shown]


def _draw_errors(axes: Any, runs: Sequence[Run], names: Sequence[str]) -> None:
    """Draw the errors of runs; a loss has the same style in every panel."""
    styles = dict(zip(names, charts.styles()))
    for run in runs:
        name = run.name.removesuffix(SUFFIX)
        start = 3 * names.index(name) % 20
        axes.plot(run.means.clamp(min=MIN_ERROR), label=name, markevery=(start, 20), **styles[name])
    axes.set(xlabel="iteration", ylabel="mean error (cells)", yscale="log")
    axes.grid(alpha=0.3, which="both")


def _share_limits(row: Sequence[Any]) -> None:
    """Give all axes of a row the same y limits."""
    lows, highs = zip(*(axes.get_ylim() for axes in row))
    for axes in row:
        axes.set_ylim(min(lows), max(highs))


def draw_map(runs: Sequence[Run], points: Tensor, file: Path) -> Optional[Path]:
    """Draw the mean final error over the anchor points, one panel for each loss, one colour scale.

    Losses that bring every part of the disc below `ARRIVED` are left out, since theirs would be empty discs, and named.

    Args:
        runs: The runs.
        points: Anchor points (P, 2).
        file: PNG to write.

    Returns:
        The file; None, and nothing is written, if no loss is left.
    """
    shown = [run for run in runs if _binned(run, points).max() >= ARRIVED]
    if not shown:
        return None
    columns = 2 if len(shown) == 4 else min(len(shown), 3)
    figure, grid = charts.figure(-(-len(shown) // columns), columns, 3.2, 3.3)
    highest = max(float(_binned(run, points).max()) for run in shown)
    for axes, run in zip(grid.flat, shown):
        drawn = _draw_bins(axes, run, points, highest)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    figure.colorbar(drawn, ax=list(grid.flat), aspect=30, label="mean final error (cells)")
    others = [run.name for run in runs if run not in shown]
    if others:
        left_out = f"No part of the disc at {ARRIVED:g} cells or more: {', '.join(others)}"
        figure.suptitle(textwrap.fill(left_out, 38 * columns), fontsize=9)
    return charts.save(figure, file)


def _binned(run: Run, points: Tensor) -> np.ndarray:
    """Return the mean final error of the cases in each of `BINS` x `BINS` squares of the disc, masked without cases."""
    has_cases = run.point_errors.isfinite()
    x, y = points[has_cases].t().numpy()
    edges = np.linspace(CENTRE - RADIUS, CENTRE + RADIUS, BINS + 1)
    total, count = (
        np.histogram2d(y, x, bins=(edges, edges), weights=weights)[0]
        for weights in (run.point_errors[has_cases].numpy(), None)
    )
    return np.ma.masked_invalid(np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0))


def _draw_bins(axes: Any, run: Run, points: Tensor, highest: float) -> Any:
    """Draw the final errors of a run over the disc of anchor points (P, 2)."""
    axes.set_title(_wrapped(run.name, 28), fontsize=9)
    axes.set(xlabel="x of the anchor (cells)", ylabel="y of the anchor (cells)", aspect="equal")
    extent = (CENTRE - RADIUS, CENTRE + RADIUS) * 2
    return axes.imshow(
        _binned(run, points), origin="lower", extent=extent, vmin=0, vmax=highest, cmap="viridis", interpolation="none"
    )


def animate(losses: Mapping[str, Descent], file: Path, iterations: int = ITERATIONS) -> Path:
    """Write an animated GIF of three boxes on their way, one column for each loss, and return the file.

    Args:
        losses: Box losses by name; one with a state sees only these three boxes here.
        file: Where to write.
        iterations: Steps of gradient descent.
    """
    anchors, targets = (torch.tensor([scene[i] for scene in SCENES]).t().contiguous() for i in (1, 2))
    paths = {name: list(trajectory(loss, anchors, targets, iterations)) for name, loss in losses.items()}
    times = _frame_times(iterations)
    frames = [_frame({name: path[i] for name, path in paths.items()}, targets, i) for i in times]
    file.parent.mkdir(parents=True, exist_ok=True)
    pauses = [600] + [120] * (len(frames) - 2) + [2500]
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=pauses, loop=0, optimize=True)
    return file


def _frame_times(iterations: int) -> list[int]:
    """Return the iterations that are shown: quadratic, since most happens at the start, and none twice."""
    return sorted({round(iterations * (i / (FRAMES - 1)) ** 2) for i in range(FRAMES)})


def _frame(boxes: Mapping[str, Tensor], targets: Tensor, iteration: int) -> Image.Image:
    """Draw one picture of the animation, in a few colours."""
    side = 170 if len(boxes) < 9 else 120
    names = {name: _wrapped(name, side // 8) for name in boxes}
    head = 16 + 14 * max(2, *(name.count("\n") + 1 for name in names.values()))
    image = Image.new("RGB", (MARGIN + side * len(boxes), head + side * len(SCENES) + 6), "white")
    canvas = ImageDraw.Draw(image)
    _draw_titles(canvas, side, head, f"iteration\n{iteration}", list(names.values()))
    for column, now in enumerate(boxes.values()):
        for row in range(len(SCENES)):
            origin = (MARGIN + side * column, head + side * row)
            _draw_scene(canvas, origin, side, now[:, row].tolist(), targets[:, row].tolist())
    return image.quantize(16)


def _draw_titles(canvas: ImageDraw.ImageDraw, side: int, head: int, corner: str, names: Sequence[str]) -> None:
    """Write the iteration into the corner, the scenes on the left, and the losses at the top."""
    font = partial(ImageFont.truetype, findfont("DejaVu Sans"))
    canvas.text((6, 6), corner, "black", font(13))
    for row, (title, _, _) in enumerate(SCENES):
        canvas.text((6, head + side * (row + 0.5)), title.replace(" ", "\n"), "black", font(13), anchor="lm")
    for column, name in enumerate(names):
        middle = MARGIN + side * (column + 0.5)
        canvas.text((middle, head / 2), name, "black", font(11), anchor="mm", align="center")


def _draw_scene(
    canvas: ImageDraw.ImageDraw, origin: tuple[int, int], side: int, box: Sequence[float], target: Sequence[float]
) -> None:
    """Draw a target, filled, and a box on its way, with its centre, into a square that shows 5 x 5 cells."""
    scale = side / 5

    def pixel(x: float, y: float) -> tuple[float, float]:
        """Return where a point of the plane is drawn; what is far away stays at the edge of the square."""
        left, top = (o + 1 + min(max((c - CENTRE + 2.5) * scale, 0), side - 3) for o, c in zip(origin, (x, y)))
        return left, top

    def edges(x: float, y: float, w: float, h: float) -> tuple[float, ...]:
        return (*pixel(x - w / 2, y - h / 2), *pixel(x + w / 2, y + h / 2))

    canvas.rectangle((*origin, origin[0] + side - 2, origin[1] + side - 2), outline="#bbbbbb")
    canvas.rectangle(edges(*target), fill="#b8d8b8", outline="#2f7d32")
    canvas.rectangle(edges(*box), outline="#d55e00", width=2)
    x, y = pixel(box[0], box[1])
    canvas.ellipse((x - 2, y - 2, x + 2, y + 2), fill="#d55e00")


def _wrapped(text: str, width: int) -> str:
    """Break a name with options after commas, brackets and hyphens into lines of at most a width where possible."""
    lines = [""]
    for part in text.replace("(", "(\0").replace(", ", ", \0").replace("-", "-\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.strip() for line in lines)

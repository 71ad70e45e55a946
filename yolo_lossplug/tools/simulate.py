# SPDX-License-Identifier: AGPL-3.0-or-later
"""`lossplug simulate`: the regression experiment of the DIoU paper, as tables, plots and an animation."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor

from yolo_lossplug import charts
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import refuse_unknown
from yolo_lossplug.selection.loss import Loss
from yolo_lossplug.tools.arguments import loss_keys, merge, refuse_keys_of_training, refuse_task
from yolo_lossplug.tools.arms import arms, labels
from yolo_lossplug.tools.published_gradients import GRADIENTS
from yolo_lossplug.tools.simulate_experiment import (
    ALL,
    ITERATIONS,
    Cases,
    Descent,
    Published,
    Run,
    draw_cases,
    simulate,
)
from yolo_lossplug.tools.simulate_plots import SUFFIX, animate, draw_convergence, draw_map
from yolo_lossplug.ultralytics_hook.console import folder, progress, say

HELP = """\
usage: lossplug simulate [loss=NAME,NAME,...] [option=VALUE,...] [--cases N] [seed=N] [device=0] [name=NAME]

The regression experiment of the DIoU paper: 1,715,000 boxes are moved to their targets by gradient descent.
Writes simulate.png (error by iteration), simulate.csv, simulate.gif, and map.png (final error by anchor point) where
boxes have not arrived everywhere.
  loss=     box losses with their prefixes; default iou,giou,diou,ciou. Options of these losses, and lists of them, too
  cases=    number of cases, drawn evenly; default all, which takes a minute or two for each loss on two CPU cores
  seed=     of the anchor points and of the cases that are drawn; default 0
  device=   cpu, or cuda or the index of a GPU
  gradients=true,published   of the formulas, or those of the authors' program, which the published figure shows
  project=, name=   folder of the results; default runs/simulate/simulate
  cfg=      a recipe as of `yolo train`: its loss, options, seed, device, project and name, and the command line over it
Example: lossplug simulate loss=iou,giou,diou,ciou,focal-eiou focal_gamma=0.3,0.5 cases=50000\
"""
DEFAULT = "iou,giou,diou,ciou"
TRUE, PUBLISHED = "true", "published"
"""Kinds of gradients."""
SHOWN = (0, 50, 100, 200)
"""Iterations in the printed table."""
LOG_INTERVAL = 10.0
"""Seconds between lines on the progress, where there is no terminal for a bar."""


def main(args: Mapping[str, Any]) -> None:
    """Simulate, write the results and print a table.

    Args:
        args: Keys as `HELP` lists them.

    Raises:
        LossPlugError: If a key or a value is wrong.
        KeyboardInterrupt: With Ctrl-C; results of the finished losses are written before.
    """
    given = merge(args, loss_keys("seed", "device", "project", "name") - {"cls_loss"})
    args = given.values
    refuse_unknown(args, "task", "cases", "seed", "device", "gradients", "project", "name")
    refuse_task(args)
    refuse_keys_of_training(args, "cls_loss")
    chosen = arms({"loss": DEFAULT, **args}, recipe=given.recipe)
    sample = draw_cases(_whole(args, "cases", ALL, ALL, at_least=1), _whole(args, "seed", 0, 2**63 - 1))
    device = _device(args.get("device"))
    losses = descents({label: arm.selection.box for label, arm in zip(labels(chosen), chosen)}, args.get("gradients"))
    given.say_unused(chosen)
    runs: list[Run] = []
    try:
        for name, loss in losses.items():
            runs.append(_simulate_with_bar(name, loss, sample, device))
    finally:
        if runs:
            directory = folder("simulate", args.get("name"), args.get("project"))
            write(runs, {run.name: losses[run.name] for run in runs}, sample.points, directory)
            print(table(runs))
            say(f"simulated {len(sample):,} cases, results in {directory}")


def write(runs: Sequence[Run], losses: Mapping[str, Descent], points: Tensor, directory: Path) -> Path:
    """Write the table, both plots and the animation of runs into a directory, and return it.

    Args:
        runs: The runs.
        losses: The losses of these runs by name.
        points: Anchor points (P, 2).
        directory: Where to write; made if it does not exist.
    """
    charts.save_table(rows(runs), directory / "simulate.csv")
    draw_convergence(runs, directory / "simulate.png")
    draw_map(runs, points, directory / "map.png")
    animate(losses, directory / "simulate.gif")
    return directory


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


def descents(losses: Mapping[str, Loss], gradients: Any) -> dict[str, Descent]:
    """Return what to simulate by name: losses, and published gradients if these are asked for.

    Args:
        losses: Losses by label.
        gradients: ``true``, ``published``, both with a comma or as a list; None for ``true``.

    Raises:
        LossPlugError: If there are no such gradients, or the paper has none of a loss.
    """
    words = (
        gradients if isinstance(gradients, (list, tuple)) else str(TRUE if gradients is None else gradients).split(",")
    )
    kinds = [str(word).strip().lower() for word in words]
    chosen: dict[str, Descent] = {}
    for kind in kinds:
        if kind not in (TRUE, PUBLISHED):
            raise LossPlugError(f"gradients={gradients} is unknown. Known: {TRUE}, {PUBLISHED}.")
        chosen.update(losses if kind == TRUE else _published(losses, is_alone=len(kinds) == 1))
    return chosen


def _published(losses: Mapping[str, Loss], is_alone: bool) -> dict[str, Descent]:
    """Return the published gradients of losses; those without one are left to the true gradients, if these are shown.

    Raises:
        LossPlugError: If a loss has none, and would not be shown at all.
    """
    missing = next((loss.name for loss in losses.values() if loss.name not in GRADIENTS), None)
    if missing is not None and is_alone:
        raise LossPlugError(f"gradients=published has no loss={missing}: the paper has {', '.join(GRADIENTS)}.")
    with_gradient = {label: loss for label, loss in losses.items() if loss.name in GRADIENTS}
    return {f"{label}{SUFFIX}": Published(GRADIENTS[loss.name]) for label, loss in with_gradient.items()}


def _simulate_with_bar(name: str, loss: Descent, sample: Cases, device: torch.device) -> Run:
    total = len(sample) * (ITERATIONS + 1)
    bar = progress(total, name)
    try:
        tick = bar.update if sys.stdout.isatty() else _logger(name, total)
        return simulate(name, loss, sample, device=device, tick=tick)
    finally:
        bar.close()


def _logger(name: str, total: int) -> Callable[[int], None]:
    """Return a function that counts steps, and logs their share now and then, where a bar cannot be drawn."""
    done, due = 0, time.monotonic() + LOG_INTERVAL

    def tick(count: int) -> None:
        nonlocal done, due
        done += count
        if time.monotonic() >= due:
            due = time.monotonic() + LOG_INTERVAL
            say(f"{name}: {done / total:.0%}")

    return tick


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

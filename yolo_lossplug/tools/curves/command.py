# SPDX-License-Identifier: AGPL-3.0-or-later
"""`lossplug curves`: losses and their gradients as a plot and a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from torch import Tensor

from yolo_lossplug import charts
from yolo_lossplug.registry import REGISTRY, ROTATED, SOFTMAX, LossPlugError
from yolo_lossplug.selection.keys import CLASSIFY, refuse_unknown
from yolo_lossplug.tools.arguments import Arguments, loss_keys, merge, refuse_keys_of_training, refuse_task, split_list
from yolo_lossplug.tools.arms import Arm, arms, labels
from yolo_lossplug.tools.curves import measures
from yolo_lossplug.tools.curves.measures import ASPECTS, MAX_TARGET, SIDE
from yolo_lossplug.tools.curves.plots import TARGETS, draw_box_curves, draw_class_curves
from yolo_lossplug.ultralytics_hook.console import new_folder, say

HELP = """\
usage: lossplug curves [loss=NAME,... | cls_loss=NAME,...] [option=VALUE,...]
                       [size=PIXELS,...] [task=obb]

Draws losses and their gradients against IoU while a box leaves its target by
shift, by scale and by aspect ratio, or against the predicted probability for
cls_loss=. Rotated boxes turn as well. Writes curves.png and curves.csv.
  loss=        box losses with their prefixes;
               default iou,giou,diou,ciou,eiou,siou
  cls_loss=    class losses instead
  task=        obb or classify, for their losses
  option=      options of these losses; each of several values is drawn
  size=        side of the target in pixels; default 64. Several are drawn side
               by side, for the shift alone: size=8,16,32,96 shows where losses
               in pixels, such as nwd, differ
  project=, name=   folder of the results; default runs/curves/curves
  cfg=         a recipe as of `yolo train`: its losses, options, task, project
               and name, and the command line over it
Example: lossplug curves loss=ciou,focal-eiou focal_gamma=0.3,0.5\
"""
OWN = ("task", "size", "project", "name")
DEFAULT = "iou,giou,diou,ciou,eiou,siou"
OTHER_TASKS = {"obb": ",".join(REGISTRY.names(ROTATED)), CLASSIFY: ",".join(REGISTRY.names(SOFTMAX))}
"""Tasks with other losses, and the names of these."""


def main(args: Mapping[str, Any]) -> None:
    """Draw curves and write them as a table; `HELP` lists the keys.

    Raises:
        LossPlugError: If a key or a value is wrong.
    """
    given = merge(args, loss_keys(*OWN))
    args = _with_one_kind(given, args)
    refuse_unknown(args, *OWN)
    refuse_task(args, *OTHER_TASKS)
    refuse_keys_of_training(args)
    task = args.get("task")
    is_class = args.get("cls_loss") is not None or task == CLASSIFY
    key = "cls_loss" if is_class else "loss"
    chosen = arms({**args, key: args.get(key) or OTHER_TASKS.get(str(task), DEFAULT)}, task, given.recipe)
    given.say_unused(chosen)
    sizes = _sizes(args.get("size"), is_class)
    directory = new_folder("curves", args.get("name"), args.get("project"))
    charts.save_table(class_rows(chosen) if is_class else box_rows(chosen, sizes), directory / "curves.csv")
    if is_class:
        draw_class_curves(chosen, directory / "curves.png")
    else:
        draw_box_curves(chosen, directory / "curves.png", sizes)
    say(f"drew {', '.join(labels(chosen, is_class))}: {directory / 'curves.png'}")


def _with_one_kind(given: Arguments, typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments that name box losses or class losses: those of the command line, if a recipe has the others."""
    other = {"loss": "cls_loss", "cls_loss": "loss"}
    kinds = [key for key in other if typed.get(key) is not None]
    if len(kinds) == 1:
        return {key: value for key, value in given.values.items() if key != other[kinds[0]]}
    box, cls = (given.values.get(key) for key in other)
    if cls is not None and box is not None:
        why = "are drawn against different things; give one of them on the command line."
        raise LossPlugError(f"loss={box} and cls_loss={cls} {why}")
    return given.values


def _sizes(value: Any, is_class: bool) -> tuple[float, ...]:
    if value is None:
        return (SIDE,)
    if is_class:
        raise LossPlugError(f"size={value} has no effect with cls_loss=, which takes no boxes; remove it.")
    try:
        sizes = tuple(dict.fromkeys(map(float, split_list(value))))
    except (TypeError, ValueError):
        sizes = ()
    if not sizes or not all(0 < size <= MAX_TARGET for size in sizes):
        limits = f"above 0 and at most {MAX_TARGET:g}"
        raise LossPlugError(f"size={value} must be sides in pixels, {limits}: size=8,16,32,96.")
    return sizes


def box_rows(chosen: Sequence[Arm], sizes: Sequence[float] = (SIDE,)) -> list[dict[str, Any]]:
    """Return box losses as a table: size, movement, position, iou, loss, value, gradient.

    The gradient is the L2 norm of that by the four coordinates, in units of the loss per side of the target. Rotated
    boxes also turn: the position is the angle in degrees, the gradient that by the angle per radian, the IoU empty.
    """
    boxes, angles = dict(zip(labels(chosen), (arm.selection.box for arm in chosen))), measures.angles().rad2deg()
    moved = [
        {"size": size, "movement": way.name, "position": at, "iou": iou, "loss": label, "value": value, "gradient": g}
        for size in sizes
        for way in measures.movements(size)
        for label, loss in boxes.items()
        for at, iou, value, g in _numbers(way.positions, way.iou, *measures.curve(loss, way))
    ]
    turned = [
        {"size": size, "movement": f"turn {aspect}:1", "position": at, "loss": label, "value": value, "gradient": g}
        for size, aspect in product(sizes, ASPECTS)
        for label, loss in boxes.items()
        if loss.kind == ROTATED
        for at, value, g in _numbers(angles, *measures.measure_turn(loss, aspect, size))
    ]
    return [*moved, *turned]


def class_rows(chosen: Sequence[Arm]) -> list[dict[str, Any]]:
    """Return class losses as a table: target, probability, loss, value, gradient, the last by the logit."""
    x = measures.probabilities()
    return [
        {"target": target, "probability": p, "loss": label, "value": value, "gradient": gradient}
        for target in TARGETS
        for label, arm in zip(labels(chosen, True), chosen)
        for p, value, gradient in _numbers(x, *measures.measure_class(arm.selection.cls, x, target))
    ]


def _numbers(*columns: Tensor) -> Iterator[tuple[float, ...]]:
    return zip(*(column.tolist() for column in columns))

# SPDX-License-Identifier: AGPL-3.0-or-later
"""`lossplug inspect`: what data and assigner do to each other, in numbers and pictures, before any training."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import TASKS, keys, refuse_unknown
from yolo_lossplug.selection.select import Selection, select
from yolo_lossplug.tools.arguments import merge, split_list, whole_number
from yolo_lossplug.tools.inspect import counts as numbers
from yolo_lossplug.tools.inspect import report as report
from yolo_lossplug.tools.inspect import views as views
from yolo_lossplug.tools.inspect.findings import Findings, reasons
from yolo_lossplug.ultralytics_hook.console import new_folder, progress, say
from yolo_lossplug.ultralytics_hook.dataset import assignments, labels
from yolo_lossplug.ultralytics_hook.dataset.assignments import Model
from yolo_lossplug.ultralytics_hook.dataset.candidates import overlap_of

HELP = """\
usage: lossplug inspect data=FILE [imgsz=N,N,...] [model=FILE] [split=train]
                        [fraction=F] [tal_KEY=VALUE ...]

Reads the labels as training would and says, without training, how large objects
are in the network's input, how many anchors are candidates for them, how
crowded they are, what is wrong with labels, and what is worth a comparison.
  data=      a dataset as of `yolo train`
  imgsz=     sizes of the input, with commas; default 640
  model=     a checkpoint or a YAML: one forward of every image, and what its
             assigner gives to each object
  split=     train (default), val or test
  fraction=  share of the images, or their number, as of `yolo train`
  tal_topk=, tal_alpha=, tal_beta=, ...   numbers of the assigner, as of
             `yolo train`
  task=      detect, segment, pose or obb; default that of the model, or of the
             labels
  batch=     images in a batch (16), of the forward and of the estimate of
             memory
  device=    of the forward (cpu)
  project=, name=   folder of the results; default runs/inspect/inspect
  cfg=       a recipe as of `yolo train`, and the command line over it
Writes report.html, summary.md, objects.csv, classes.csv and pictures.
Augmentation, mosaic included, is left out.
Example: lossplug inspect data=coco128.yaml imgsz=640,960\
"""
OWN = ("data", "imgsz", "model", "split", "fraction", "task", "batch", "device", "seed", "project", "name")
MAX_IMGSZ = 8192
N_PICTURES = 6


@dataclass(frozen=True)
class Plan:
    """What is inspected.

    Attributes:
        args: Arguments as given.
        imgsz: Sizes of the network's input.
        batch: Images in a batch.
        selection: Numbers of the assigner.
    """

    args: dict[str, Any]
    imgsz: tuple[int, ...]
    batch: int
    selection: Selection


def main(args: Mapping[str, Any]) -> None:
    """Inspect, write the results and print a summary.

    Args:
        args: Keys as `HELP` lists them.

    Raises:
        LossPlugError: If a key or a value is wrong, or the data cannot be read.
    """
    plan = plan_of(args)
    found = inspect(plan)
    directory = new_folder("inspect", plan.args.get("name"), plan.args.get("project"))
    write(found, plan, directory)
    print(report.terminal(found))
    say(f"report in {directory / 'report.html'}")


def plan_of(args: Mapping[str, Any]) -> Plan:
    """Return what is inspected, checked.

    Raises:
        LossPlugError: If a key or a value is wrong.
    """
    assigner_keys = [key for key in keys() if key.startswith("tal_")]
    given = merge(args, {*OWN, *assigner_keys})
    values = given.values
    for key, value in values.items():
        if key in keys() and key not in assigner_keys:
            raise LossPlugError(f"{key}={value} has no effect here: inspect looks at data and assigner. Remove it.")
    refuse_unknown(values, *OWN)
    if not values.get("data"):
        raise LossPlugError("data= is missing: lossplug inspect data=coco128.yaml")
    if values.get("task") not in (None, *TASKS):
        raise LossPlugError(f"task={values['task']} has no boxes to inspect; give {', '.join(TASKS)}.")
    given.say_unused()
    numbers_of_assigner = {key: value for key, value in values.items() if key in assigner_keys}
    _check_fraction(values.get("fraction", 1.0))
    whole_number("seed", values.get("seed", 0), 0, 2**31)
    return Plan(
        values,
        _sizes(values.get("imgsz", 640)),
        whole_number("batch", values.get("batch", 16), 1, 1024),
        select({**numbers_of_assigner, "task": values.get("task")}),
    )


def _sizes(value: Any) -> tuple[int, ...]:
    """Return the sizes of the input, multiples of 32, each once."""
    sizes = [whole_number("imgsz", word, 32, MAX_IMGSZ) for word in split_list(value)]
    rounded = [-(-size // 32) * 32 for size in sizes]
    for size, multiple in zip(sizes, rounded):
        if size != multiple:
            say(f"imgsz={size} must be a multiple of the largest stride, 32: inspected at {multiple}")
    return tuple(dict.fromkeys(rounded))


def _check_fraction(value: Any) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or value <= 0 or (isinstance(value, float) and value > 1):
        raise LossPlugError(
            f"fraction={value} must be above 0 and at most 1, or a number of images, e.g. fraction=0.1."
        )


def inspect(plan: Plan) -> Findings:
    """Return what is to be said of a dataset.

    Args:
        plan: What is inspected.

    Raises:
        LossPlugError: If data or model cannot be read.
    """
    args = plan.args
    data, _ = labels.described(args)
    model = assignments.load(args, data) if args.get("model") else None
    read = labels.read(args, model.task if model else None)
    if model and read.task != model.task:
        raise LossPlugError(f"model={args['model']} is for task={model.task}, but task={read.task} was given.")
    selection = plan.selection if plan.selection.task == read.task else _of_task(plan, read.task)
    shown = []
    for imgsz in plan.imgsz:
        bar = progress(len(read.files), f"candidates at {imgsz}")
        shown.append(views.view(read, imgsz, selection, model))
        bar.update(len(read.files))
        bar.close()
    counts = np.bincount(read.image, minlength=len(read.files))
    boxes = read.at(max(plan.imgsz))
    pairs = numbers.count_pairs(counts, read.cls, overlap_of(boxes))
    found = Findings(args, read, counts, shown, pairs, plan.batch, selection, model)
    if model:
        _assign(found, model, args, plan.batch)
    return found


def _of_task(plan: Plan, task: str) -> Selection:
    return select({**{key: plan.args[key] for key in plan.selection.given}, "task": task})


def _assign(found: Findings, model: Model, args: dict[str, Any], batch: int) -> None:
    chosen = [image for image, _ in numbers.telling(reasons(found, found.views[0]), N_PICTURES)]
    for one in found.views:
        bar = progress(len(found.labels.files), f"assignment at {one.imgsz}")
        try:
            views.assign(one, found.labels, model, args, batch, chosen, bar.update)
        finally:
            bar.close()


def write(found: Findings, plan: Plan, directory: Path, command: Optional[str] = None) -> None:
    """Write tables, pictures and pages into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "objects.csv").open("w", newline="", encoding="utf-8") as target:
        csv.writer(target).writerows(views.object_rows(found.labels, found.views))
    report.write_classes(found, directory / "classes.csv")
    pictures = report.draw(found, directory, N_PICTURES)
    report.write(found, pictures, directory, command or report.command_line(plan.args))

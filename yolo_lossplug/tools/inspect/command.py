# SPDX-License-Identifier: AGPL-3.0-or-later
"""`lossplug inspect`: how the assigner treats your labels, in numbers and pictures, before any training."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolo_lossplug import charts
from yolo_lossplug.files import beside, write_text
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import TASKS, keys, refuse_unknown
from yolo_lossplug.selection.regions import ANNOTATED, IGNORE
from yolo_lossplug.selection.select import select
from yolo_lossplug.tools.arguments import command_line, merge, split_list, whole_number
from yolo_lossplug.tools.inspect.advice import write_weights
from yolo_lossplug.tools.inspect.findings import Findings, InspectPlan
from yolo_lossplug.tools.inspect.pictures import draw_pictures
from yolo_lossplug.tools.inspect.report import classes_table, make_report
from yolo_lossplug.tools.inspect.views import object_rows
from yolo_lossplug.tools.report import Report
from yolo_lossplug.ultralytics_hook.console import new_folder, say

HELP = """\
usage: lossplug inspect data=FILE [imgsz=N,N,...] [model=FILE] [split=train]
                        [fraction=F] [tal_KEY=VALUE ...]

Reads the labels as training would and says, without training, how large objects
are in the network's input, how many anchors are candidates for them, how
crowded they are, what is wrong with labels, and what is worth a comparison.
Labels that a training of the task refuses are refused: boxes without outlines
or corners for segment and obb, keypoints that do not fit kpt_shape.
  data=      a dataset as of `yolo train`
  imgsz=     sizes of the input, with commas; default 640
  model=     a checkpoint or a YAML: one forward of every image, and what its
             assigner gives to each object
  split=     train (default), val or test
  fraction=  share of the images, or their number, as of `yolo train`
  tal_topk=, tal_alpha=, tal_beta=, ...   numbers of the assigner, as of
             `yolo train`
  ignore=, annotated=   what is not taught, as of `yolo train`
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


def main(args: Mapping[str, Any]) -> None:
    """Inspect, write the results and print a summary; `HELP` lists the keys.

    Raises:
        LossPlugError: If a key or a value is wrong, or the data cannot be read.
    """
    found = Findings(inspect_plan(args))
    report, page = write_inspection(found)
    print(report.terminal(with_verdict=False))  # which repeats the first piece of advice
    say(f"report in {page}")


def inspect_plan(args: Mapping[str, Any]) -> InspectPlan:
    """Return what is inspected, checked.

    Raises:
        LossPlugError: If a key or a value is wrong.
    """
    ours = [key for key in keys() if key.startswith("tal_")]
    given = merge(args, {*OWN, *ours, IGNORE, ANNOTATED})
    values = given.values
    for key, value in values.items():
        if key in keys() and key not in (*ours, IGNORE, ANNOTATED):
            raise LossPlugError(f"{key}={value} has no effect here: inspect looks at data and assigner. Remove it.")
    refuse_unknown(values, *OWN)
    if not values.get("data"):
        raise LossPlugError("data= is missing: lossplug inspect data=coco128.yaml")
    if values.get("task") not in (None, *TASKS):
        raise LossPlugError(f"task={values['task']} has no boxes to inspect; give {', '.join(TASKS)}.")
    _check_fraction(values.get("fraction", 1.0))
    whole_number("seed", values.get("seed", 0), 0, 2**31)
    batch = whole_number("batch", values.get("batch", 16), 1, 1024)
    assigner = {key: values[key] for key in ours if key in values}
    select({**assigner, "task": values.get("task")})
    imgsz = _sizes(values.get("imgsz", 640))
    given.say_unused()
    return InspectPlan(values, imgsz, batch, assigner)


def _sizes(value: Any) -> tuple[int, ...]:
    """Return the sizes of the input, multiples of 32, each once."""
    sizes = [whole_number("imgsz", word, 32, 8192) for word in split_list(value)]
    rounded = {size: -(-size // 32) * 32 for size in sizes}
    for size, multiple in rounded.items():
        if size != multiple:
            say(f"imgsz={size} must be a multiple of the largest stride, 32: inspected at {multiple}")
    return tuple(dict.fromkeys(rounded.values()))


def _check_fraction(value: Any) -> None:
    if type(value) not in (int, float) or value <= 0 or (isinstance(value, float) and value > 1):
        what = "above 0 and at most 1, or a number of images, e.g. fraction=0.1."
        raise LossPlugError(f"fraction={value} must be {what}")


def write_inspection(found: Findings) -> tuple[Report, Path]:
    """Write tables, pictures and pages into a new folder, and return the report and its page."""
    classes, args = classes_table(found), found.plan.args  # mistakes come out here, before there is a folder
    directory = new_folder("inspect", args.get("name"), args.get("project"))
    charts.save_table([dict(zip(classes.header, row)) for row in classes.rows], directory / "classes.csv")
    with beside(directory / "objects.csv") as file, file.open("w", newline="", encoding="utf-8") as target:
        csv.writer(target).writerows(object_rows(found.labels, found.views, found.strides))
    write_weights(found.facts, directory)
    report = make_report(found, draw_pictures(found, directory), command_line("inspect", args), directory)
    write_text(directory / "summary.md", report.markdown())
    return report, report.write(directory / "report.html")

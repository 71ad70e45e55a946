# SPDX-License-Identifier: AGPL-3.0-or-later
"""One whole training run, and its results."""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import ultralytics
from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG_DICT

from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import CLASSIFY, DETR, keys
from yolo_lossplug.ultralytics_hook import config
from yolo_lossplug.ultralytics_hook.dataset.detections import DetectionCollector
from yolo_lossplug.ultralytics_hook.family import guess_model
from yolo_lossplug.ultralytics_hook.host import dataset_of, images_of, load_model

TEST = "test"
"""The split beside ``val`` on which the best checkpoint can be measured."""
OF_TRAINING = ("mode", "cfg", "resume", "val", "plots", "project", "name", "exist_ok", "save_dir")
"""Arguments of a training that would send a validation elsewhere."""
PARTS = {"box": "B", "seg": "M", "pose": "P"}
"""Parts of the metrics of a task, and how Ultralytics marks them in names of metrics."""


def check_arguments(args: dict[str, Any]) -> str:
    """Check the arguments of a training without loading data or model, and return its task.

    Raises:
        LossPlugError: If one is unknown or wrong.
    """
    train_args = {**args, "mode": "train"}
    config.refuse_unknown_keys(train_args)
    config.check_given(DEFAULT_CFG_DICT, train_args)
    task = guess_model(train_args)[0]
    try:
        get_cfg(overrides={**train_args, "task": "detect" if task == DETR else task})
    except (SyntaxError, TypeError, ValueError) as error:
        raise LossPlugError(str(error)) from error
    return str(task)


def prepare(args: dict[str, Any], split: str = "val") -> tuple[str, dict[int, str]]:
    """Download data and weights and build the label cache, once for all runs.

    Runs that start at the same time would write the same files, and each would report what is missing.

    Args:
        args: As `yolo train` takes them.
        split: The split that decides.

    Returns:
        The task, and names of the classes that objects of that split have, after ``single_cls`` and ``classes``.

    Raises:
        LossPlugError: If the model or the data cannot be loaded, or the data has no test split and one is asked for.
    """
    task = load_model(args["model"], args.get("task")).task
    data = dataset_of(args, task)
    if task == CLASSIFY:
        return task, dict(data["names"])
    cfg = get_cfg(overrides={**args, "task": task, "mode": "train"})
    if args.get("split") == TEST and not data.get(TEST):
        raise LossPlugError(f"split=test: data={args['data']} has no test split. Add `test:` to it, or remove split=.")
    read = {name: images_of(cfg, data, name) for name in dict.fromkeys(("train", "val", split))}
    there = {int(index) for label in read[split].labels for index in label["cls"].reshape(-1)}
    return task, {index: name for index, name in dict(data["names"]).items() if index in there}


def train(args: dict[str, Any]) -> dict[str, Any]:
    """Train once in this process.

    Args:
        args: As `yolo train` takes them; ``split=test`` measures the best checkpoint on the test split as well.

    Returns:
        ``metrics`` of the best checkpoint by Ultralytics' names, mAP75 where the task has it; ``losses`` of the last
        epoch; ``seconds``; ``save_dir``; ``versions``; ``hardware``; ``train``, the size of the training data
        (`train_size`); ``gains`` of the terms; ``names`` of the classes; ``images``, the detections and objects of that
        validation (`detections.Found`); ``test``, None or a mapping with ``metrics`` and ``images``.

    Raises:
        FloatingPointError: If a loss is not finite after the last epoch.
    """
    args, start = dict(args), time.perf_counter()
    is_tested = args.pop("split", None) == TEST
    model = load_model(args.pop("model"), args.pop("task", None))
    recorder = DetectionCollector()
    model.add_callback("on_val_start", recorder)
    model.train(**args)
    seconds = time.perf_counter() - start
    folder = Path(model.trainer.save_dir)
    last = history(folder)[-1]
    broken = [f"{key}={value}" for key, value in last.items() if key.endswith("_loss") and not math.isfinite(value)]
    if broken:
        raise FloatingPointError(f"the loss is NaN or infinite after the last epoch: {', '.join(broken)}")
    metrics = model.metrics  # None after a multi-GPU training, which runs in workers
    if metrics is None:
        metrics = model.val(**{**_evaluated_with(args), "device": None}, plots=False)
    images, test = recorder.images, None
    if is_tested:
        same = _evaluated_with(args)
        tested = model.val(**same, split=TEST, plots=False, project=str(folder), name=TEST, exist_ok=True)
        test = {"metrics": measured_metrics(tested), "images": recorder.images}
    return {
        "metrics": measured_metrics(metrics),
        "losses": {key: value for key, value in last.items() if key.endswith("_loss")},
        "seconds": seconds,
        "save_dir": str(folder),
        "versions": f"ultralytics {ultralytics.__version__}, torch {torch.__version__}",
        "hardware": hardware(model.trainer.device),
        "train": train_size(model.trainer),
        "gains": {key: getattr(model.trainer.args, key) for key in ("box", "cls", "dfl")},
        "names": dict(model.names),
        "images": images,
        "test": test,
    }


def hardware(device: torch.device) -> str:
    """Return the name of a GPU, or the number of cores of a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {os.cpu_count()} cores"


def train_size(trainer: Any) -> dict[str, int]:
    """Return the numbers of images and objects that a trainer has trained with, as far as its dataset tells."""
    dataset = getattr(getattr(trainer, "train_loader", None), "dataset", None)
    images = {} if dataset is None else {"images": len(dataset)}
    labels = getattr(dataset, "labels", None)
    return images if labels is None else {**images, "objects": sum(len(label["cls"]) for label in labels)}


def _evaluated_with(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a validation has of the arguments of a training: all but keys of losses, and where results go."""
    dropped = {*keys(), *OF_TRAINING} - {"nms_iou"}
    return {key: value for key, value in args.items() if key not in dropped}


def measured_metrics(metrics: Any) -> dict[str, float]:
    """Return the numbers of a validation, with mAP75 beside mAP50 and mAP50-95."""
    numbers = {key: float(value) for key, value in metrics.results_dict.items() if key.startswith("metrics/")}
    for part, mark in PARTS.items():
        if f"metrics/mAP50({mark})" in numbers:
            numbers[f"metrics/mAP75({mark})"] = float(getattr(metrics, part).map75)
    return numbers


def history(folder: Path) -> list[dict[str, float]]:
    """Return the rows of a run's results.csv, one per epoch; empty if there is no file."""
    file = folder / "results.csv"
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", errors="replace") as text:
        rows = [_numbers_of(row) for row in csv.DictReader(text)]
    return [row for row in rows if row]


def _numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    try:
        return {key.strip(): float(value) for key, value in row.items()}
    except (AttributeError, TypeError, ValueError):
        return {}

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Train under changes that third parties make to the host: `python -m tests.ultralytics_hook.others DATA FOLDER`.

Each is made before or after the plugin is enabled, in a process of its own, which trains stock and with our keys.
Wrappers are as most people write them, without a signature, or made with `functools.wraps`.
"""

import contextlib
import functools
import importlib
import json
import os
import sys
import traceback

import torch
from ultralytics import YOLO, cfg
from ultralytics.engine import trainer
from ultralytics.models.yolo.detect import val
from ultralytics.nn import tasks
from ultralytics.utils import loss, ops, tal

import yolo_lossplug
from tests.runs import TINY, Log

try:
    from ultralytics.utils import nms
except ImportError:
    nms = ops
SLOW = ("torch._dynamo", "polars", "ultralytics.utils.callbacks.raytune")
"""What a training imports for long: once for all."""
KEYS = {"loss": "eiou", "tal_topk": 7, "nms_iou": "diou"}
STOCK = tasks.v8DetectionLoss, loss.TaskAlignedAssigner


class Mine(torch.nn.BCEWithLogitsLoss):
    """A class loss of a third party."""


def bare(old):
    return lambda *args, **kwargs: old(*args, **kwargs)


def named(old):
    return functools.wraps(old)(bare(old))


def wrapping(owner, name):
    def change(wrap=bare):
        setattr(owner, name, wrap(getattr(owner, name)))

    return change


def own_class_loss():
    old = loss.v8DetectionLoss.__init__

    def init(self, *args, **kwargs):
        old(self, *args, **kwargs)
        self.bce = Mine(reduction="none")

    loss.v8DetectionLoss.__init__ = init


def replaced(make, index):
    """Put something in place of a class, wherever the host has it by name."""

    def change():
        stock = STOCK[index]
        for module in (loss, tal, tasks):
            if getattr(module, stock.__name__, None) is stock:
                setattr(module, stock.__name__, make(stock))

    return change


def partial_methods():
    save, check = trainer.BaseTrainer.save_model, trainer.BaseTrainer.check_resume
    trainer.BaseTrainer.save_model = functools.partialmethod(save)
    trainer.BaseTrainer.check_resume = functools.partialmethod(check)


def no_signature():
    """A function that has none, and whose name and module say nothing."""

    class Wrapper:
        __signature__ = "none"

        def __init__(self, old):
            self.old = old

        def __get__(self, instance, owner):
            return self if instance is None else functools.partial(self, instance)

        def __call__(self, *args, **kwargs):
            return self.old(*args, **kwargs)

    for owner, name in ((loss.BboxLoss, "forward"), (trainer.BaseTrainer, "__init__"), (nms, "non_max_suppression")):
        setattr(owner, name, Wrapper(getattr(owner, name)))
    val.nms = nms


def texts():
    cfg.CLI_HELP_MSG, cfg.YAML = None, object()


WRAPS = {
    "criterion": wrapping(loss.v8DetectionLoss, "__init__"),
    "box loss": wrapping(loss.BboxLoss, "forward"),
    "assigner": wrapping(tal.TaskAlignedAssigner, "forward"),
    "assigner's constructor": wrapping(tal.TaskAlignedAssigner, "__init__"),
    "trainer": wrapping(trainer.BaseTrainer, "__init__"),
    "its configuration": wrapping(trainer, "get_cfg"),
    "every configuration": wrapping(cfg, "check_dict_alignment"),
    "model's criterion": wrapping(tasks.DetectionModel, "init_criterion"),
    "suppression": wrapping(nms, "non_max_suppression"),
}
CHANGES = {
    "all": lambda: [change() for change in WRAPS.values()],
    "all by functools.wraps": lambda: [change(named) for change in WRAPS.values()],
    "own class loss": own_class_loss,
    "subclass": replaced(lambda stock: type(stock.__name__, (stock,), {}), 0),
    "factory": replaced(bare, 0),
    "subclass of the assigner": replaced(lambda stock: type("Own", (stock,), {}), 1),
    "factory of the assigner": replaced(bare, 1),
    "partial methods": partial_methods,
    "no signature": no_signature,
    "texts": texts,
}


def trained(data, folder, **keys):
    """Train, and return the box loss that ran, and what the plugin said."""
    with Log() as log:
        model = YOLO("yolov8n.yaml")
        model.train(**{**TINY, "imgsz": 32}, data=data, project=folder, exist_ok=True, **keys)
    (leaf,) = [model.trainer.model.criterion] if keys else [None]
    said = [line for line in log.lines if "LossPlug" in line]
    return (leaf and leaf.bbox_loss.loss.name), said


def check(change, is_before, data, folder):
    """Make a change before or after the plugin is enabled, and train."""
    if is_before:
        change()
    yolo_lossplug.enable()  # what its import does, but for YOLO_LOSSPLUG=0
    if not is_before:
        change()
    assert trained(data, folder) == (None, []), "stock"
    name, said = trained(data, folder, **KEYS)
    assert name == "eiou" and any("box eiou" in line for line in said), (name, said)


def main(data, folder):
    for name in SLOW:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    failed = []
    for name, change in CHANGES.items():
        for is_before in (True, False):
            sys.stdout.flush()
            child = os.fork()
            if not child:
                try:
                    check(change, is_before, data, folder)
                except BaseException:
                    traceback.print_exc(file=sys.stdout)
                    sys.stdout.flush()
                    os._exit(1)
                os._exit(0)
            if os.waitpid(child, 0)[1]:
                failed.append(f"{name}, {'before' if is_before else 'after'}")
    print(json.dumps(failed))


if __name__ == "__main__":
    main(*sys.argv[1:])

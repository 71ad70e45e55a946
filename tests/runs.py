# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tiny training runs, in this process and in others."""

import contextlib
import csv
import functools
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import yolo_lossplug

ROOT = Path(__file__).parent.parent
PLACE = str(Path(yolo_lossplug.__file__).parent.parent)
"""Folder that the package is imported from, which is ROOT where it is installed editable."""
TINY = {
    **{"epochs": 1, "imgsz": 64, "batch": 4, "device": "cpu", "workers": 0, "plots": False, "verbose": False},
    **{"mosaic": 0.0, "optimizer": "SGD", "amp": False},
}
STILL = {"lr0": 0.0, "warmup_epochs": 0.0, "weight_decay": 0.0}
"""Weights that do not move: losses of two runs are comparable."""

slow = functools.partial(pytest.param, marks=pytest.mark.slow)
"""A case of a parametrised test that the quick tests leave out."""


def train(model="yolov8n.yaml", trainer=None, callbacks=(), **keys):
    """Train a model, or one of YOLO by its name, in this process and return the trainer."""
    from ultralytics import YOLO

    yolo = YOLO(model) if isinstance(model, str) else model
    for event, callback in callbacks:
        yolo.add_callback(event, callback)
    yolo.train(trainer=trainer, **{**TINY, **keys})
    return yolo.trainer


def interrupt(model="yolov8n.yaml", **keys):
    """Train three epochs, stop as Ctrl-C does in the second, and return the folder of the run."""
    seen = []

    def stop(trainer):
        seen[:] = [trainer]
        if trainer.epoch == 1:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        train(model, callbacks=[("on_train_batch_end", stop)], **{"epochs": 3, **keys, "project": str(keys["project"])})
    folder = Path(seen[0].save_dir)
    assert (folder / "weights" / "last.pt").is_file()
    return folder


def refuses(message, function, *args, **keys):
    """Assert that a call is refused with a message of ours."""
    with pytest.raises(yolo_lossplug.LossPlugError, match=message):
        function(*args, **keys)


def results(folder):
    """Return the rows of a run's results.csv, losses as numbers, without times."""
    with (Path(folder) / "results.csv").open() as file:
        rows = [{k.strip(): v.strip() for k, v in row.items()} for row in csv.DictReader(file)]
    return [{k: float(v) for k, v in row.items() if k != "time"} for row in rows]


def arguments(**keys):
    return [f"{key}={value}" for key, value in keys.items()]


def yolo(*words, cwd, env=None, check=True, **keys):
    """Run the `yolo` command of this environment with tiny settings and return its result, output and errors as one."""
    command = [str(Path(sys.executable).with_name("yolo")), *words, *arguments(**keys)]
    return run(command, cwd, env, check)


def python(code, *words, cwd, env=None, check=True, flags=()):
    return run([sys.executable, *flags, "-c", code, *map(str, words)], cwd, env, check)


def run(command, cwd, env=None, check=True):
    environment = {**os.environ, **(env or {})}
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )
    assert not check or done.returncode == 0, done.stdout[-6000:]
    return done


WITHOUT_PLUGIN = "import sys; sys.modules['yolo_lossplug'] = None\n"
"""First line of code that runs where the plugin is not installed; with the environment of `ABSENT`."""
ABSENT = {"YOLO_LOSSPLUG": "0"}


class Log(logging.Handler):
    """What Ultralytics logs while this is used as a context."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())

    def __enter__(self):
        from ultralytics.utils import LOGGER

        LOGGER.addHandler(self)
        return self

    def __exit__(self, *_):
        from ultralytics.utils import LOGGER

        LOGGER.removeHandler(self)

    @property
    def text(self):
        return "\n".join(self.lines)

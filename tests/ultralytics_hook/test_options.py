# SPDX-License-Identifier: AGPL-3.0-or-later
"""Options of Ultralytics' trainer that touch the model, the batches or the process: the losses run through all of them.

The guard looks at the criterion after every batch, and stops a run that trains with anything else.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import ultralytics
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import DEFAULT_CFG_DICT

from tests.models import is_plugged
from tests.runs import STILL, TINY, Log, python, results, train
from yolo_lossplug.ultralytics_hook.compatibility import version_numbers
from yolo_lossplug.ultralytics_hook.run import runs

pytestmark = pytest.mark.slow
CHOICE = {"loss": "inner-eiou", "cls_loss": "qfl"}
SCALES = 0.5 if version_numbers(ultralytics.__version__) >= (8, 4, 0) else True
OPTIONS = {
    "model": {"freeze": 10, "single_cls": True, "cos_lr": True, "nbs": 16, "warmup_epochs": 0.0, "val": False},
    "batches": {"rect": True, "cache": "ram"},
    "augmentation": {"mosaic": 1.0, "mixup": 1.0, "close_mosaic": 1, "epochs": 2, "fraction": 0.5},
    "scales": {"multi_scale": SCALES, "workers": 1},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_of_the_host(options, data, tmp_path):
    seen = []
    watch = [("on_train_batch_end", lambda trainer: seen.append(trainer.model.criterion))]
    with Log() as log:
        trainer = train(data=data, project=str(tmp_path), callbacks=watch, **{**CHOICE, **options})
    assert "box inner-eiou(inner_ratio=0.7) · class qfl" in log.text
    assert seen and all(is_plugged(criterion, runs.of(trainer).selection) for criterion in seen)
    rows = results(trainer.save_dir)
    assert len(rows) == options.get("epochs", 1) and 0 < rows[-1]["train/box_loss"] < 1e4


def test_two_trainers_alive_at_once(data, tmp_path):
    """Each has its own losses, whichever was made first, and whichever runs first."""
    keys = {**TINY, "model": "yolov8n.yaml", "data": data, "project": str(tmp_path)}
    first, second = (DetectionTrainer(overrides={**keys, "loss": loss, "name": loss}) for loss in ("eiou", "giou"))
    for trainer, loss in ((second, "giou"), (first, "eiou")):
        with Log() as log:
            trainer.train()
        assert f"box {loss} " in log.text
    for trainer, loss in ((first, "eiou"), (second, "giou")):
        assert trainer.model.criterion.bbox_loss.loss.name == loss == trainer.ema.ema.criterion.bbox_loss.loss.name


def test_threads(data, tmp_path):
    """Two trainings in threads of one process, each with its own losses, also those that remember."""
    losses = "wiou-v3", "focal-eiou"
    train(data=data, project=str(tmp_path))  # the dataset's cache is there
    with ThreadPoolExecutor(2) as pool:
        keys = {"data": data, "project": str(tmp_path), "epochs": 2}
        trainers = list(pool.map(lambda loss: train(**keys, name=loss, loss=loss), losses))
    for trainer, loss in zip(trainers, losses):
        assert trainer.model.criterion.bbox_loss.loss.name == loss and len(results(tmp_path / loss)) == 2
    assert (tmp_path / "wiou-v3" / "weights" / "lossplug.pt").is_file()
    assert not (tmp_path / "focal-eiou" / "weights" / "lossplug.pt").exists()


def test_a_student_of_distillation(data, tmp_path):
    if "distill_model" not in DEFAULT_CFG_DICT:
        pytest.skip("this release of Ultralytics does not distil")
    teacher = train(data=data, project=str(tmp_path), name="teacher")
    rows = {}
    for loss in ("ciou", "eiou"):
        keys = {"distill_model": str(teacher.best), "loss": loss, "name": loss}
        rows[loss] = results(train(data=data, project=str(tmp_path), **STILL, **keys).save_dir)[-1]
    assert rows["eiou"]["train/box_loss"] > 1.2 * rows["ciou"]["train/box_loss"]
    assert rows["eiou"]["val/box_loss"] > 1.2 * rows["ciou"]["val/box_loss"]


COMPILED = """
import sys
from ultralytics import YOLO

model = YOLO("yolov8n.yaml")
model.train(**eval(sys.argv[1]))
print("CRITERION", model.trainer.model.criterion.bbox_loss.loss.name)
"""


@pytest.mark.skipif(not shutil.which("g++") and not shutil.which("clang++"), reason="inductor needs a C++ compiler")
def test_compiled(data, tmp_path):
    """torch.compile with inductor; the loss is left outside of the graph, where its sizes vary from step to step."""
    if not version_numbers(ultralytics.__version__) >= (8, 4, 100):
        pytest.skip("compile=True of older releases fails with this torch, with or without us")
    keys = {**TINY, **CHOICE, "data": data, "project": str(tmp_path), "compile": True, "fraction": 0.5, "val": False}
    done = python(COMPILED, repr(keys), cwd=tmp_path)
    assert "box inner-eiou(inner_ratio=0.7)" in done.stdout.replace("\x1b[0m", "")
    assert "torch.compile" in done.stdout or torch.__version__ < "2"
    (rows,) = [results(folder.parent) for folder in tmp_path.rglob("results.csv")]
    assert 0 < rows[-1]["train/box_loss"] < 1e4

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every family and task trains with losses of ours: what `docs/compatibility.md` shows as trained is trained here.

`LOSSPLUG_TABLES=1 pytest tests/ultralytics_hook/test_models.py` writes the table of the page.
"""

import os
from pathlib import Path

import pytest
import ultralytics
import yaml
from ultralytics import RTDETR as RTDETRModel
from ultralytics import YOLO

from tests.conftest import dataset
from tests.models import is_plugged
from tests.runs import Log, results, train
from tests.tables import mark, write
from yolo_lossplug.ultralytics_hook.dataset import assignments
from yolo_lossplug.ultralytics_hook.run import runs
from yolo_lossplug.ultralytics_hook.running import branches
from yolo_lossplug.ultralytics_hook.trial import bench_cases, one_step

KEYS = {"loss": "inner-eiou", "cls_loss": "qfl"}
FAMILIES = ("yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n")
RTDETR = "rtdetr (narrow)"
"""A row of the table: `test_detr` tests the family, here it is trained like the others."""
TASKS = {"detect": "", "segment": "-seg", "pose": "-pose", "obb": "-obb"}
ALL_TASKS = ("yolov8n", "yolo11n", "yolo26n")
"""Families that are trained for every task; the others for detection."""
CASES = [(f, t) for f in FAMILIES for t in TASKS if t == "detect" or f in ALL_TASKS]
END_TO_END = ("yolov10n", "yolo26n")


def file_of(family, task):
    return f"{family}{TASKS[task]}.yaml"


def is_known(family):
    folder = Path(ultralytics.__file__).parent / "cfg" / "models"
    return any(folder.rglob(f"{family[:-1]}*.yaml"))


@pytest.fixture(scope="module")
def table():
    """Cells of the table, by family and task; only what has passed is in it."""
    cells = {}
    yield cells
    if os.environ.get("LOSSPLUG_TABLES"):
        rows = [[family, *(mark(cells.get((family, task))) for task in TASKS)] for family in (*FAMILIES, RTDETR)]
        write("models", ["model", *TASKS], rows, f"ultralytics {ultralytics.__version__}")


@pytest.mark.slow
@pytest.mark.parametrize(("family", "task"), CASES)
def test_a_model_trains_with_the_losses(family, task, table, tmp_path):
    if not is_known(family):
        pytest.skip(f"ultralytics {ultralytics.__version__} has no {family[:-1]}")
    keys = {**KEYS, "loss": "focal-kld"} if task == "obb" else KEYS
    seen = []
    watch = [("on_train_batch_end", lambda trainer: seen.append(trainer.model.criterion))]
    with Log() as log:
        data = dataset(f"models-{task}", task=task)
        trainer = train(file_of(family, task), data=data, project=str(tmp_path), callbacks=watch, epochs=2, **keys)
    assert f"box {keys['loss']}(" in log.text and "class qfl" in log.text
    criterion = seen[-1]
    assert is_plugged(criterion, runs.of(trainer).selection)
    names = [name for name, _ in branches(criterion)]
    is_split = family in END_TO_END
    assert names == (["one2many", "one2one"] if is_split else ["main"])
    if hasattr(criterion, "updates"):
        assert criterion.updates > 0 and criterion.o2m < 0.8, "the schedule of the branches goes on"
    for _, leaf in branches(criterion):
        assert leaf.bbox_loss.loss.name == keys["loss"] and leaf.bce.loss.name == "qfl"
        if family == "yolo26n":
            assert leaf.reg_max == 1 and leaf.bbox_loss.stock.dfl_loss is None, "the term of distances is the host's L1"
    rows = results(trainer.save_dir)
    assert len(rows) == 2
    for row in rows:
        assert all(0 <= row[f"{part}/{name}_loss"] < 1e4 for part in ("train", "val") for name in ("box", "cls"))
    assert rows[-1]["val/box_loss"] > 0
    recorded = yaml.safe_load((trainer.save_dir / "args.yaml").read_text())
    assert recorded["loss"] == keys["loss"] and recorded["cls_loss"] == "qfl"
    table[family, task] = True


@pytest.mark.slow
def test_rtdetr_trains_with_the_losses(table, tmp_path):
    model = RTDETRModel(str(Path(__file__).with_name("rtdetr-narrow.yaml")))
    with Log() as log:
        trainer = train(model, data=dataset("models-detect"), project=str(tmp_path), epochs=2, **KEYS)
    assert "box inner-eiou(inner_ratio=0.7) · class qfl(" in log.text
    rows = results(trainer.save_dir)
    terms = [row[f"{part}/{name}_loss"] for row in rows for part in ("train", "val") for name in ("giou", "cls")]
    assert len(terms) == 8 and all(0 <= term < 1e4 for term in terms)
    recorded = yaml.safe_load((trainer.save_dir / "args.yaml").read_text())
    assert recorded["loss"] == KEYS["loss"] and recorded["cls_loss"] == "qfl"
    table[RTDETR, "detect"] = True


def test_models_outside_of_a_training_are_in_training_mode(tmp_path):
    """Of a checkpoint as well, which the host loads for predictions: the mode decides what a head returns."""
    file = str(tmp_path / "best.pt")
    YOLO("yolov8n.yaml").save(file)
    trial = one_step.trial({"model": file, "loss": "eiou", "imgsz": 64, "batch": 2})
    inspected = assignments.load({"model": file}, {"names": dict.fromkeys(range(80), "a"), "nc": 80, "channels": 3})
    assert trial.model.training and inspected.host.training and bench_cases.model_of(file).training

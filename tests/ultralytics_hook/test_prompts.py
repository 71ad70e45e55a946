# SPDX-License-Identifier: AGPL-3.0-or-later
"""YOLO-World and YOLOE with text prompts train with our losses, on embeddings of a stand-in for their text model."""

import importlib.util
import sys
import types
import zlib
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.functional import normalize

from tests.conftest import dataset
from tests.models import is_plugged
from tests.runs import STILL, TINY, Log, refuses, results, train
from yolo_lossplug.tools import verify
from yolo_lossplug.ultralytics_hook.family import prompted_trainer
from yolo_lossplug.ultralytics_hook.run import runs
from yolo_lossplug.ultralytics_hook.running import branches

TEXT_MODEL = "ultralytics.nn.text_model"
HAS_FAMILIES = all(importlib.util.find_spec(name) for name in (TEXT_MODEL, "ultralytics.models.yolo.yoloe"))
pytestmark = pytest.mark.skipif(not HAS_FAMILIES, reason="this release has no YOLOE, or loads CLIP itself")
KEYS = {"loss": "inner-eiou", "cls_loss": "qfl"}
WORLD, YOLOE = "ultralytics.models.yolo.world", "ultralytics.models.yolo.yoloe"
SCRATCH = f"{WORLD}.train_world:WorldTrainerFromScratch"
CASES = {
    "world": ("YOLOWorld", "yolov8n-worldv2.yaml", None, "detect"),
    "world from scratch": ("YOLOWorld", "yolov8n-worldv2.yaml", SCRATCH, "detect"),
    "yoloe": ("YOLOE", "yoloe-v8n.yaml", f"{YOLOE}:YOLOETrainer", "detect"),
    "yoloe from scratch": ("YOLOE", "yoloe-v8n.yaml", f"{YOLOE}:YOLOETrainerFromScratch", "detect"),
    "yoloe segment": ("YOLOE", "yoloe-v8n-seg.yaml", f"{YOLOE}:YOLOETrainer", "segment"),
}


class StandIn:
    """A text model that gives every text a random embedding of its own."""

    def tokenize(self, texts):
        return torch.tensor([zlib.crc32(text.encode()) for text in texts])

    def encode_text(self, tokens, dtype=None):
        return normalize(torch.stack([self.embedding(int(token)) for token in tokens]), dim=-1)

    @staticmethod
    def embedding(seed):
        return torch.randn(512, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def text_model(monkeypatch):
    """Put the stand-in where models look for their text model, whose weights are a download."""
    module = types.ModuleType(TEXT_MODEL)
    module.build_text_model = lambda variant, device=None: StandIn()
    monkeypatch.setitem(sys.modules, TEXT_MODEL, module)


def trainer_of(path):
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def train_case(case, tmp_path, callbacks=(), **keys):
    kind, file, trainer, task = CASES[case]
    data = dataset(f"prompts-{task}", task=task)
    if "from scratch" in case:
        data = {"train": {"yolo_data": [data]}, "val": {"yolo_data": [data]}}
    model = getattr(import_module("ultralytics"), kind)(file)
    return train(model, trainer and trainer_of(trainer), callbacks, data=data, project=str(tmp_path), **keys)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_text_prompts(case, tmp_path):
    seen = []
    watch = [("on_train_batch_end", lambda trainer: seen.append(trainer.model.criterion))]
    with Log() as log:
        made = train_case(case, tmp_path, watch, **KEYS)
    assert "box inner-eiou(inner_ratio=0.7) · class qfl(cls_qfl_beta=2.0) · assigner tal(" in log.text
    assert is_plugged(seen[-1], runs.of(made).selection)
    assert [(leaf.bbox_loss.loss.name, leaf.bce.loss.name) for _, leaf in branches(seen[-1])] == [("inner-eiou", "qfl")]
    (row,) = results(made.save_dir)
    assert all(0 < row[f"{part}/box_loss"] < 100 for part in ("train", "val"))
    recorded = yaml.safe_load((made.save_dir / "args.yaml").read_text())
    assert {key: recorded[key] for key in KEYS} == KEYS
    assert b"yolo_lossplug" not in Path(made.last).read_bytes()


@pytest.mark.slow
def test_linear_probing(tmp_path):
    """It starts from weights."""
    from ultralytics import YOLOE as Model

    first = train_case("yoloe", tmp_path)
    with Log() as log:
        keys = {"data": dataset("prompts-detect", task="detect"), "project": str(tmp_path), **KEYS}
        made = train(Model(str(first.last)), trainer_of(f"{YOLOE}:YOLOEPETrainer"), **keys)
    assert "box inner-eiou(inner_ratio=0.7)" in log.text
    assert is_plugged(made.model.criterion, runs.of(made).selection)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["world", "yoloe"])
def test_the_stock_run_is_equalled(case, tmp_path):
    named = {"loss": "ciou", "cls_loss": "bce", "loss_engine": "reference"}
    stock, ours = (results(train_case(case, tmp_path, **STILL, **keys).save_dir)[-1] for keys in ({}, named))
    assert ours == stock


@pytest.mark.parametrize("model", ["yolov8n-worldv2.yaml", "yoloe-v8n.yaml"])
def test_verify(model):
    rows = verify.verify({"model": model, "imgsz": 64, "batch": 2, **KEYS})[1]
    assert [row.term for row in rows] == ["box", "class", "dfl"] and all(row.agrees for row in rows)


@pytest.mark.parametrize(("key", "value"), [("cls_weights", [1, 2, 3]), ("lossplug_report", True)])
@pytest.mark.parametrize("case", ["world", "yoloe"])
def test_keys_of_classes_are_refused(case, key, value, tmp_path):
    family = {"world": "YOLO-World", "yoloe": "YOLOE"}[case]
    message = rf"{key}=.* cannot be used with {family}: its channels are text prompts"
    _, file, trainer, _ = CASES[case]
    overrides = {**TINY, "data": "nowhere.yaml", "model": "some.yaml", "project": str(tmp_path), key: value}
    refuses(message, trainer_of(trainer or f"{WORLD}:WorldTrainer"), overrides=overrides)
    refuses(message, verify.verify, {"model": file, key: value})
    assert not list(tmp_path.iterdir()), "a run was begun"


def test_trainers_of_prompts_are_told_apart():
    from ultralytics.models.yolo.detect import DetectionTrainer

    assert prompted_trainer(trainer_of(SCRATCH)) == "YOLO-World"
    assert prompted_trainer(trainer_of(f"{YOLOE}:YOLOEPEFreeTrainer")) == "YOLOE"
    assert prompted_trainer(DetectionTrainer) == ""

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Losses of the classify task, alone and in its criterion."""

import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ultralytics.utils.loss import v8ClassificationLoss

from tests import checks, oracles
from tests.runs import Log, refuses, results, train
from yolo_lossplug.registry import REGISTRY, SOFTMAX
from yolo_lossplug.selection.select import select
from yolo_lossplug.ultralytics_hook.criterion import plug

NAMES = REGISTRY.names(SOFTMAX)
GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "cls_losses.json").read_text(encoding="utf-8"))
CLASSES = dict(enumerate("abcde"))


def made(**keys):
    return select({"task": "classify", **keys}).cls


def criterion(**keys):
    return plug(v8ClassificationLoss(), select({"task": "classify", **keys}), names=CLASSES)


def batch():
    rng = torch.Generator().manual_seed(1)
    logits = torch.randn(7, 5, generator=rng, dtype=torch.float64) * 3
    return logits.requires_grad_(), torch.randint(5, (7,), generator=rng)


@pytest.mark.parametrize("smoothing", [0, 0.1])
def test_equals_the_numbers_of_others(smoothing):
    entry = next(e for e in GOLDEN["losses"] if e["name"] == f"softmax_ce_ls{smoothing}")
    logits = torch.tensor(entry["logits"], dtype=torch.float64, requires_grad=True)
    targets = F.one_hot(torch.tensor(entry["labels"]), 5) * (1 - smoothing) + smoothing / 5
    loss = made(cls_loss="ce")(logits, targets.double()).sum(-1)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(entry["loss"]).double(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(logits.grad, torch.tensor(entry["grad"]).double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weights", [None, [1.0, 2, 0.5, 3, 1]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_criterion_equals_torch(smoothing, weights):
    logits, labels = batch()
    keys = {"cls_loss": "ce", "cls_smoothing": smoothing, **({} if weights is None else {"cls_weights": weights})}
    found, items = criterion(**keys)(logits, {"cls": labels})
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    expected = F.cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)
    logged = items["loss"] if isinstance(items, dict) else items
    assert logged == found.detach()


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_scalar_formula(name):
    logits, labels = batch()
    targets = F.one_hot(labels, 5).double()
    p = logits.detach().softmax(-1)[range(7), labels].tolist()
    for options in checks.choices(made(cls_loss=name)):
        found = made(cls_loss=name, **options)(logits, targets).sum(-1)
        expected = torch.tensor([oracles.SOFTMAX[name](x, **options) for x in p], dtype=torch.float64)
        torch.testing.assert_close(found.detach(), expected)
    checks.every_option_shows(lambda _, **options: made(cls_loss=name, **options), name, (logits, targets))


def test_neutral_options():
    logits, labels = batch()
    targets = F.one_hot(labels, 5).double()
    for keys in ({"cls_loss": "focal", "cls_focal_gamma": 0}, {"cls_loss": "poly", "cls_poly_epsilon": 0}):
        torch.testing.assert_close(made(**keys)(logits, targets), made(cls_loss="ce")(logits, targets))


@pytest.mark.parametrize("name", NAMES)
def test_finite_and_differentiable(name, device):
    wild = torch.tensor([[1e4, -1e4, 0], [-200, 200, 0], [0, 0, 0], [1e-30, 0, 3]], device=device, requires_grad=True)
    targets = F.one_hot(torch.tensor([1, 1, 2, 0], device=device), 3).float()
    loss = made(cls_loss=name)(wild, targets)
    loss.sum().backward()
    assert loss.isfinite().all() and (loss >= 0).all() and wild.grad.isfinite().all()
    with torch.autocast(device, dtype=torch.bfloat16):
        assert torch.equal(made(cls_loss=name)(wild, targets), loss)
    logits, labels = batch()
    assert torch.autograd.gradcheck(lambda x: made(cls_loss=name)(x, F.one_hot(labels, 5).double()), (logits,))


def test_stock_stays_stock_and_mistakes_are_named():
    assert type(criterion()) is v8ClassificationLoss
    refuses("the data has no class 'z'. Known: a, b, c, d, e", criterion, cls_weights={"z": 2})
    refuses("loss=eiou has no effect with task=classify", plug, v8ClassificationLoss(), select({"loss": "eiou"}))
    logits, labels = batch()
    by_name, _ = criterion(cls_weights={"b": 4})(logits, {"cls": labels})
    by_list, _ = criterion(cls_weights=[1, 4, 1, 1, 1])((None, logits), {"cls": labels})
    assert torch.equal(by_name, by_list)


@pytest.mark.slow
def test_a_classifier_trains(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label, name in enumerate(("dark", "light")):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                cv2.imwrite(
                    str(folder / f"{i}.png"), rng.integers(label * 128, label * 128 + 100, (48, 48, 3), np.uint8)
                )
    keys = {"data": str(tmp_path / "data"), "project": str(tmp_path), "imgsz": 32, "cls_loss": "focal"}
    with Log() as log:
        trainer = train("yolov8n-cls.yaml", **keys, cls_smoothing=0.1, cls_weights={"dark": 2})
    (line,) = [line for line in log.lines if "LossPlug: " in line]
    assert "class focal(cls_focal_gamma=2.0) smoothing=0.1 weights={'dark': 2.0} · engine" in line
    assert trainer.ema.ema.criterion.weights == [2.0, 1.0] and trainer.model.criterion.loss.name == "focal"
    assert results(trainer.save_dir)[-1]["train/loss"] > 0
    assert SimpleNamespace(**vars(trainer.args)).cls_loss == "focal" and "tal_topk" not in vars(trainer.args)

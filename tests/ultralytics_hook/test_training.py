# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whole training runs in this process, by every route that leads to a trainer."""

import pickle
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn import tasks
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import v8DetectionLoss

from tests.conftest import dataset
from tests.runs import ROOT, STILL, TINY, Log, refuses, results, train
from tests.ultralytics_hook.test_routes import globals_of
from yolo_lossplug import DetectionLoss
from yolo_lossplug.selection.keys import keys
from yolo_lossplug.ultralytics_hook import patching
from yolo_lossplug.ultralytics_hook import trainer as hook

pytestmark = pytest.mark.slow
CHOICE = {"loss": "focal-eiou", "focal_gamma": 0.4, "cls_loss": "qfl", "tal_topk": 7}


@pytest.fixture(scope="module")
def stock(data, tmp_path_factory):
    """Two stock runs with weights that do not move, the second with the dataset's cache in place."""
    project = tmp_path_factory.mktemp("stock")
    train(data=data, project=str(project), **STILL)
    return train(data=data, project=str(project), **STILL)


@pytest.fixture(scope="module")
def plugged(data, stock, tmp_path_factory):
    """A run with losses of ours on the same weights, and what was logged."""
    with Log() as log:
        trainer = train(data=data, project=str(tmp_path_factory.mktemp("plugged")), **STILL, **CHOICE)
    return trainer, log.text


def test_validation_loss_is_the_chosen_one_too_and_the_stock_loss_changes_nothing(stock, data, tmp_path):
    """A callback that sets the model's criterion trains with it, and validates with the host's."""
    eiou = results(train(data=data, project=str(tmp_path), **STILL, loss="eiou").save_dir)[-1]
    plain = results(stock.save_dir)[-1]
    for part in ("train", "val"):
        assert eiou[f"{part}/box_loss"] > 1.2 * plain[f"{part}/box_loss"]
        for other in ("cls_loss", "dfl_loss"):
            assert eiou[f"{part}/{other}"] == pytest.approx(plain[f"{part}/{other}"], rel=1e-4)
    named = train(data=data, project=str(tmp_path), **STILL, loss="CIoU")
    assert results(named.save_dir) == results(stock.save_dir)
    assert named.args.loss == "ciou"


def test_banner(plugged):
    _, text = plugged
    (line,) = [line for line in text.splitlines() if "LossPlug: " in line]
    for part in ("box focal-eiou(focal_gamma=0.4)", "class qfl", "tal(topk=7,", "engine fast", "ultralytics 8."):
        assert part in line
    for event, callback in hook.CALLBACKS:
        assert plugged[0].callbacks[event].count(callback) == 1
        assert pickle.loads(pickle.dumps(callback)) is callback


def test_the_choice_is_recorded(plugged):
    trainer, _ = plugged
    recorded = yaml.safe_load((trainer.save_dir / "args.yaml").read_text())
    checkpoint = torch.load(trainer.best, map_location="cpu", weights_only=False)
    expected = {**CHOICE, "cls_qfl_beta": 2.0, "tal_alpha": 0.5, "tal_iou": "ciou", "loss_engine": "auto"}
    for place in (recorded, checkpoint["train_args"], vars(trainer.args)):
        assert {key: place[key] for key in expected} == expected
        assert "alpha_power" not in place and "cls_focal_alpha" not in place, "keys without effect"


def test_a_stock_run_records_nothing(stock):
    ours = set(keys())
    recorded = yaml.safe_load((stock.save_dir / "args.yaml").read_text())
    checkpoint = torch.load(stock.best, map_location="cpu", weights_only=False)
    loaded = YOLO(stock.best)
    fresh = YOLO("yolov8n.yaml")
    load = getattr(tasks, "load_checkpoint", None) or tasks.attempt_load_one_weight
    models = (loaded.model, fresh.model, load(stock.best)[0])
    for place in (recorded, checkpoint["train_args"], vars(stock.args), *(model.args for model in models)):
        assert not ours & set(place)


def test_two_losses_one_after_the_other(data, tmp_path):
    model = YOLO("yolov8n.yaml")
    for name in ("eiou", "giou"):
        with Log() as log:
            model.train(**TINY, data=data, project=str(tmp_path), loss=name)
        assert f"box {name} " in log.text
        assert model.trainer.args.loss == name
    with Log() as log:
        model.train(**TINY, data=data, project=str(tmp_path))
    assert "LossPlug" not in log.text


@pytest.mark.parametrize("name", ["l1", "mpdiou", "uiou", "wise-focal-inner-shape-iou", "focal-alpha-ciou"])
def test_every_kind_of_loss_trains(name, data, tmp_path):
    """In cells, with the size of images, with the epoch, with what it remembers, and by prefixes."""
    trainer = train(data=data, project=str(tmp_path), loss=name, val=False)
    row = results(trainer.save_dir)[-1]
    assert 0 < row["train/box_loss"] < 1e4
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_a_recipe_trains(data, tmp_path):
    file = ROOT / "configs" / "focal-cls.yaml"
    trainer = train(cfg=str(file), data=data, project=str(tmp_path), val=False)
    recipe = yaml.safe_load(file.read_text())
    assert {key: vars(trainer.args)[key] for key in recipe} == recipe and recipe.keys() & keys().keys()


class OwnModel(DetectionModel):
    """A user's model whose criterion is made by hand."""

    def init_criterion(self):
        return DetectionLoss(self, loss="giou")


class OwnStockModel(DetectionModel):
    """A user's model that overrides the seam after the plugin was enabled, with the host's criterion."""

    def init_criterion(self):
        return v8DetectionLoss(self)


class ByHand(DetectionTrainer):
    model_class = OwnModel

    def get_model(self, cfg=None, weights=None, verbose=True):
        return self.model_class(cfg, nc=self.data["nc"], verbose=False)


class ReachedByCallback(ByHand):
    model_class = OwnStockModel


def test_trainers_of_the_users_own(data, tmp_path):
    class Custom(DetectionTrainer):
        pass

    with Log() as log:
        trainer = train(trainer=Custom, data=data, project=str(tmp_path), loss="eiou")
    assert type(trainer) is Custom and "box eiou" in log.text
    assert trainer.model.criterion.bbox_loss.loss.name == "eiou"
    trainer = train(trainer=ByHand, data=data, project=str(tmp_path))
    assert trainer.model.criterion.bbox_loss.loss.name == "giou"
    assert trainer.ema.ema.criterion.bbox_loss.loss.name == "giou"


def test_a_model_class_of_the_users_own(data, tmp_path, enabled):
    trainer = train(trainer=ReachedByCallback, data=data, project=str(tmp_path), loss="eiou")
    assert trainer.ema.ema.criterion.bbox_loss.loss.name == "eiou"
    enabled.disable()
    assert not hasattr(OwnStockModel.init_criterion, patching.MARK)


class Careless(DetectionTrainer):
    """A trainer that overrides what the plugin wraps, without calling it."""

    def check_resume(self, overrides):
        self.resume = False

    def save_model(self):
        ema, args = deepcopy(self.ema.ema).half(), vars(self.args)
        torch.save({"epoch": self.epoch, "ema": ema, "train_args": args, "model": None}, self.last)


@pytest.mark.parametrize(
    "keys_given", [{}, {"loss": "eiou", "cls_loss": "qfl", "tal_iou": "giou"}], ids=["stock", "ours"]
)
def test_a_careless_trainer_writes_nothing_of_ours(keys_given, data, tmp_path):
    overrides = {**TINY, "model": "yolov8n.yaml", "data": data, "project": str(tmp_path), **keys_given}
    trainer = Careless(overrides=overrides)
    saved = []
    trainer.add_callback("on_fit_epoch_end", lambda t: saved.append(globals_of(t.last)))
    trainer.train()
    assert not [word for word in saved[0] if "lossplug" in word.lower() or "Plugged" in word]
    recorded = yaml.safe_load((trainer.save_dir / "args.yaml").read_text())
    assert ("loss" in recorded) is bool(keys_given) and "focal_gamma" not in recorded


def stock_criterion(model):
    model.criterion = v8DetectionLoss(model)


def test_a_replaced_criterion_stops_the_run(data, tmp_path, enabled):
    for event, callback, role in (
        ("on_train_start", lambda trainer: stock_criterion(trainer.model), "training"),
        ("on_train_epoch_end", lambda trainer: stock_criterion(trainer.ema.ema), "validation"),
        ("on_train_start", lambda trainer: enabled.disable(), "training"),
    ):
        message = f"loss=eiou cls_loss=bce was requested, but {role} runs v8DetectionLoss with BboxLoss"
        refuses(message, train, data=data, project=str(tmp_path), loss="eiou", callbacks=[(event, callback)])


def test_several_datasets_in_this_process(data, other_data, tmp_path):
    model = YOLO("yolov8n.yaml")
    with Log() as log:
        model.train(**TINY, data=[data, other_data], project=str(tmp_path), loss="eiou", trainer=DetectionTrainer)
    assert log.text.count("box eiou") == 2
    saved = [yaml.safe_load(file.read_text())["loss"] for file in Path(tmp_path).rglob("args.yaml")]
    assert saved == ["eiou", "eiou"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="mixed precision is trained on a GPU")
@pytest.mark.parametrize("amp", [True, "bf16"])
def test_mixed_precision(amp, data, tmp_path):
    keys = {"epochs": 2, "device": 0, "amp": amp, "loss": "focal-eiou", "cls_loss": "qfl"}
    trainer = train(data=data, project=str(tmp_path), **keys)
    rows = results(trainer.save_dir)
    assert len(rows) == 2 and all(0 < row["train/box_loss"] < 1e3 for row in rows)
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_rotated_boxes_train(tmp_path):
    data, loss = dataset("turned", task="obb"), "focal-alpha-kld"
    with Log() as log:
        trainer = train("yolov8n-obb.yaml", data=data, project=str(tmp_path), loss=loss, cls_loss="qfl")
    assert f"box {loss}" in log.text and "iou=probiou) · engine" in log.text
    row = results(trainer.save_dir)[-1]
    assert 0 < row["train/box_loss"] < 100 and 0 < row["val/box_loss"] < 100
    assert trainer.ema.ema.criterion.bbox_loss.loss.name == loss


def test_stacked_with_the_hosts_class_weights(data, tmp_path):
    trainer = train(data=data, project=str(tmp_path), loss="focal-siou", epochs=2, cls_loss="varifocal", cls_pw=0.5)
    assert trainer.model.criterion.bce.is_weighted
    assert results(trainer.save_dir)[-1]["epoch"] == 2

# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is decided once is carried, and what is said is what runs."""

import functools
import io
import pickle
import shutil
import types

import pytest
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn import tasks
from ultralytics.utils.loss import BboxLoss, v8DetectionLoss

from tests.models import batch, model, with_keys
from tests.runs import ABSENT, TINY, Log, python, train
from yolo_lossplug import DetectionLoss, LossPlugError
from yolo_lossplug.selection import select as selection
from yolo_lossplug.ultralytics_hook import attached, config, members
from yolo_lossplug.ultralytics_hook import trainer as hook
from yolo_lossplug.ultralytics_hook.criterion import plug
from yolo_lossplug.ultralytics_hook.run import making, memory, runs
from yolo_lossplug.ultralytics_hook.running import branch_criteria, mismatches, running

select = selection.select


@pytest.mark.slow
def test_a_training_selects_once(data, tmp_path, monkeypatch):
    calls = []

    def counted(args):
        calls.append(args)
        return select(args)

    for module in (making, hook, config, runs):
        monkeypatch.setattr(module, "select", counted)
    trainer = train(data=data, project=str(tmp_path), loss="eiou", epochs=2)
    assert len(calls) == 1
    assert runs.of(trainer).selection.box.name == "eiou"


def test_one_attribute_on_objects_of_the_host():
    made = model("yolov8n")
    stock, ours = v8DetectionLoss(made), with_keys(made, loss="eiou", cls_loss="qfl", tal_iou="giou", tal_topk=7)
    preds = made(batch("yolov8n")["img"])
    for criterion in (stock, ours):
        criterion(dict(preds), batch("yolov8n"))
    assert set(vars(ours)) - set(vars(stock)) == {attached.ATTRIBUTE}
    assert set(vars(ours.assigner)) - set(vars(stock.assigner)) == {attached.ATTRIBUTE}


class OwnCriterion:
    """A wrapper around what the host's model makes, as people write it."""

    def __init__(self, inner):
        self.inner, self.calls = inner, 0

    def __call__(self, preds, batch):
        self.calls += 1
        return self.inner(preds, batch)


class OwnTopk(tasks.DetectionModel):
    def init_criterion(self):
        return v8DetectionLoss(self, tal_topk=20)


class OwnWrapper(OwnTopk):
    def init_criterion(self):
        return OwnCriterion(super().init_criterion())


class OwnClosure(OwnTopk):
    def init_criterion(self):
        inner = super().init_criterion()
        return lambda preds, batch: inner(preds, batch)


def trainer_of(cls):
    class Trainer(DetectionTrainer):
        def get_model(self, cfg=None, weights=None, verbose=True):
            return cls(cfg, nc=self.data["nc"], ch=3, verbose=False)

    return Trainer


@pytest.mark.slow
@pytest.mark.parametrize("cls", [OwnTopk, OwnWrapper])
def test_the_banner_reads_the_criterion_that_runs(cls, data, tmp_path):
    for keys, said in (
        ({"tal_topk": 13, "tal_beta": 3.0}, "box ciou · class bce · assigner tal(topk=13, alpha=0.5, beta=3.0"),
        ({"loss": "eiou"}, "box eiou · class bce · assigner tal(topk=20, alpha=0.5, beta=6.0"),
    ):
        with Log() as log:
            trainer = train(trainer=trainer_of(cls), data=data, project=str(tmp_path), **keys)
        assert said in log.text
        (leaf,) = branch_criteria(trainer.model.criterion)
        assert leaf.assigner.topk == keys.get("tal_topk", 20)
        assert leaf.assigner.beta == keys.get("tal_beta", 6.0)


@pytest.mark.slow
def test_what_cannot_be_looked_into_is_refused_by_the_keys_that_were_given(data, tmp_path):
    with pytest.raises(LossPlugError, match=r"^loss cannot be used with function, which has no box"):
        train(trainer=trainer_of(OwnClosure), data=data, project=str(tmp_path), loss="eiou")


def damage(**changes):
    def change(trainer):
        for path, value in changes.items():
            owner, _, name = path.rpartition("__")
            setattr(getattr(trainer.model.criterion, owner) if owner else trainer.model.criterion, name, value)

    return change


@pytest.mark.slow
def test_the_guard_names_what_differs(data, tmp_path):
    callbacks = [("on_train_batch_end", damage(assigner__topk=5))]
    with pytest.raises(LossPlugError, match=r"tal_topk=7 was requested, but training runs tal_topk=5\. The run is"):
        train(data=data, project=str(tmp_path), loss="eiou", tal_topk=7, epochs=2, callbacks=callbacks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c.assigner, "beta", 2.0), "tal_beta=6.0 was requested, but training runs tal_beta=2.0"),
        (lambda c: setattr(c.bce, "smoothing", 0.5), "cls_smoothing=0.1 was requested, but training runs cls_smooth"),
        (lambda c: setattr(c, "bbox_loss", BboxLoss(16)), "loss=eiou was requested, but training runs loss=ciou"),
    ],
    ids=["beta", "smoothing", "box loss"],
)
def test_differences_name_key_and_values(change, message):
    criterion = with_keys(model("yolov8n"), loss="eiou", cls_loss="qfl", cls_smoothing=0.1)
    chosen = criterion.lossplug.selection
    assert mismatches(criterion, chosen) == []
    change(criterion)
    assert any(text.startswith(message) for text in mismatches(criterion, chosen)), mismatches(criterion, chosen)


def test_a_class_loss_with_weights_of_its_own_is_not_replaced():
    criterion = v8DetectionLoss(model("yolov8n"))
    criterion.bce = nn.BCEWithLogitsLoss(reduction="none", pos_weight=torch.ones(3))
    with pytest.raises(LossPlugError, match=r"cls_weights cannot be used .*BCEWithLogitsLoss\(pos_weight\)"):
        plug(criterion, select({"cls_weights": [1, 2, 3]}))
    plug(criterion, select({"loss": "eiou"}))
    assert criterion.bce.pos_weight is not None


@pytest.mark.slow
def test_models_and_criteria_can_be_pickled_in_a_callback(data, tmp_path):
    saved = []

    def save(trainer):
        for thing in (trainer.model, trainer.ema.ema, trainer.model.criterion):
            content = io.BytesIO()
            torch.save(thing, content)
            saved.append((thing, content.getvalue(), pickle.dumps(thing)))

    keys = {"loss": "eiou", "tal_iou": "giou", "cls_loss": "qfl"}
    train(data=data, project=str(tmp_path), callbacks=[("on_train_epoch_end", save)], **keys)
    assert len(saved) == 3
    for thing, content, pickled in saved:
        for again in (torch.load(io.BytesIO(content), weights_only=False), pickle.loads(pickled)):
            assert type(again) is type(thing)
    criterion = pickle.loads(saved[2][2])
    assert running(criterion) == running(saved[2][0])
    preds = saved[0][0].train()(batch("yolov8n")["img"])
    assert torch.equal(criterion(dict(preds), batch("yolov8n"))[0], saved[2][0](dict(preds), batch("yolov8n"))[0])


@pytest.mark.slow
def test_a_run_that_was_copied_goes_on_with_what_its_losses_remember(data, tmp_path):
    def stop(trainer):
        if trainer.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            data=data, project=str(tmp_path / "a"), loss="wiou-v3", epochs=3, callbacks=[("on_train_batch_end", stop)]
        )
    shutil.move(tmp_path / "a", tmp_path / "b")
    (last,) = (tmp_path / "b").rglob("last.pt")
    seen = []
    yolo = YOLO(str(last))
    yolo.add_callback("on_train_start", lambda t: seen.append(dict(runs.of(t).state.tensors)))
    with Log() as log:
        yolo.train(resume=True, data=data, **{key: TINY[key] for key in ("device", "workers")})
    assert seen[0] and "is missing beside the checkpoint" not in log.text


def test_what_is_ignored_on_resume_is_said_once():
    """By us, with the value that stays; the host is asked about its own keys."""
    from yolo_lossplug.ultralytics_hook import trainer as hook

    recorded = select({"loss": "eiou", "tal_topk": 7}).resolved()
    trainer = types.SimpleNamespace(args=types.SimpleNamespace(resume="last.pt", device="cpu", **recorded))
    asked = []
    with Log() as log:
        hook.check_resume(lambda _, overrides: asked.append(overrides), trainer, {"loss": "giou", "lr0": 0.1})
    assert asked == [{"lr0": 0.1}]
    assert log.text.count("ignored") == 1
    assert "loss=giou is ignored: a resumed run goes on with loss=eiou. Start a new run to change it." in log.text


def test_what_is_missing_on_resume_is_said_once():
    trainer = types.SimpleNamespace(resume=True, start_epoch=1, epochs=3)
    with Log() as log:
        memory.check_state(runs.Run(select({"loss": "wiou-v3"})).state, trainer, keeps_state=True)
        memory.check_state(runs.Run(select({"loss": "eiou"})).state, trainer, keeps_state=False)
    (line,) = log.lines
    assert "lossplug.pt is missing beside the checkpoint" in line


@pytest.mark.parametrize("args", ["dict", "namespace", "none"])
def test_a_criterion_by_hand_needs_no_arguments_of_a_training(args):
    made = YOLO("yolov8n.yaml").model.train()
    assert isinstance(made.args, dict)
    if args == "namespace":
        made.args = types.SimpleNamespace(**made.args)
    elif args == "none":
        del made.args
    criterion = DetectionLoss(made, loss="eiou")
    loss = criterion(dict(made(batch("yolov8n", nc=80)["img"])), batch("yolov8n", nc=80))[0]
    assert loss.isfinite().all() and criterion.bbox_loss.loss.name == "eiou"
    assert (criterion.hyp.box, criterion.hyp.cls, criterion.hyp.dfl) == (7.5, 0.5, 1.5)


def test_disabling_leaves_what_others_have_put_over_ours(enabled, monkeypatch):
    ours, stock = tasks.PoseModel.init_criterion, tasks.PoseModel.init_criterion.__wrapped__

    def theirs(self):
        return ours(self)

    tasks.PoseModel.init_criterion = theirs
    try:
        enabled.disable()
        assert tasks.PoseModel.init_criterion is theirs
        made = model("yolov8n-pose")
        assert type(theirs(made)) is type(stock(made)) and not hasattr(theirs(made), attached.ATTRIBUTE)
        enabled.enable()
        assert with_keys(made, loss="eiou").lossplug.selection.box.name == "eiou"
        enabled.disable()
        assert tasks.PoseModel.init_criterion is theirs
    finally:
        tasks.PoseModel.init_criterion = stock
        enabled.enable()


def test_a_fork_whose_box_loss_is_another_one(monkeypatch):
    stock = BboxLoss.forward

    @functools.wraps(stock)
    def forked(self, *args):
        box, dfl = stock(self, *args)
        return box * 1.2, dfl

    made = model("yolov8n")
    monkeypatch.setattr(BboxLoss, "forward", forked)
    assert not members.box_loss_error() < 1e-3
    assert running(v8DetectionLoss(made))["loss"] == "BboxLoss (not CIoU)"
    criterion = with_keys(made, loss="ciou", tal_topk=7)
    assert running(criterion)["loss"].name == "ciou" and isinstance(criterion.bbox_loss, members.PluggedBboxLoss)


CLAIMED = """
import sys
import ultralytics.utils
ultralytics.utils.DEFAULT_CFG_DICT["{key}"] = {value}
setattr(ultralytics.utils.DEFAULT_CFG, "{key}", {value})
import yolo_lossplug
from ultralytics.cfg import get_cfg
from yolo_lossplug.selection.keys import keys
yolo_lossplug.enable()
assert yolo_lossplug.is_enabled(), yolo_lossplug._autoload.problem
assert "{key}" not in keys() and len(keys()) > 40
cfg = get_cfg(overrides={{"{key}": "theirs"}})
assert cfg.{key} == "theirs" and "{key}" not in yolo_lossplug.selection.select.select(vars(cfg)).resolved()
other = {{"cls_loss": "qfl", "tal_beta": 5.0}}
other.pop("{key}", None)
assert yolo_lossplug.selection.select.select({{"{key}": "theirs", **other}}).resolved().items() >= other.items()
if {owner!r}:
    try:
        get_cfg(overrides={{"loss": {owner!r}}})
        raise SystemExit("a loss without its option was not refused")
    except yolo_lossplug.LossPlugError as error:
        assert "{key}" in str(error), error
yolo_lossplug.disable()
assert "{key}" in ultralytics.utils.DEFAULT_CFG_DICT
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "owner"),
    [
        ("loss", "None", ""),
        ("cls_loss", "None", ""),
        ("loss_engine", "None", ""),
        ("nms_iou", "None", ""),
        ("lossplug_report", "False", ""),
        ("cls_weights", "None", ""),
        ("cls_smoothing", "0.0", ""),
        ("tal_topk", "10", ""),
        ("tal_min_side", "16", ""),
        ("tal_iou", "None", ""),
        ("loss_mix", "1", ""),
        ("focal_gamma", "0.5", "focal-eiou"),
    ],
)
def test_a_key_that_the_host_has_keeps_its_meaning(key, value, owner, tmp_path):
    done = python(CLAIMED.format(key=key, value=value, owner=owner), cwd=tmp_path, env=ABSENT)
    assert f"keys of its own named {key};" in done.stdout

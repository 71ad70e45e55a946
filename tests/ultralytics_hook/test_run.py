# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is decided once is carried, and what is said is what runs."""

import functools
import io
import pickle
import re
import shutil
import types

import pytest
import torch
import ultralytics
from torch import nn
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn import tasks
from ultralytics.utils.loss import BboxLoss, v8ClassificationLoss, v8DetectionLoss

from tests.models import batch, model, with_keys
from tests.runs import ABSENT, TINY, Log, interrupt, python, train
from yolo_lossplug import DetectionLoss, LossPlugError
from yolo_lossplug.selection import select as selection
from yolo_lossplug.ultralytics_hook import attached, config, console, members
from yolo_lossplug.ultralytics_hook import trainer as hook
from yolo_lossplug.ultralytics_hook.criterion import plug
from yolo_lossplug.ultralytics_hook.run import making, runs
from yolo_lossplug.ultralytics_hook.running import banner, branch_criteria, mismatches, running

select = selection.select


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
def test_the_banner_reads_the_criterion_that_runs(data, tmp_path):
    asked = {"tal_topk": 13, "tal_beta": 3.0}
    for cls, keys, said in (
        (OwnTopk, asked, "box ciou · class bce · assigner tal(topk=13, alpha=0.5, beta=3.0"),
        (OwnWrapper, {"loss": "eiou"}, "box eiou · class bce · assigner tal(topk=20, alpha=0.5, beta=6.0"),
    ):
        with Log() as log:
            trainer = train(trainer=trainer_of(cls), data=data, project=str(tmp_path), **keys)
        assert said in log.text
        (leaf,) = branch_criteria(trainer.model.criterion)
        assert leaf.assigner.topk == keys.get("tal_topk", 20)
        assert leaf.assigner.beta == keys.get("tal_beta", 6.0)


@pytest.mark.slow
def test_the_guard_names_what_differs_and_keys_that_cannot_be_looked_for(data, tmp_path):
    callbacks = [("on_train_batch_end", lambda trainer: setattr(trainer.model.criterion.assigner, "topk", 5))]
    with pytest.raises(LossPlugError, match=r"tal_topk=7 was requested, but training runs tal_topk=5\. The run is"):
        train(data=data, project=str(tmp_path), loss="eiou", tal_topk=7, epochs=2, callbacks=callbacks)
    with pytest.raises(LossPlugError, match=r"^loss cannot be used with function, which has no box"):
        train(trainer=trainer_of(OwnClosure), data=data, project=str(tmp_path), loss="eiou")


REPORT, TAL = "lossplug_report.csv", "assigner tal(topk=10, alpha=0.5, beta=6.0, iou=ciou)"


@pytest.mark.parametrize(
    ("given", "expected", "marked"),
    [
        ({"loss": "eiou"}, f"box eiou · class bce · {TAL}", ["box eiou"]),
        ({"cls_smoothing": 0.1}, f"box ciou · class bce smoothing=0.1 · {TAL}", ["class bce smoothing=0.1"]),
        (
            {"cls_loss": "qfl", "cls_smoothing": 0.2, "cls_weights": [1, 2]},
            f"box ciou · class qfl(cls_qfl_beta=2.0) smoothing=0.2 weights=[1.0, 2.0] · {TAL}",
            ["class qfl(cls_qfl_beta=2.0) smoothing=0.2 weights=[1.0, 2.0]"],
        ),
        ({"loss": "eiou", "nms_iou": "diou"}, f"box eiou · class bce · {TAL} · nms diou", ["box eiou", "nms diou"]),
        ({"lossplug_report": True}, f"box ciou · class bce · {TAL} · report {REPORT}", [f"report {REPORT}"]),
        (
            {"tal_topk": 7, "tal_beta": 6.0, "tal_iou": "giou"},
            f"box ciou · class bce · {TAL.replace('=10', '=7').replace('ciou', 'giou')}",
            ["topk=7", "iou=giou"],
        ),
        (
            {"task": "obb", "loss": "kld"},
            f"box kld(kld_tau=1.0) · class bce · {TAL.replace('ciou', 'probiou')}",
            ["box kld(kld_tau=1.0)"],
        ),
        ({"task": "classify", "cls_smoothing": 0.1}, "class ce smoothing=0.1", ["class ce smoothing=0.1"]),
    ],
    ids=str,
)
def test_every_part_of_the_banner(given, expected, marked):
    if given.get("task") == "classify":
        criterion = plug(v8ClassificationLoss(), select(given))
    else:
        criterion = with_keys(model("yolov8n-obb" if "task" in given else "yolov8n", nc=2), **given)
    said = banner(select(given), criterion)
    engine = criterion.lossplug.decision if hasattr(criterion, "assigner") else "reference"
    assert said == f"{expected} · engine {engine} · ultralytics {ultralytics.__version__}"
    with_marks = banner(select(given), criterion, "<{}>".format)
    assert re.findall("<(.*?)>", with_marks) == marked and re.sub("[<>]", "", with_marks) == said


def test_marks_are_for_terminals_alone(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for is_terminal, text in ((False, "box eiou"), (True, "\x1b[1mbox eiou\x1b[0m")):
        monkeypatch.setattr("sys.stdout.isatty", lambda value=is_terminal: value)
        assert console.bold("box eiou") == text
    monkeypatch.setenv("NO_COLOR", "1")
    assert console.bold("box eiou") == "box eiou"


def test_the_hosts_trainer_saves_without_the_criterion():
    """Also that of a student, or one made by hand where no key is given; releases before 8.4.95 would pickle it."""
    seen = []

    class Model:
        def __init__(self):
            self.criterion, self.student_model = "criterion", types.SimpleNamespace(criterion="student's")

        def state_dict(self, *_):
            seen.append(hasattr(self, "criterion") or hasattr(self.student_model, "criterion"))
            raise LookupError

        __deepcopy__ = state_dict  # whichever a release asks for first

    model = Model()
    with pytest.raises(LookupError):
        DetectionTrainer.save_model(types.SimpleNamespace(ema=types.SimpleNamespace(ema=model)))
    assert seen == [False] and (model.criterion, model.student_model.criterion) == ("criterion", "student's")


def test_differences_name_key_and_values():
    criterion = with_keys(model("yolov8n"), loss="eiou", cls_loss="qfl", cls_smoothing=0.1)
    chosen = criterion.lossplug.selection
    assert mismatches(criterion, chosen) == []
    criterion.assigner.beta, criterion.bce.smoothing, criterion.bbox_loss = 2.0, 0.5, BboxLoss(16)
    for key, asked, runs_ in (("tal_beta", 6.0, 2.0), ("cls_smoothing", 0.1, 0.5), ("loss", "eiou", "ciou")):
        said = f"{key}={asked} was requested, but training runs {key}={runs_}"
        assert any(text.startswith(said) for text in mismatches(criterion, chosen)), mismatches(criterion, chosen)


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
    interrupt(data=data, project=tmp_path / "a", loss="wiou-v3")
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
    recorded = select({"loss": "eiou", "tal_topk": 7}).resolved()
    trainer = types.SimpleNamespace(args=types.SimpleNamespace(resume="last.pt", device="cpu", **recorded))
    asked = []
    with Log() as log:
        hook.check_resume(lambda _, overrides: asked.append(overrides), trainer, {"loss": "giou", "lr0": 0.1})
    assert asked == [{"lr0": 0.1}]
    assert log.text.count("ignored") == 1
    assert "loss=giou is ignored: a resumed run goes on with loss=eiou. Start a new run to change it." in log.text


def test_a_criterion_by_hand_needs_no_arguments_of_a_training():
    made, given = YOLO("yolov8n.yaml").model.train(), batch("yolov8n", nc=80)
    for args in (made.args, types.SimpleNamespace(**made.args), None):
        made.args = args
        if args is None:
            del made.args
        criterion = DetectionLoss(made, loss="eiou")
        assert criterion(dict(made(given["img"])), given)[0].isfinite().all(), args
        assert criterion.bbox_loss.loss.name == "eiou"
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


HOSTS = {
    **dict.fromkeys(("loss", "cls_loss", "loss_engine", "nms_iou", "cls_weights", "tal_iou"), None),
    **{"lossplug_report": False, "cls_smoothing": 0.0, "tal_topk": 10, "tal_min_side": 16, "loss_mix": 1},
    "focal_gamma": 0.5,
}
"""Keys, and defaults that the host gives them."""
CLAIMED = """
import ultralytics.utils
from ultralytics.utils import DEFAULT_CFG, DEFAULT_CFG_DICT
from ultralytics.cfg import get_cfg
import yolo_lossplug
from yolo_lossplug.selection.keys import keys
from yolo_lossplug.selection.select import select
for key, value in {hosts!r}.items():
    DEFAULT_CFG_DICT[key] = value
    setattr(DEFAULT_CFG, key, value)
    yolo_lossplug.enable()
    assert yolo_lossplug.is_enabled(), yolo_lossplug._autoload.problem
    assert key not in keys() and len(keys()) > 40
    cfg = get_cfg(overrides={{key: "theirs"}})
    assert vars(cfg)[key] == "theirs" and key not in select(vars(cfg)).resolved()
    other = {{name: value for name, value in (("cls_loss", "qfl"), ("tal_beta", 5.0)) if name != key}}
    assert select({{key: "theirs", **other}}).resolved().items() >= other.items()
    if key == "focal_gamma":
        try:
            get_cfg(overrides={{"loss": "focal-eiou"}})
            raise SystemExit("a loss without its option was not refused")
        except yolo_lossplug.LossPlugError as error:
            assert key in str(error), error
    yolo_lossplug.disable()
    del DEFAULT_CFG_DICT[key], vars(DEFAULT_CFG)[key]
"""


@pytest.mark.slow
def test_a_key_that_the_host_has_keeps_its_meaning(tmp_path):
    said = python(CLAIMED.format(hosts=HOSTS), cwd=tmp_path, env=ABSENT).stdout
    assert [key for key in HOSTS if f"keys of its own named {key};" not in said] == []

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Keys in the host's configuration: known, checked in time, and absent from stock runs."""

import re
import subprocess
from typing import Annotated

import pytest
from ultralytics import YOLO, cfg
from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG, DEFAULT_CFG_DICT
from ultralytics.utils.tal import RotatedTaskAlignedAssigner, TaskAlignedAssigner

from tests.runs import ROOT, TINY, Log, refuses, yolo
from yolo_lossplug import LossPlugError, Option, box_loss
from yolo_lossplug.registry import BOX
from yolo_lossplug.selection.keys import keys
from yolo_lossplug.selection.own import load_own
from yolo_lossplug.tools.arguments import merge
from yolo_lossplug.ultralytics_hook import console, min_side, nms, typed
from yolo_lossplug.ultralytics_hook.family import guess_model
from yolo_lossplug.ultralytics_hook.run.making import RUNS

NOWHERE = "no-such-dataset.yaml"
"""A run that reaches its dataset fails with another error than ours."""


def test_keys_are_in_the_defaults_and_mean_nothing():
    for key, value in keys().items():
        assert DEFAULT_CFG_DICT[key] == value
        assert getattr(DEFAULT_CFG, key) == value


def test_mistakes_before_data_and_model(tmp_path):
    model = YOLO("yolov8n.yaml")
    for args, message in (
        ({"loss": "eiuo"}, "loss=eiuo is unknown. Did you mean 'eiou'"),
        ({"loss": "eiou", "focal_gamma": 0.5}, "focal_gamma=0.5 has no effect with loss=eiou"),
        ({"loss": "focal-eiou", "focal_gamma": "abc"}, "focal_gamma='abc' must be a number"),
        ({"tal_topk": 0}, "tal_topk=0 is out of range"),
        ({"tal_min_side": 0}, r"tal_min_side=0 is out of range; it must be in \(0, 65536\]"),
        ({"tal_min_side": 1e300}, r"tal_min_side=1e\+300 is out of range; it must be in \(0, 65536\]"),
    ):
        refuses(message, get_cfg, overrides=args)
        refuses(message, model.train, data=NOWHERE, project=str(tmp_path), **args)
    assert not list(tmp_path.iterdir()), "a run was begun"


@pytest.mark.parametrize("task", ["detect", "obb"])
def test_a_floor_of_sides_is_refused_where_the_release_has_none(task, monkeypatch, tmp_path):
    args = {"tal_min_side": 32, "task": task}
    get_cfg(overrides=args)
    monkeypatch.setattr(min_side, "has_floor", lambda *args: False)
    message = r"tal_min_side=32 cannot be used with ultralytics \S+: its \w+ has no floor .* Remove it, or install"
    refuses(message, get_cfg, overrides=args)
    with pytest.raises(LossPlugError, match=message):
        YOLO(f"yolov8n{'-obb' if task == 'obb' else ''}.yaml").train(data=NOWHERE, project=str(tmp_path), **args)
    with pytest.raises(LossPlugError, match=message):
        min_side.set_min_side(RotatedTaskAlignedAssigner() if task == "obb" else TaskAlignedAssigner(), 32.0)
    assert not list(tmp_path.iterdir()), "a run was begun"


def test_tasks_and_families_that_cannot_use_it(tmp_path):
    from ultralytics.models.yolo.classify import ClassificationTrainer
    from ultralytics.models.yolo.obb import OBBTrainer
    from ultralytics.models.yolo.yoloe import YOLOEVPTrainer

    overrides = {**TINY, "data": NOWHERE, "model": "some.yaml", "project": str(tmp_path), "loss": "eiou"}
    for trainer, message in (
        (OBBTrainer, "loss=eiou cannot be used with task=obb.*obb takes .*gwd, kfiou, kld, mgiou, probiou"),
        (ClassificationTrainer, "loss=eiou has no effect with task=classify"),
        (YOLOEVPTrainer, "loss cannot be used with YOLOEVPTrainer: YOLOE trains the class term alone"),
    ):
        refuses(message, trainer, overrides={**overrides})
    assert not list(tmp_path.iterdir()), "a run was begun"


def test_weights_of_classes_are_checked_before_a_model_is_built(data, tmp_path):
    from ultralytics.models.yolo.detect import DetectionTrainer

    for weights, message in (([1, 2], "has 2 values for 3 classes"), ({"disk": 2}, "the data has no class 'disk'")):
        overrides = {**TINY, "data": data, "model": "some.yaml", "project": str(tmp_path), "cls_weights": weights}
        refuses(message, DetectionTrainer, overrides=overrides)
    assert not RUNS, "a run was begun"


def test_a_sequence_of_datasets_is_checked_before_the_first(tmp_path):
    with pytest.raises(LossPlugError, match="loss=eiuo is unknown"):
        YOLO("yolov8n.yaml").train(data=[NOWHERE, NOWHERE], project=str(tmp_path), loss="eiuo")


def test_an_unknown_loss_is_reported_before_its_unknown_options():
    with pytest.raises(LossPlugError, match="loss=scaled-l1 is unknown.*a user-defined loss is loss=file.py:function"):
        get_cfg(overrides={"loss": "scaled-l1", "l1_scale": 2.0})
    with pytest.raises(LossPlugError, match="loss=mine.py lacks the function in that file: loss=mine.py:function"):
        get_cfg(overrides={"loss": "mine.py"})


WORDS = {
    "los=eiou": "los=eiou is unknown. Did you mean 'loss'?",
    "loss=nwd nwd_constnat=3": "nwd_constnat=3 is unknown. Did you mean 'nwd_constant'?",
    "loss": "'loss' has no value: write loss=VALUE.",
    "loss=": "loss= has no value; write loss=VALUE, or the key into a file, and cfg=FILE.",
    "loss=[ciou": "'loss=[ciou' has an unmatched '[' or ']' bracket. Close it, or write the key into a file",
    "cls_weights={'a[b':2}": "'cls_weights={'a[b':2}' has an unmatched '[' or ']' bracket. Close it, or write the key",
}


def test_a_word_that_means_one_of_our_keys_is_one_line():
    for words, message in WORDS.items():
        with Log() as log, pytest.raises(SystemExit) as stopped:
            cfg.entrypoint(f"yolo train model=yolov8n.yaml data={NOWHERE} {words}")
        assert " ".join(str(stopped.value).split()).startswith(f"LossPlug: {message}") and not log.lines
        if "unknown" in message:
            refuses(re.escape(message), get_cfg, overrides=dict(word.split("=") for word in words.split()))
        elif "=" in words:
            with pytest.raises(LossPlugError):
                console.parse([words])
    with pytest.raises(SyntaxError, match=r"'epcohs' is not a valid YOLO argument.*epochs"):
        get_cfg(overrides={"loss": "focal-eiou", "epcohs": 1.0})
    older = {"loss=[ciou": ""}  # older releases evaluate it, and check the whole word
    with pytest.raises(LossPlugError, match=r"loss=\[ciou cannot be read: close its brackets and quotation marks"):
        cfg.check_dict_alignment({**DEFAULT_CFG_DICT, "train": None}, older, SyntaxError())


def test_an_option_named_like_a_key_of_the_host_is_refused(enabled):
    """Whether the loss is registered after the host is imported, or before it."""

    def boxed(pred, target, *, box: Annotated[float, Option("factor")] = 1.0):
        return box * (pred - target).abs().sum(-1)

    message = "option 'box' of .*boxed in .* is a key of Ultralytics already"
    refuses(message, box_loss("boxed"), boxed)
    enabled.disable()
    box_loss("boxed")(boxed)
    enabled.enable()
    assert get_cfg().box == 7.5
    refuses(message, get_cfg, overrides={"loss": "boxed"})


def test_a_tuner_starts_from_the_defaults_of_our_keys(data, tmp_path):
    from ultralytics.engine.tuner import Tuner

    def tuner(**args):
        return Tuner({"model": "yolov8n.yaml", "data": data, "project": str(tmp_path), "task": "detect", **args})

    made = tuner(loss="focal-eiou", space={"focal_gamma": (0.1, 1.5), "tal_beta": (2.0, 8.0)})
    assert made.args.focal_gamma == 0.5 and made.args.tal_beta == 6.0
    made = tuner(loss="ciou+nwd", space={"loss_mix": (0.1, 0.9), "nwd_constant": (4.0, 32.0)})
    assert made.args.loss_mix == 0.5 and made.args.nwd_constant == 12.8
    with pytest.raises(LossPlugError, match="loss_mix=0.5 has no effect with loss=ciou; it belongs to two losses"):
        tuner(space={"loss_mix": (0.1, 0.9)})
    refuses("focal_gamma=0.5 has no effect with loss=ciou", tuner, space={"focal_gamma": (0.1, 1.5)})
    refuses("loss cannot be tuned: it is not a number", tuner, space={"loss": (0, 1)})
    assert tuner(space={"tal_min_side": (8.0, 40.0)}).args.tal_min_side == 16, "where Ultralytics 8.4.190 starts"
    refuses(r"tal_topk cannot be tuned in \(8.2, 8.8\): it takes integers", tuner, space={"tal_topk": (8.2, 8.8)})


@pytest.fixture
def commands(monkeypatch):
    """The commands that a tuner starts its runs with, which fail at once: what counts is what it asks for."""
    from ultralytics.engine import tuner

    given, actual = [], subprocess.run

    def run(command, *args, **kwargs):
        if "train" not in command:
            return actual(command, *args, **kwargs)
        given.append(dict(word.split("=", 1) for word in command if "=" in word))
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(tuner, "plot_tune_results", lambda *_: None)
    return given


def tune(iterations, space, project, **keys):
    keys = {"optimizer": "SGD", "epochs": 1, "plots": False, "project": str(project), **keys}
    YOLO("yolov8n.yaml").tune(iterations=iterations, space=space, **keys)


def test_a_tuner_varies_integers_in_integers(data, tmp_path, commands):
    space = {"tal_topk": (8, 15), "cls_ghm_bins": (5, 30), "tal_beta": (2.0, 8.0)}
    tune(4, space, tmp_path, data=data, cls_loss="ghm")
    assert len(commands) == 4
    assert all(8 <= int(args["tal_topk"]) <= 15 and 5 <= int(args["cls_ghm_bins"]) <= 30 for args in commands)
    assert len({tuple(args[key] for key in space) for args in commands}) > 1


OWN = """
from typing import Annotated
from yolo_lossplug import Option

def scaled(pred, target, *, own_scale: Annotated[float, Option("factor", above=0)] = 1.0):
    return own_scale * (pred - target).abs().sum(-1)
"""


@pytest.fixture
def own(tmp_path):
    """A loss in a file, which tells when it is loaded."""
    file = tmp_path / "own.py"
    file.write_text(f"{OWN}\nopen({str(tmp_path / 'loaded')!r}, 'a').close()\n")
    return f"{file}:scaled"


@pytest.mark.parametrize("registered", [False, True], ids=["by its file", "by its name"])
def test_an_unset_option_of_a_users_loss_is_handed_to_nobody(registered, own, data, tmp_path, commands, enabled):
    """A process that a tuner, Ray or a distributed run starts has not loaded the loss."""
    if registered:
        box_loss("scaled")(load_own(own, BOX).function)
        enabled.disable()
        enabled.enable()
    name = "scaled" if registered else own
    assert get_cfg(overrides={"loss": name, "own_scale": 2.0}).own_scale == 2.0
    refuses("own_scal=2.0 is unknown. Did you mean 'own_scale'?", get_cfg, overrides={"loss": name, "own_scal": 2.0})
    assert not {"own_scale"} & (vars(get_cfg()).keys() | vars(DEFAULT_CFG).keys() | DEFAULT_CFG_DICT.keys())
    tune(1, {"box": (4.0, 12.0)}, tmp_path, data=data)
    tune(1, {"own_scale": (1.0, 3.0)}, tmp_path, data=data, loss=name)
    stock, ours = commands
    assert "box" in stock and "own_scale" not in stock and float(ours["own_scale"]) >= 1.0


def test_a_name_typed_as_none_is_refused_but_of_a_program_that_gives_every_key():
    for word in ("loss=none", "cls_loss=NONE", "loss=None", "--loss=none"):
        key = word.lstrip("-").partition("=")[0]
        with pytest.raises(SystemExit, match=f"LossPlug: {key}=none is unknown. .* remove {key}, or give {key}="):
            cfg.entrypoint(f"yolo train model=yolov8n.pt {word} data={NOWHERE}")
        refuses(f"remove {key}, or give {key}=", console.parse, [word])
    words = " ".join(f"{key}=None" for key in keys())
    typed.refuse_typed_none(typed.typed_pairs((f"yolo train {words}",)))
    refuses("loss=none is unknown", typed.refuse_typed_none, typed.typed_pairs(("yolo train loss=None cls_loss=qfl",)))


def test_a_key_of_older_yolos_points_to_ours(monkeypatch):
    said = []
    monkeypatch.setattr(console, "warn_once", said.append)
    refuses(r"fl_gamma=1.5 is unknown. Use cls_loss=focal cls_focal_gamma=1.5\.", get_cfg, overrides={"fl_gamma": 1.5})
    assert not hasattr(get_cfg(overrides={"label_smoothing": 0.1, "mode": "train"}), "label_smoothing")
    assert said == ["label_smoothing=0.1 has no effect in this release of Ultralytics. Use cls_smoothing=0.1."]
    for stock in ({"label_smoothing": 0.0}, {"label_smoothing": 0.1, "mode": "val"}):
        get_cfg(overrides=stock)
    assert len(said) == 1


REFUSED = {
    "train model=yolov8n-obb.pt loss=eiou": "loss=eiou cannot be used with task=obb",
    "train model=yolov8n-cls.pt tal_topk=3": "tal_topk=3 has no effect with task=classify",
    "train model=rtdetr-l.pt tal_topk=3": "tal_topk=3 has no effect with RT-DETR: its queries",
    "val model=yolov8n.pt loss=eiou": "loss=eiou has no effect with mode=val: it is a key of training",
    "train model=yolov8n.pt loss=no.py:name": "there is no file",
}


def test_command_line_refuses_before_the_model_is_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, message in REFUSED.items():
        with Log() as log, pytest.raises(SystemExit, match=f"LossPlug: .*{message}"):
            cfg.entrypoint(f"yolo {words} data={NOWHERE}")
        assert not log.lines and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_process_ends_with_the_mistake(tmp_path):
    done = yolo("train", "model=yolov8n.pt", "loss=eiuo", f"data={NOWHERE}", cwd=tmp_path, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stdout and "Downloading" not in done.stdout
    assert "loss=eiuo is unknown. Did you mean 'eiou'?" in done.stdout.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_the_command_prints_a_mistake_without_a_traceback():
    with pytest.raises(SystemExit, match=r"^LossPlug: loss=eiuo is unknown\. Did you mean 'eiou'\?"):
        cfg.entrypoint(f"yolo train model=yolov8n.pt loss=eiuo data={NOWHERE}")


def test_what_a_file_tells(tmp_path):
    for name, expected in {
        **{"yolov8n.yaml": ("detect", ""), "yolo26x-obb.pt": ("obb", ""), "yolo11s-cls.pt": ("classify", "")},
        **{"yolov8n-seg.yaml": ("segment", ""), "yolov8s-worldv2.pt": ("detect", "YOLO-World")},
        **{"world-cup.pt": ("detect", ""), "rtdetr-x.pt": ("rtdetr", "")},
    }.items():
        assert guess_model({"model": name}) == expected
    assert guess_model({"task": "pose", "model": "mine.pt"}) == ("pose", "")
    assert guess_model({}) == ("detect", "")
    (tmp_path / "small-obb.pt").touch()
    assert guess_model({"model": str(tmp_path / "small-obb.pt")}) == ("detect", "")
    assert guess_model({"model": str(tmp_path / "other-obb.pt")}) == ("obb", "")


MODES = ["val", "predict", "track", "export", "benchmark"]


@pytest.mark.parametrize("mode", MODES)
def test_keys_of_training_are_refused_first(mode):
    """Before anything is asked of the model."""
    refuses(f"loss=eiou has no effect with mode={mode}", getattr(YOLO, mode), None, loss="eiou")
    model = YOLO("yolov8n.yaml")
    refuses(f"loss=eiou has no effect with mode={mode}", getattr(model, mode), loss="eiou")


def test_all_useless_keys_are_named_at_once():
    message = "loss=eiou, tal_topk=7, nms_iou=diou have no effect with mode=export: they are keys of training, and an"
    refuses(message, YOLO.export, None, loss="eiou", tal_topk=7, nms_iou="diou")


class Reached(Exception):
    """A mode has begun."""


@pytest.fixture
def reached(monkeypatch):
    """The arguments with which modes begin, which end there."""
    given = []

    def check(model, mode, keys_):
        given.append(dict(keys_))
        raise Reached

    monkeypatch.setattr(nms, "check_overlap", check)
    return given


@pytest.mark.parametrize("mode", MODES)
def test_the_command_runs_other_modes(mode, reached):
    """It hands `mode` and `model` on by name."""
    with pytest.raises(Reached):
        cfg.entrypoint(f"yolo {mode} model=yolov8n.yaml imgsz=64")
    assert [keys_["imgsz"] for keys_ in reached] == [64]


@pytest.fixture
def recorded(tmp_path):
    """The arguments of a training with losses of ours, as a run writes them."""
    file = tmp_path / "args.yaml"
    file.write_text("task: detect\nmode: train\nloss: focal-eiou\nfocal_gamma: 0.4\nnms_iou: diou\nimgsz: 64\n")
    return file


@pytest.mark.parametrize(("mode", "nms_iou"), [("val", "diou"), ("export", None)])
def test_a_file_of_a_training_serves_other_modes(mode, nms_iou, recorded, reached, monkeypatch):
    said = []
    monkeypatch.setattr(console, "say", said.append)
    with pytest.raises(Reached):
        cfg.entrypoint(f"yolo cfg={recorded} {mode} model=yolov8n.yaml")
    (keys_,) = reached
    assert keys_["imgsz"] == 64 and not {"loss", "focal_gamma"} & keys_.keys()
    assert keys_.get("nms_iou") == nms_iou
    (line,) = said
    assert "loss=focal-eiou, focal_gamma=0.4" in line and ("nms_iou=diou" in line) is (nms_iou is None)


@pytest.mark.parametrize("is_gone", [False, True], ids=["there", "gone"])
def test_a_users_loss_is_loaded_by_a_training_alone(is_gone, own, tmp_path, reached, monkeypatch):
    """The file of a training names it; it is code, and other modes have no use for it."""
    said, recorded = [], tmp_path / "args.yaml"
    monkeypatch.setattr(console, "say", said.append)
    recorded.write_text(f"mode: train\nloss: {own}\nown_scale: 2.0\nimgsz: 64\n")
    if is_gone:
        (tmp_path / "own.py").unlink()
    for mode in ("val", "predict", "export"):
        with pytest.raises(Reached):
            cfg.entrypoint(f"yolo {mode} model=yolov8n.yaml cfg={recorded}")
    assert [given["imgsz"] for given in reached] == [64] * 3 and not {"loss", "own_scale"} & reached[0].keys()
    assert len(said) == 3 and all(f"loss={own}, own_scale=2.0" in line for line in said)
    with pytest.raises(SystemExit, match="LossPlug: loss=.* has no effect with mode=val: it is a key of training"):
        cfg.entrypoint(f"yolo val model=yolov8n.yaml loss={own}")
    assert merge({"cfg": str(recorded), "data": "x"}, {"data", "imgsz"}) == (
        {"imgsz": 64, "data": "x"},
        {"mode": "train", "loss": own, "own_scale": 2.0, "imgsz": 64},
        str(recorded),
        ("mode", "loss", "own_scale"),
    )
    assert not (tmp_path / "loaded").exists(), "it was executed"
    if not is_gone:
        assert merge({"cfg": str(recorded)}, {"loss", "own_scale"}).values == {"loss": own, "own_scale": 2.0}
        assert (tmp_path / "loaded").exists()


def test_what_is_typed_beside_a_file_is_refused_at_once(recorded):
    with pytest.raises(SystemExit, match="LossPlug: loss=giou, tal_topk=7 have no effect with mode=val"):
        cfg.entrypoint(f"yolo cfg={recorded} val model=yolov8n.pt loss=giou tal_topk = 7")


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_recipes_are_valid(file):
    """Their keys are known and their values fit; they are trained elsewhere."""
    from ultralytics.utils.checks import check_yaml

    args = get_cfg(overrides=check_yaml(str(file)))
    assert args.loss or args.cls_loss

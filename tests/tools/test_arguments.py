# SPDX-License-Identifier: AGPL-3.0-or-later
"""A recipe given as cfg= to the commands: read as `yolo` reads it, the command line over it, nothing ignored."""

import json
import sys

import pytest

from tests.runs import ROOT, Log, refuses, run
from yolo_lossplug import LossPlugError
from yolo_lossplug.tools import verify
from yolo_lossplug.tools.arguments import loss_keys, merge
from yolo_lossplug.tools.compare import plan as compare
from yolo_lossplug.tools.curves import command as curves

RECIPE = str(ROOT / "configs" / "focal-eiou.yaml")
TINY = {"imgsz": 64, "batch": 2}
PLAN = {"data": "coco8.yaml", "model": "yolov8n.yaml"}


@pytest.fixture
def written(tmp_path):
    def write(text):
        file = tmp_path / "recipe.yaml"
        file.write_text(text)
        return str(file)

    return write


def arms_of(**keys):
    return [(arm.name, arm.keys) for arm in compare.plan_of({**PLAN, **keys}).arms]


def test_the_command_line_goes_over_the_file(written):
    file = written("loss: eiou\nepochs: 7\ncfg: other.yaml\n")
    for args in ({"cfg": file, "loss": "siou"}, {"loss": "siou", "cfg": file}):
        assert merge(args, {"loss", "epochs"}).values == {"loss": "siou", "epochs": 7}
    assert merge({"loss": "siou", "cfg": None}, ()) == ({"loss": "siou"}, {}, None, ())
    plan = compare.plan_of({**PLAN, "cfg": written("loss: eiou\ndevice: cpu\n"), "devices": (0, 1)})
    assert plan.devices == (0, 1) and "device" not in plan.args


def test_training_keys_without_effect_are_named_once_and_unknown_ones_stay(written):
    given = merge({"cfg": written("loss: eiou\nepochs: 7\nsave_dir: x\nepoch: 3\n")}, loss_keys())
    assert given.values == {"loss": "eiou", "epoch": 3} and given.unused == ("epochs", "save_dir")
    with Log() as log:
        given.say_unused()
    assert [line.endswith("recipe.yaml: epochs, save_dir") for line in log.lines] == [True]
    with Log() as log:
        merge({"loss": "eiou"}, loss_keys()).say_unused()
    assert not log.lines


@pytest.mark.slow
def test_verify_reads_a_recipe(written, tmp_path):
    assert "box focal-eiou(focal_gamma=0.5)" in verify.verify({**TINY, "cfg": RECIPE})[0]["runs"]
    assert "focal_gamma=0.2" in verify.verify({**TINY, "cfg": RECIPE, "focal_gamma": 0.2})[0]["runs"]
    with pytest.raises(LossPlugError, match=r"focal_gamma=0.5 has no effect with loss=eiou"):  # as `yolo train` says
        verify.verify({**TINY, "cfg": RECIPE, "loss": "eiou"})
    command = [sys.executable, "-m", "yolo_lossplug", "verify", "--json", f"cfg={RECIPE}", "imgsz=64", "batch=2"]
    assert "focal-eiou" in json.loads(run(command, tmp_path).stdout)["runs"]


def test_arguments_of_a_run_are_a_recipe(written):
    """`args.yaml` of a run has every key of a training, among them such as would send all runs into one folder."""
    file = written(
        "mode: train\nloss: eiou\nresume: null\nseed: 3\nexist_ok: true\nsave_dir: x\nepochs: 2\nname: mine\n"
    )
    plan = compare.plan_of({**PLAN, "cfg": file, "loss": "eiou,siou"})
    assert plan.args == {**PLAN, "epochs": 2} and plan.seeds == (0, 1, 2) and plan.name == "mine"
    assert "box eiou" in verify.verify({**TINY, "cfg": file})[0]["runs"]


def test_options_of_a_file_go_to_the_losses_that_have_them(written):
    with Log() as log:
        assert arms_of(cfg=RECIPE, loss="ciou,eiou") == [
            ("ciou", {"loss": "ciou", "loss_engine": "auto"}),
            ("eiou", {"loss": "eiou", "loss_engine": "auto"}),
        ]
    assert f"not used from {RECIPE}: focal_gamma" in log.text
    with Log() as log:
        assert [keys.get("focal_gamma") for _, keys in arms_of(cfg=RECIPE, loss="ciou,focal-siou")] == [None, 0.5]
    assert "not used" not in log.text
    refuses("inner_ratio=0.7 has no effect with loss=eiou", arms_of, cfg=written("loss: eiou\ninner_ratio: 0.7\n"))
    with pytest.raises(LossPlugError, match="focal_gamma=0.3 has no effect with loss=ciou,eiou"):  # typed
        arms_of(cfg=RECIPE, loss="ciou,eiou", focal_gamma=0.3)


def test_names_of_arms_tell_what_differs_from_the_file():
    for keys, names in (
        ({}, ["focal-eiou"]),
        ({"tal_topk": 13}, ["tal_topk=13"]),
        ({"focal_gamma": (0.5, 1.0)}, ["focal_gamma=0.5", "focal_gamma=1.0"]),
        ({"loss": "ciou,focal-eiou", "focal_gamma": 0.3}, ["ciou", "focal-eiou focal_gamma=0.3"]),
        ({"loss": "ciou,focal-eiou", "focal_gamma": 0.5}, ["ciou", "focal-eiou"]),
        ({"loss": "siou,giou", "tal_topk": 13}, ["siou tal_topk=13", "giou tal_topk=13"]),
        ({"cls_loss": "qfl"}, ["qfl"]),
    ):
        assert [name for name, _ in arms_of(**{"cfg": RECIPE, **keys})] == names


@pytest.mark.slow
def test_curves_takes_what_it_can_draw(written, tmp_path):
    file = written(
        "model: yolov8n.yaml\nloss: focal-eiou\nfocal_gamma: 0.3\ncls_loss: focal\ncls_focal_gamma: 1\nseed: 5\n"
    )
    keys = {"cfg": file, "project": str(tmp_path)}
    with Log() as log:
        curves.main({**keys, "cls_loss": "focal"})
    assert "not used from" in log.text and "model, seed, loss, focal_gamma" in log.text
    assert "focal(cls_focal_gamma=1.0" in (tmp_path / "curves" / "curves.csv").read_text(encoding="utf-8")
    refuses("give one of them on the command line", curves.main, keys)


@pytest.mark.parametrize("command", [compare.plan_of, verify.verify, curves.main])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"cfg=.*nothere\.yaml cannot be read"),
        ("- eiou\n", "cfg=.*recipe.yaml"),
        ("loss: [eiou\n", "cfg=.*recipe.yaml cannot be read"),
        ("los: eiou\n", r"los=eiou is unknown\. Did you mean 'loss'"),
        ("loss: eiuo\n", "Did you mean 'eiou'"),
    ],
)
def test_errors(command, text, message, written, tmp_path):
    file = str(tmp_path / "nothere.yaml") if text is None else written(text)
    keys = {"project": str(tmp_path / "none"), **(PLAN if command is compare.plan_of else {})}
    refuses(message, command, {**keys, "cfg": file})
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("keys", "message"), [({"mode": "val"}, "mode=val"), ({"resume": True}, "resume=True")])
def test_verify_is_of_a_training_from_the_start(keys, message):
    refuses(f"{message} cannot be given to verify", verify.verify, {**TINY, **keys})

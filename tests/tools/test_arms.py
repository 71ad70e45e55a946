# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a command compares."""

import pytest

from tests.runs import refuses
from yolo_lossplug import LossPlugError
from yolo_lossplug.tools.arms import arms, chosen_by, labels


def named(**args):
    return [(arm.name, arm.keys) for arm in arms(args)]


def test_every_loss_is_an_arm_and_options_go_where_they_belong():
    assert named(loss="ciou,eiou") == [("ciou", {"loss": "ciou"}), ("eiou", {"loss": "eiou"})]
    assert named(loss="EIoU") == [("eiou", {"loss": "EIoU"})]
    assert named() == [("ciou", {})]
    refuses(
        r"focal_gamma=0.3 has no effect with loss=ciou,eiou; it belongs to focal-\*\.",
        named,
        loss="ciou,eiou",
        focal_gamma=0.3,
    )
    refuses("focal_gamma=-1", named, loss="focal-eiou", focal_gamma=(0.3, -1))
    assert [name for name, _ in named(loss="ciou, CIoU ,eiou")] == ["ciou", "eiou"]
    assert named(loss="ciou,focal-eiou", focal_gamma=(0.3, 0.5), tal_topk=7) == [
        ("ciou", {"loss": "ciou", "tal_topk": 7}),
        ("focal-eiou focal_gamma=0.3", {"loss": "focal-eiou", "tal_topk": 7, "focal_gamma": 0.3}),
        ("focal-eiou focal_gamma=0.5", {"loss": "focal-eiou", "tal_topk": 7, "focal_gamma": 0.5}),
    ]
    names = [name for name, _ in named(loss="ciou,eiou", cls_loss="bce,qfl", cls_qfl_beta=1.5)]
    assert names == ["ciou bce", "ciou qfl", "eiou bce", "eiou qfl"]
    assert [name for name, _ in named(cls_loss="bce,qfl")] == ["bce", "qfl"]
    assert [name for name, _ in named(tal_iou="ciou,siou")] == ["tal_iou=ciou", "tal_iou=siou"]


def test_mixtures_and_losses_of_ones_own_are_arms(tmp_path, registry):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.py").write_text("def mine(pred, target):\n    return (pred - target).abs().sum(-1)\n")
    first, second = (f"{tmp_path}/{folder}/own.py:mine" for folder in "ab")
    assert [name for name, _ in named(loss=f"ciou,{first}")] == ["ciou", "own.py:mine"]
    assert [name for name, _ in named(loss=f"{first},{second}")] == [first, second]
    file = tmp_path / "losses.py"
    file.write_text("def mine(pred, target):\n    return (pred - target).abs().sum(-1)\n")
    chosen = arms({"loss": f"ciou,nwd,ciou + nwd,nwd+{file}:mine", "loss_mix": (0.3, 0.7), "nwd_constant": 6})
    assert [arm.name for arm in chosen] == [
        *("ciou", "nwd", "ciou+nwd loss_mix=0.3", "ciou+nwd loss_mix=0.7", "nwd+losses.py:mine loss_mix=0.3"),
        "nwd+losses.py:mine loss_mix=0.7",
    ]
    assert labels(chosen)[2] == "ciou+nwd(loss_mix=0.3, nwd_constant=6.0)"
    assert labels(chosen)[4] == "nwd+losses.py:mine(loss_mix=0.3, nwd_constant=6.0)"
    with pytest.raises(LossPlugError, match=r"loss_mix=0.3 has no effect with loss=ciou,nwd; it belongs to two losses"):
        arms({"loss": "ciou,nwd", "loss_mix": 0.3})


@pytest.mark.slow
def test_options_of_ones_own_are_keys(tmp_path, registry):
    """They are known as soon as a command is given, however many losses it names."""
    from yolo_lossplug.tools.compare import plan as compare
    from yolo_lossplug.tools.curves import command as curves

    file = tmp_path / "own.py"
    file.write_text(
        "from typing import Annotated\nfrom yolo_lossplug import Option\n\n\n"
        "def mine(pred, target, *, own_scale: Annotated[float, Option('factor')] = 1.0):\n"
        "    return own_scale * (pred - target).abs().sum(-1)\n"
    )
    args = {"loss": f"l1,{file}:mine", "own_scale": 2.0}
    plan = compare.plan_of({**args, "data": "coco8.yaml", "model": "yolov8n.yaml"})
    assert [arm.keys.get("own_scale") for arm in plan.arms] == [None, 2.0] and "own_scale" not in plan.args
    curves.main({**args, "project": str(tmp_path)})
    assert "own.py:mine(own_scale=2.0)" in (tmp_path / "curves" / "curves.csv").read_text(encoding="utf-8")


def test_weights_of_classes_are_one_value_and_tasks_have_losses_of_their_own():
    assert named(loss="ciou,eiou", cls_weights=[1.0, 2.0])[1][1] == {"loss": "eiou", "cls_weights": [1.0, 2.0]}
    assert len(named(cls_weights=[[1.0, 2.0], [2.0, 1.0]])) == 2
    assert [arm.name for arm in arms({"loss": "probiou,kld"}, "obb")] == ["probiou", "kld"]
    refuses("rotated", arms, {"loss": "ciou,kld"}, "obb")
    chosen = chosen_by({"arms": [{"loss": "ciou"}, {"tal_topk": 7}, {"cls_loss": "qfl", "cls": 5.0}], "epochs": 3})
    assert [arm.name for arm in chosen] == ["ciou", "tal_topk=7", "qfl cls=5.0"]
    assert [arm.keys for arm in chosen] == [{"loss": "ciou"}, {"tal_topk": 7}, {"cls_loss": "qfl", "cls": 5.0}]
    assert chosen[2].selection.cls.name == "qfl" and chosen[1].selection.box.name == "ciou"
    assert [arm.name for arm in chosen_by({"loss": "ciou,eiou"})] == ["ciou", "eiou"]


def test_errors_of_listed_arms():
    for args, message in (
        ({"arms": "ciou"}, r"arms=ciou must be a list with the keys of each arm: arms=\[\{'loss':'ciou'\}"),
        ({"arms": []}, "must be a list"),
        ({"arms": [{"loss": "ciou", "inner_ratio": 1.2}]}, "inner_ratio=1.2 has no effect"),
        ({"arms": [{"loss": "ciou"}, {"loss": "ciou"}]}, "arms= names ciou twice"),
        ({"arms": [{"loss": "ciou"}], "loss": "eiou"}, "loss=eiou has no effect beside arms="),
    ):
        refuses(message, chosen_by, args)

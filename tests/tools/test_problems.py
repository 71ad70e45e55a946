# SPDX-License-Identifier: AGPL-3.0-or-later
"""The example that compares losses on data with one problem each."""

import importlib.util
import json

import pytest

from tests.runs import ROOT
from yolo_lossplug import charts
from yolo_lossplug.shapes import SCENES
from yolo_lossplug.tools.compare.plan import plan_of


@pytest.fixture(scope="module")
def problems():
    spec = importlib.util.spec_from_file_location("problems", ROOT / "examples" / "problems.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_scene_has_arms_that_training_takes(problems):
    assert list(problems.PROBLEMS) == list(SCENES)
    plans = {name: plan_of(problems.arguments_of(name)) for name in problems.PROBLEMS}
    for plan in plans.values():
        assert plan.arms[0].name == "ciou" and 4 <= len(plan.arms) <= 5
        assert plan.seeds == (0, 1, 2, 3, 4) and plan.args["epochs"] == problems.COMMON["epochs"]
    tried = " ".join(arm.name for plan in plans.values() for arm in plan.arms[1:])
    named = (
        "nwd ciou+nwd tal_min_side tal_topk inner-ciou focal-eiou wiou-v3 eiou cls_weights qfl varifocal nms_iou=diou"
    )
    assert [word for word in named.split() if word not in tried] == []
    for name in problems.PROBLEMS:
        for arm in plan_of(problems.arguments_of(name)).arms:
            assert ("cls" in arm.keys) == (arm.selection.cls.name in ("qfl", "varifocal"))
            same_length = {"epochs"} if "data" in arm.keys else set()  # in images, of which one has more
            assert {"box", "dfl", *problems.COMMON}.intersection(arm.keys) == same_length


@pytest.mark.slow
def test_one_problem_with_few_epochs(problems, tmp_path, capsys):
    keys = {"seeds": 2, "epochs": 2, "arms": 2, "imgsz": 64, "fraction": 0.2, "val": True, "project": tmp_path}
    problems.main(["tiny"], **keys)
    assert "Differences from `ciou`" in capsys.readouterr().out
    rows = charts.read_table(tmp_path / "results" / "tiny.csv")
    assert [(row["loss"], row["seed"], row["state"]) for row in rows] == [
        *(("ciou", "0", "finished"), ("nwd", "0", "finished"), ("ciou", "1", "finished"), ("nwd", "1", "finished")),
    ]
    assert "save_dir" not in rows[0] and all(float(row["seconds"]) > 0 for row in rows)
    assert {"AP_small", "metrics/mAP50-95(B)", "AP_circle"} < rows[0].keys()
    curves = charts.read_table(tmp_path / "results" / "stock_curves.csv")
    assert [(row["problem"], row["seed"], row["epoch"]) for row in curves] == [
        ("tiny", seed, epoch) for seed in "01" for epoch in "12"
    ]
    text = (tmp_path / "results" / "about.json").read_text(encoding="utf-8")
    about = json.loads(text)
    assert about["seeds"] == [0, 1] and about["common"]["epochs"] == 2 and about["model"] == "problems-model.yaml"
    tiny = about["problems"]["tiny"]
    assert tiny["arms"] == {"ciou": {"loss": "ciou"}, "nwd": {"loss": "nwd"}}
    assert tiny["objects"]["train images"] == 96 and 4 <= tiny["objects"]["median side"] <= 12
    assert "seeds=2" in tiny["command"] and str(tmp_path) not in text

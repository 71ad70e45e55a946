# SPDX-License-Identifier: AGPL-3.0-or-later
"""Advice: each rule speaks on data made for it, none on plain data, and every command is one that compare takes."""

import json
import shlex
import subprocess
import sys

import pytest

from yolo_lossplug.tools.compare.plan import plan_of
from yolo_lossplug.tools.inspect.advice import NO_REASON, advise, write_weights
from yolo_lossplug.tools.inspect.facts import Facts, Pace, Shares, Tried
from yolo_lossplug.tools.inspect.report import advised, main_point
from yolo_lossplug.tools.inspect.rules import RULES, percent
from yolo_lossplug.tools.report import Report, Section
from yolo_lossplug.ultralytics_hook.console import parse

PLAIN = {
    **{"data": "my.yaml", "model": "yolov8n.yaml", "task": "detect", "imgsz": (640,), "n_objects": 1000},
    **{"few": (0.01,), "few_p2": (0.0,), "none": (0.0,)},
}
NOW = Shares(0.12, 0.2)
MORE = [Tried("tal_topk", 10, 20, NOW, Shares(0.13, 0.24)), Tried("tal_topk", 10, 5, NOW, Shares(0.11, 0.09))]
SIDE = Tried("tal_min_side", 16.0, 32.0, NOW, Shares(0.04, 0.3))
OBB = {"task": "obb", "model": "yolov8n-obb.yaml"}
MADE = {
    "faults": {"faults": {"side below 1 pixel": 30, "images that the loader leaves out": 1}},
    "regions": {"unused": ("ignored", "others")},
    "entries": {"absent": {"first/images": ("triangle",)}},
    "no candidates": {"none": (0.031,)},
    "few candidates": {"few": (0.31, 0.06), "few_p2": (0.02, 0.0), "imgsz": (640, 960), "none": (0.0, 0.0)},
    "small in one scale only": {"small_input": (0.16,), "small_original": 0.67},
    "tiny objects": {"tiny": (0.4,)},
    "rare classes": {"rare": ("it's", "car"), "rare_share": 0.004, "imbalance": 130.0},
    "overlapping objects": {"crowded": 0.05},
    "elongated objects": {"long": 0.3},
    "square rotated objects": {"square": 0.3, **OBB},
    "elongated rotated objects": {"long": 0.3, **OBB},
    "objects without an anchor": {"without": 0.12, "without_small": 0.3, "conflicts": 0.0, "tried": [*MORE, SIDE]},
    "contested anchors": {"without": 0.0, "conflicts": 0.2, "tried": MORE},
    "memory": {"dense_bytes": 3 * 2**30},
}


EVERY = {"mean_side": (10.0, 15.0), "none": (0.1, 0.1), "without": 0.12, "conflicts": 0.2, "tried": [*MORE, SIDE]}
"""Values that several cases set."""


def test_every_rule_has_a_case_and_its_threshold():
    shares = {0: "0", 0.0004: "<0.1", 0.0042: "0.4", 0.0094: "0.9", 0.00996: "1", 0.06: "6", 0.314: "31", 1: "100"}
    assert {share: percent(share).replace("below ", "<") for share in shares} == {
        k: f"{v} %" for k, v in shares.items()
    }
    assert list(MADE) == [rule.name for rule in RULES]
    assert {rule.name: rule.threshold for rule in RULES} == THRESHOLDS


THRESHOLDS = {
    **{
        "faults": 0.005,
        "regions": 1,
        "entries": 1,
        "no candidates": 0.005,
        "few candidates": 0.1,
        "small in one scale only": 0.3,
    },
    **{"tiny objects": 0.2, "rare classes": 1, "overlapping objects": 0.02, "elongated objects": 0.2},
    **{"square rotated objects": 0.2, "elongated rotated objects": 0.2},
    **{"objects without an anchor": 0.05, "contested anchors": 0.15, "memory": 2**31},
}
CITED = {
    "tiny objects": "better: loss=nwd (+0.1094); within noise: loss=ciou+nwd, ",
    "rare classes": "worse: cls_weights=[1,1,2.5] (-0.0828), cls_loss=qfl cls=5 (-0.0804), ",
    "overlapping objects": "against stock: within noise: nms_iou=diou (docs/problems.md).",
    "elongated objects": "within noise: loss=eiou, loss=shape-iou shape_scale=1, loss=focal-eiou (",
    "objects without an anchor": "within noise: tal_min_side=32, tal_topk=7, tal_topk=13 (",
    "contested anchors": "within noise: tal_min_side=32, tal_topk=7, tal_topk=13 (",
}


def test_where_there_is_no_reason():
    (advice,) = advise(Facts(**PLAIN))
    assert advice.text == NO_REASON == "no reason to change the stock loss"
    (advice,) = advise(Facts(**PLAIN, without=0.0, without_small=None, conflicts=0.0))
    assert advice.command == "lossplug compare data=my.yaml model=yolov8n.yaml imgsz=640 epochs=100 loss=ciou seeds=3"
    assert advise(Facts(**PLAIN, crowded=0.5, end_to_end=True))[0].text == NO_REASON
    same = [Tried("tal_topk", 20, 40, NOW, Shares(0.115, 0.195))]
    missed, contested = advise(Facts(**PLAIN, without=0.12, conflicts=0.2, tried=same))
    for advice in (missed, contested):
        assert advice.text.endswith("with tal_topk=40: none of these lowers it by a point") and not advice.command


@pytest.mark.parametrize("name", MADE)
def test_each_rule_speaks_alone_and_says_what_was_measured(name):
    (advice,) = advise(Facts(**{**PLAIN, **MADE[name]}))
    rule = next(rule for rule in RULES if rule.name == name)
    assert advice.name == name and advice.source and any(letter.isdigit() for letter in advice.text)
    assert "improve" not in advice.text and "better" not in advice.text and "drops to 0" not in advice.text
    assert rule.value(Facts(**PLAIN)) is None or rule.value(Facts(**PLAIN)) < rule.threshold
    facts = Facts(**{**PLAIN, **MADE[name]})
    (advice,) = advise(facts)
    assert CITED.get(name, "") in advice.measured and bool(advice.measured) == (name in CITED)
    shown = Report("", sections=[Section("", [*advised(advice)])]).terminal()
    assert " ".join(advice.measured.split()) in " ".join(shown.split())
    assert (advice.measured in main_point([advice])) == ("worse" in advice.measured or not advice.measured)


@pytest.mark.parametrize("name", [*MADE, "none"])
def test_commands_are_those_that_compare_takes(name):
    """As a shell splits them, and Ultralytics parses the words."""
    (advice,) = advise(Facts(**{**PLAIN, **MADE.get(name, {})}))
    is_noise = name in ("none", "faults", "no candidates", "few candidates", "small in one scale only", "memory")
    for line in advice.command.splitlines():
        words = shlex.split(line)
        assert words[:2] == ["lossplug", "compare"] and any(word.startswith("loss=") for word in words)
        plan = plan_of(parse(words[2:]))
        assert plan.seeds == (0, 1, 2) and plan.args["data"] == "my.yaml"
        assert len(plan.arms) == (1 if is_noise else 2), name


@pytest.mark.parametrize("name", ["it's $HOME", 'a "b"', "`c`", "back\\slash", "a b!"])
def test_a_shell_passes_on_names_of_files_and_classes(name):
    data = f"/my data/{name}.yaml"
    (advice,) = advise(Facts(**{**PLAIN, **MADE["rare classes"], "data": data, "rare": (name,)}))
    line = shlex.quote(sys.executable) + ' -c "import json, sys; print(json.dumps(sys.argv[1:]))"'
    shown = subprocess.run(
        ["bash", "-c", advice.command.replace("lossplug", line, 1)], capture_output=True, text=True, check=True
    )
    values = parse(json.loads(shown.stdout)[1:])
    assert values["data"] == data and values["cls_weights"] == [{name: 1}, {name: 2}]


def test_texts_have_their_numbers_and_say_whether_weights_are_random():
    few = advise(Facts(**{**PLAIN, **MADE["few candidates"]}))[0]
    assert few.text.startswith(
        "31 % of objects have fewer than 4 candidates at imgsz 640, 6 % at 960, and 2 % at 640 with a P2 head: a larger"
    )
    assert [line.split()[4] for line in few.command.splitlines()] == ["imgsz=640", "imgsz=960"]
    rare = advise(Facts(**{**PLAIN, **MADE["rare classes"]}))[0]
    assert rare.text.startswith("classes it's, car have 0.4 % of objects, the largest class 130 times")
    alone = advise(Facts(**{**PLAIN, "rare": ["car"], "rare_share": 0.004}))[0]
    assert alone.text.startswith("class car has 0.4 % of objects")
    assert "imgsz=960" in advise(Facts(**{**PLAIN, "none": (0.01,)}))[0].command
    both = {**MADE["objects without an anchor"], "conflicts": 0.2}
    for is_untrained in (True, False):
        missed, contested = advise(Facts(**{**PLAIN, **both, "is_untrained": is_untrained}))
        for advice in (missed, contested):
            assert ("the random weights of an untrained model" in advice.text) == is_untrained
            assert ("this model" in advice.text) != is_untrained


def every(**more):
    made = {key: value for name in MADE for key, value in MADE[name].items()}
    return Facts(**{**PLAIN, **made, "task": "detect", "model": "yolov8n.yaml", **EVERY, **more})


def test_every_advice_at_once_and_those_of_rotated_boxes():
    given = {advice.name: advice for advice in advise(every())}
    joined = ("few candidates", "elongated objects", "square rotated objects", "elongated rotated objects")
    assert list(given) == [name for name in MADE if name not in joined]
    assert "have no candidate" in given["no candidates"].text and "fewer than 4" in given["no candidates"].text
    assert "loss=ciou,nwd,eiou nwd_constant=" in given["tiny objects"].command
    rotated = advise(every(**OBB))
    assert "loss=probiou,mgiou,kld" in "".join(advice.command for advice in rotated)
    for advice in rotated:
        assert all(rule.is_for_rotated is not False for rule in RULES if rule.name == advice.name)
        for line in advice.command.splitlines():
            plan_of(parse(shlex.split(line)[2:]))


def test_numbers_of_the_assigner_are_advised_by_what_they_change():
    missed, contested = (
        given for given in advise(every()) if given.name in ("objects without an anchor", "contested anchors")
    )
    assert (
        "30 % of the small ones; it would be 13 % with tal_topk=20, 11 % with tal_topk=5, 4 % with tal_min_side=32: "
        "compare tal_min_side before losses" in missed.text
    )
    assert "tal_min_side=16,32" in missed.command
    assert "24 % with tal_topk=20, 9 % with tal_topk=5" in contested.text and "tal_topk=10,5" in contested.command
    size = Tried("imgsz", 640, 960, Shares(0.1, 0.2), Shares(0.02, 0.1), 100)
    (missed,) = advise(Facts(**PLAIN, without=0.12, conflicts=0.0, tried=[*MORE, size]))
    assert "2 % with imgsz=960 (of 10 %, in 100 images): compare imgsz before losses" in missed.text
    assert [line.split()[4] for line in missed.command.splitlines()] == ["imgsz=640", "imgsz=960"]
    fewer = Tried("tal_topk", 10, 20, NOW, Shares(0.08, 0.22))
    missed, contested = advise(Facts(**PLAIN, without=0.12, conflicts=0.2, tried=[fewer, MORE[1]]))
    assert "tal_topk=10,20" in missed.command
    assert contested.text.endswith("9 % with tal_topk=5: compare tal_topk=20 first") and not contested.command


def test_commands_keep_what_was_inspected():
    pace = Pace(1e-6, 1000, "this CPU")
    sizes = {"imgsz": (640, 960), "tiny": (0.4, 0.1), "mean_side": (21.25, 31.875)}
    kept = {"kept": {"fraction": 0.5, "tal_topk": 20}, "model": "mine/best.pt", "pace": pace}
    (tiny,) = advise(Facts(**{**PLAIN, **sizes, **kept}))
    start = "lossplug compare data=my.yaml model=mine/best.pt imgsz={} epochs=100 fraction=0.5 tal_topk=20 "
    ends = ("loss=ciou,nwd nwd_constant=21.2 seeds=3", "loss=ciou,nwd nwd_constant=31.9 seeds=3")
    assert tiny.command.splitlines() == [f"{start.format(size)}{end}" for size, end in zip((640, 960), ends)]
    hours = (640**2 + 960**2) * 1e-6 * 1000 * 100 * 6 / 3600
    assert tiny.estimate.startswith(f"About {hours:,.0f} h on this CPU: 12 runs, 100 epochs, 1,000 images")
    (change,) = advise(
        Facts(**{**PLAIN, **kept, "without": 0.12, "conflicts": 0.0, "tried": [MORE[1]._replace(now=20)]})
    )
    assert "tal_topk=20,5" in change.command and "tal_topk=20 " not in change.command


def test_the_weights_of_many_classes_are_in_a_file(tmp_path):
    rare = [f"class {i}: 'x'" for i in range(7)]
    facts = Facts(**{**PLAIN, "rare": rare, "rare_share": 0.01})
    write_weights(facts, tmp_path)
    (advice,) = advise(facts, tmp_path)
    assert "and 3 more" in advice.text
    for command in (advice.command, advise(facts)[0].command):
        plan = plan_of(parse(shlex.split(command)[2:]))
        assert [arm.keys["cls_weights"] for arm in plan.arms] == [{rare[0]: 1}, dict.fromkeys(rare, 2)]
    (few,) = advise(Facts(**{**PLAIN, **MADE["rare classes"]}), tmp_path)
    assert "cfg=" not in few.command and "it\\'s':2,'car':2" in few.command

# SPDX-License-Identifier: AGPL-3.0-or-later
"""`match_gains=True` of `lossplug compare`: gains measured, stored, used again, and refused."""

import json
import random

import numpy as np
import pytest
import torch

from tests.runs import ROOT, arguments, slow
from yolo_lossplug import LossPlugError
from yolo_lossplug.tools.compare import answer, gains, jobs
from yolo_lossplug.tools.compare import command as compare
from yolo_lossplug.ultralytics_hook.console import parse
from yolo_lossplug.ultralytics_hook.trial import gradients, one_step

KEYS = {
    "data": str(ROOT / "configs" / "data" / "shapes128.yaml"),
    "model": "yolov8n.yaml",
    "epochs": 1,
    "imgsz": 64,
    "batch": 8,
    "device": "cpu",
    "workers": 0,
    "plots": False,
    "fraction": 0.5,
}
ARMS = [{}, {"loss": "eiou"}, {"cls_loss": "qfl"}, {"tal_topk": 5}]


def norms(arms, **keys):
    return gradients.norms({**KEYS, **keys}, arms)


@pytest.mark.parametrize("model", ["yolov8n.yaml", slow("yolov10n.yaml")])
def test_matched_arms_have_the_norms_of_the_first(model):
    before = norms(ARMS, model=model)
    names = [str(keys) for keys in ARMS]
    matched = gains.scaled({"box": 7.5, "cls": 0.5}, dict(zip(names, before)))
    after = norms([{**keys, **matched[name].gains} for keys, name in zip(ARMS, names)], model=model)
    for one in after:
        assert one == pytest.approx(before[0], rel=1e-3)
    first, eiou, qfl, topk = (matched[name] for name in names)
    assert first.gains == {"box": 7.5, "cls": 0.5} and first.ratios == {"box": 1, "cls": 1}
    assert qfl.gains["cls"] > 2 * 0.5 and qfl.ratios["cls"] < 0.5
    assert qfl.ratios["box"] == pytest.approx(1, rel=1e-6) and eiou.ratios["cls"] == pytest.approx(1, rel=1e-6)
    assert eiou.ratios["box"] != pytest.approx(1, rel=0.01) and topk.ratios["cls"] != pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("kind", ["seg", "pose", "obb"])
def test_every_task_with_gains_is_matched(kind):
    keys = {"model": f"yolov8n-{kind}.yaml", "data": str(ROOT / "configs" / "data" / f"shapes128-{kind}.yaml")}
    arms = {"first": {"cls_loss": "bce"}, "second": {"cls_loss": "focal"}}
    before = dict(zip(arms, norms(list(arms.values()), **keys)))
    matched = gains.scaled({"box": 7.5, "cls": 0.5}, before)
    (after,) = norms([{**arms["second"], **matched["second"].gains}], **keys)
    assert after == pytest.approx(before["first"], rel=1e-3)
    assert matched["second"].ratios["cls"] < 0.9 and matched["second"].ratios["box"] == pytest.approx(1, rel=1e-6)


def test_a_measurement_repeats_and_leaves_the_callers_random_numbers(tmp_path):
    """The gains of the command are those measured with, and a loss without gradient has the norm 0."""
    own = tmp_path / "own.py"
    own.write_text("def flat(pred, target):\n    return (pred - target).abs().sum(-1) * 0\n")
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    plain, flat = norms([{}, {"loss": f"{own}:flat"}])
    (more,) = norms([{"box": 15.0}], cls=1.0)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert more == pytest.approx({"box": 2 * plain["box"], "cls": 2 * plain["cls"]}, rel=1e-5)
    assert flat["box"] == 0 and flat["cls"] == pytest.approx(plain["cls"])


def test_a_batch_without_assigned_anchor_has_no_box_gradient(monkeypatch):
    """Releases that do not call their box loss then leave the branch out."""
    one = one_step.trial({"imgsz": 64, "batch": 2, "loss_engine": "reference"})
    empty = {key: value[:0] if key in ("cls", "bboxes", "batch_idx") else value for key, value in one.batch.items()}
    one = one._replace(batch=empty)
    assert gradients._squares(one_step.criterion_of(one), one)["box"] == 0
    monkeypatch.setattr(one_step, "seen_in", lambda criterion, one: {})
    assert one_step.grad_norms(one_step.criterion_of(one), one) == {}
    assert gradients._squares(one_step.criterion_of(one), one) == {"box": 0.0, "cls": 0.0}


@pytest.mark.parametrize(
    ("value", "state"), [(0.0, "is 0"), (float("nan"), "is NaN or infinite"), (float("inf"), "is NaN or infinite")]
)
def test_a_gradient_that_cannot_be_matched_is_refused(value, state):
    for arm in ("a", "b"):
        found = {"a": {"box": 1.0, "cls": 2.0}, "b": {"box": 1.0, "cls": 2.0}}
        found[arm]["cls"] = value
        with pytest.raises(LossPlugError, match=rf"gradient of the class term of {arm} {state} .* no cls= would"):
            gains.scaled({"box": 7.5, "cls": 0.5}, found)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"match_gains": "often"}, "match_gains=often must be True or False"),
        ({"match_gains": 1}, "match_gains=1 must be True or False"),
        ({"batch": -1}, "needs a batch size to measure with: batch=-1"),
        ({"batch": 0.7}, "needs a batch size to measure with: batch=0.7"),
        ({"model": "yolov8n-cls.yaml", "loss": None, "cls_loss": "ce,focal"}, "the classify task has one term"),
        ({"model": "rtdetr-l.yaml"}, "RT-DETR's gains are no keys"),
        ({"box": 0.0}, "the gradient of the box term of ciou is 0"),
    ],
)
def test_errors_come_before_anything_is_written(tmp_path, keys, message):
    args = {**KEYS, "loss": "giou,eiou", "match_gains": True, "project": str(tmp_path), **keys}
    args = {**args, "loss": "ciou,eiou"} if "box" in keys else args
    with pytest.raises(LossPlugError) as caught:
        compare.compare({key: value for key, value in args.items() if value is not None})
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_model_of_another_file_name_is_refused_when_it_is_loaded():
    """The name of a file does not tell that it is for the classify task."""
    with pytest.raises(LossPlugError, match="has no gains box= and cls= to scale"):
        norms(ARMS, model="yolov8n-cls.yaml")


def test_command_line():
    plan = compare.plan_of(parse([*arguments(**KEYS, loss="ciou,eiou"), "match_gains=True"]))
    assert plan.match_gains and "match_gains" not in plan.args
    assert "match_gains=True" in compare._header(plan)[0] and "match_gains" in compare.HELP
    for words in ([], ["match_gains=False"]):
        plan = compare.plan_of(parse([*arguments(**KEYS, loss="ciou,eiou"), *words]))
        assert not plan.match_gains and "match_gains" not in compare._header(plan)[0]


@pytest.fixture
def measured(monkeypatch):
    """Arms that are measured, with norms by loss, and jobs that are run, without training."""
    seen = {"arms": [], "jobs": []}
    by_loss = {"ciou": 1.0, "eiou": 4.0, "siou": 0.5}

    def norms(args, arms):
        seen["arms"].append([keys["loss"] for keys in arms])
        return [{"box": by_loss[keys["loss"]], "cls": 1.0} for keys in arms]

    monkeypatch.setattr(gradients, "norms", norms)
    monkeypatch.setattr(jobs, "run_in_turn", lambda waiting, report: seen["jobs"].append(list(waiting)))
    return seen


def test_a_continued_comparison_has_the_stored_gains(tmp_path, measured):
    args = {**KEYS, "seeds": 2, "match_gains": True, "project": str(tmp_path), "name": "mine", "box": 6.0}
    compare.compare({**args, "loss": "ciou,eiou"})
    stored = json.loads((tmp_path / "mine" / gains.FILE).read_text())
    assert stored["eiou"] == {"gains": {"box": 1.5, "cls": 0.5}, "ratios": {"box": 4.0, "cls": 1.0}, "baseline": "ciou"}
    stored["eiou"]["gains"]["box"] = 1.25  # that a second measurement would not give
    (tmp_path / "mine" / gains.FILE).write_text(json.dumps(stored))
    compare.compare({**args, "loss": "ciou,eiou"})
    assert measured["arms"] == [["ciou", "eiou"]], "what is stored is not measured again"
    compare.compare({**args, "loss": "ciou,eiou,siou"})
    assert measured["arms"][1:] == [["ciou", "siou"]]
    found = {(job.arm, job.seed): (job.args["box"], job.args["cls"]) for job in measured["jobs"][-1]}
    boxes = {"ciou": 6.0, "eiou": 1.25, "siou": 12.0}
    assert found == {(arm, seed): (box, 0.5) for arm, box in boxes.items() for seed in (0, 1)}
    job = measured["jobs"][-1][1]
    job.prepare(None)
    assert json.loads(job.file.read_text())["about"] == {"matched": {"baseline": "ciou", "box": 4.0, "cls": 1.0}}
    assert {key: job.args[key] for key in ("box", "cls")} == {"box": 1.25, "cls": 0.5}


def test_a_comparison_keeps_what_its_gains_are_matched_to(tmp_path, measured):
    args = {**KEYS, "seeds": 1, "loss": "ciou,eiou", "project": str(tmp_path), "name": "mine"}
    compare.compare({**args, "match_gains": True})
    for other in ({}, {"match_gains": True, "loss": "eiou,ciou"}):
        with pytest.raises(LossPlugError, match="name=mine is a comparison with another match_gains"):
            compare.compare({**args, **other})
    compare.compare({**args, "name": "plain"})
    assert not (tmp_path / "plain" / gains.FILE).exists() and measured["arms"] == [["ciou", "eiou"]]
    assert all("box" not in job.args and not job.about for job in measured["jobs"][-1])
    (tmp_path / "mine" / gains.FILE).write_text("{")
    with pytest.raises(LossPlugError, match=r"gains\.json cannot be read .* give another name="):
        compare.compare({**args, "match_gains": True})


def test_a_ratio_of_untrained_weights_gets_a_warning(monkeypatch):
    """In the log before training and in the summary."""
    said = []
    monkeypatch.setattr(gains, "warn", said.append)
    monkeypatch.setattr(gradients, "norms", lambda args, arms: [{"box": 1.0, "cls": 1.0}, {"box": 9.0, "cls": 0.01}])
    plan = compare.plan_of({**KEYS, "loss": "ciou,eiou", "match_gains": True})
    matched = gains.match(plan.arms, plan.args, {})
    (text,) = said
    assert "eiou runs with cls=50" in text and "0.01 times the norm of ciou's" in text and "checkpoint" in text
    found = {
        (arm, 0): {"gains": one.gains, "matched": {"baseline": "ciou", **one.ratios}} for arm, one in matched.items()
    }
    _, ciou, eiou = answer.gains(found, ["ciou", "eiou"])
    assert "do not judge" in eiou and "do not judge" not in ciou


def test_the_summary_says_which_gains_ran():
    def result(cls, **more):
        return {"gains": {"box": 7.5, "cls": cls, "dfl": 1.5}, **more}

    plain = {("bce", 0): result(0.5), ("qfl", 0): result(0.5)}
    (text,) = answer.gains(plain, ["bce", "qfl"])
    assert "box=7.5, cls=0.5, dfl=1.5" in text and "not matched" in text
    ratios = {"bce": {"baseline": "bce", "box": 1.0, "cls": 1.0}, "qfl": {"baseline": "bce", "box": 1.0, "cls": 0.125}}
    matched = {("bce", 0): result(0.5, matched=ratios["bce"]), ("qfl", 0): result(4.0, matched=ratios["qfl"])}
    head, bce, qfl = answer.gains(matched, ["bce", "qfl"])
    assert "matched" in head and "`bce`" in head and "cls=0.5" in bce
    assert "cls=4" in qfl and "0.125 (class) times the norm." in qfl


@pytest.mark.slow
def test_runs_have_the_gains_and_results_say_so(tmp_path):
    folder = compare.compare(
        {**KEYS, "cls_loss": "bce,qfl", "seeds": 1, "match_gains": True, "project": str(tmp_path), "name": "mine"}
    )
    stored = gains.read(folder)
    for arm in ("bce", "qfl"):
        found = json.loads((folder / "runs" / f"{arm}-seed0.result.json").read_text())
        assert {key: found["gains"][key] for key in gains.TERMS} == stored[arm].gains
        assert found["matched"] == {"baseline": "bce", **stored[arm].ratios}
    assert stored["qfl"].gains["cls"] > 1 and "Gains were matched" in (folder / "summary.md").read_text("utf-8")

# SPDX-License-Identifier: AGPL-3.0-or-later
"""`lossplug compare` from the command line on the embedded dataset, and its plans."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from ultralytics.cfg import smart_value
from ultralytics.utils import SETTINGS

from tests.runs import ROOT, TINY, arguments, refuses, results, run
from yolo_lossplug import LossPlugError, charts
from yolo_lossplug.terminal import NAME_WIDTH, short_names
from yolo_lossplug.tools.compare import command as compare
from yolo_lossplug.tools.compare import jobs, measures
from yolo_lossplug.tools.compare.comparison import NOTHING_LEARNT, Comparison
from yolo_lossplug.tools.compare.jobs import FAILED, FINISHED, WAITING, Job
from yolo_lossplug.tools.compare.plan import PLAN, directory_of, plan_of
from yolo_lossplug.tools.compare.report import report_of, summary_rows, write_summary
from yolo_lossplug.ultralytics_hook.trial import one_run

MAIN = "metrics/mAP50-95(B)"
COMMAND = [sys.executable, "-m", "yolo_lossplug", "compare"]
KEYS = {
    **{"data": str(ROOT / "configs" / "data" / "shapes128.yaml"), "model": "yolov8n.yaml", "epochs": 3, "imgsz": 64},
    **{"batch": 16, "device": "cpu", "workers": 0, "plots": False, "fraction": 0.5},
}
OWN = """
def broken(pred, target):
    raise RuntimeError("out of luck")
"""


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Folder of a comparison of 2 losses with 2 seeds, and what it printed."""
    place = tmp_path_factory.mktemp("compare")
    words = arguments(**KEYS, loss="ciou,eiou", seeds=2, project=place, name="both")
    return place / "both", run([*COMMAND, *words], place)


@pytest.mark.slow
def test_every_run_has_a_row_and_a_folder(compared):
    place, done = compared
    rows = charts.read_table(place / "results.csv")
    assert [(row["loss"], row["seed"], row["state"]) for row in rows] == [
        *(("ciou", "0", FINISHED), ("eiou", "0", FINISHED), ("ciou", "1", FINISHED), ("eiou", "1", FINISHED)),
    ]
    for row in rows:
        assert len(results(row["save_dir"])) == 3
        assert row["save_dir"] == str(place / "runs" / f"{row['loss']}-seed{row['seed']}")
        last = results(row["save_dir"])[-1]
        assert float(row["val/box_loss"]) == last["val/box_loss"]
        assert 0 <= float(row["metrics/mAP75(B)"]) <= float(row["metrics/mAP50(B)"]) or row["metrics/mAP50(B)"] == "0.0"
    log = (place / "runs" / "eiou-seed0.log.txt").read_text(encoding="utf-8")
    assert "LossPlug: box eiou" in log.replace("\x1b[0m", "").replace("\x1b[34m\x1b[1m", "")
    assert "4 of 4: eiou seed 1 finished" in done.stdout and "left" in done.stdout and "Epoch" not in done.stdout
    assert {"AP_small", "AP_circle"} <= {*rows[0]}


@pytest.mark.slow
def test_runs_differ_by_loss_and_seed_alone_and_have_one_engine(compared):
    place, _ = compared
    rows = {(row["loss"], row["seed"]): row for row in charts.read_table(place / "results.csv")}
    first = {key: results(row["save_dir"])[0] for key, row in rows.items()}
    same = ("train/cls_loss", "train/dfl_loss")
    assert all(first["ciou", "0"][key] == pytest.approx(first["eiou", "0"][key], rel=0.02) for key in same)
    assert first["ciou", "0"]["train/cls_loss"] != first["ciou", "1"]["train/cls_loss"]
    assert first["ciou", "0"]["train/box_loss"] < 0.9 * first["eiou", "0"]["train/box_loss"]
    # Otherwise `ciou`, whose numbers are stock, would take the host's step, and seconds would compare engines.
    place, _ = compared
    logs = [file.read_text(encoding="utf-8") for file in (place / "runs").glob("*.log.txt")]
    engines = [engine for log in logs for engine in re.findall(r"· engine (.+?) ·", log)]
    assert len(engines) == 4 and len(set(engines)) == 1
    plan = plan_of({**KEYS, "loss": "ciou,eiou"})
    assert [arm.keys["loss_engine"] for arm in plan.arms] == ["auto", "auto"]
    plan = plan_of({**KEYS, "loss": "ciou,eiou", "loss_engine": "reference"})
    assert [arm.keys["loss_engine"] for arm in plan.arms] == ["reference", "reference"]
    (arm,) = plan_of({**KEYS, "model": "yolov8s-world.yaml"}).arms
    assert arm.keys == {"loss_engine": "auto"}, "a family with the criterion of other detectors has its engines"


def test_summary(compared):
    place, done = compared
    text = (place / "summary.md").read_text(encoding="utf-8")
    assert "4 of 4 runs finished" in text and str(ROOT) not in text and "32 images" in text
    answers = done.stdout.partition(" seed 1 finished")[2].partition("eiou seed 1")[2].splitlines()[1:]
    assert len(answers) <= 11 and all(len(line) <= 80 for line in answers[:-1])
    rows = charts.read_table(place / "results.csv")
    has_learnt = any(float(value or 0) for row in rows for name, value in row.items() if measures.is_metric(name))
    conclusion = "No verdict, which takes 3 common seeds: `eiou`." if has_learnt else NOTHING_LEARNT
    assert answers[-2] == conclusion.replace("`", "") and f"**{conclusion}**" in text, (
        "three epochs may be too few to learn anything"
    )
    assert {(place / name).exists() for name in ("curves.png", "forest.png")} == {has_learnt}
    labels = Path(SETTINGS["datasets_dir"]) / "shapes128" / "labels"
    files = {split: sorted((labels / split).glob("*.txt")) for split in ("train", "val")}
    objects = {split: sum(len(file.read_text().splitlines()) for file in files[split][:48]) for split in files}
    data = f"Data: train 48 images, {objects['train']} objects; val 32 images, {objects['val']} objects"
    for name in ("summary.md", "summary.tex", "report.html"):
        assert data in (place / name).read_text(encoding="utf-8"), name
    assert r"\toprule" in (place / "summary.tex").read_text(encoding="utf-8")
    assert "lossplug compare data=" in text and "loss=ciou,eiou seeds=2" in text and "ultralytics" in text
    rows = {(row["loss"], row["measure"]): row for row in charts.read_table(place / "summary.csv")}
    row = rows["eiou", "metrics/mAP50-95(B)"]
    assert not has_learnt or (row["paired_seeds"] == "2" and row["verdict"] == "no verdict")
    assert rows["ciou", "metrics/mAP50-95(B)"]["verdict"] == ""
    assert rows["eiou", "val/box_loss"]["difference"] == "", "losses of different scale are compared nowhere"
    assert "on the scale of that loss" in text


@pytest.mark.slow
def test_it_goes_on_where_it_was(compared):
    """Finished runs are kept, a new loss is added, one that fails leaves the others, and the exit status says so."""
    place, _ = compared
    before = {file: file.stat().st_mtime_ns for file in place.glob("runs/*.result.json")}
    own = place.parent / "own.py"
    own.write_text(OWN)
    words = arguments(**KEYS, loss=f"ciou,{own}:broken", seeds=1, project=place.parent, name="both")
    done = run([*COMMAND, *words], place.parent, check=False)
    assert done.returncode == 1 and "out of luck" in done.stdout
    assert {file: file.stat().st_mtime_ns for file in place.glob("runs/*.result.json")} == before
    rows = charts.read_table(place / "results.csv")
    assert [(row["state"], "out of luck" in row["reason"]) for row in rows] == [(FINISHED, False), (FAILED, True)]


@pytest.mark.slow
def test_another_plan_needs_another_name_but_not_another_device(compared):
    place, _ = compared
    args = {**KEYS, "loss": "ciou", "project": str(place.parent)}
    with pytest.raises(LossPlugError, match="name=both is a comparison with another epochs, imgsz"):
        compare.compare({**args, "epochs": 4, "imgsz": 96, "name": "both"})
    plan = plan_of(args)
    assert directory_of(plan, "both", place.parent) == place
    assert directory_of(plan, "other", place.parent) == place.parent / "other"
    assert directory_of(plan, None, place.parent) == place.parent / "compare"
    place, _ = compared
    keys = {key: value for key, value in KEYS.items() if key not in ("device", "workers")}
    plan = plan_of({**keys, "loss": "ciou", "devices": (0, 1)})
    assert directory_of(plan, "both", place.parent) == place


def test_a_finished_run_of_another_loss_does_not_count(tmp_path):
    """The name of a choice holds what varies: with another class loss beside it, the same box losses are others."""
    args = {**KEYS, "loss": "ciou,eiou", "seeds": 1, "project": str(tmp_path)}
    plan, other = plan_of(args), plan_of({**args, "cls_loss": "qfl"})
    place = tmp_path / "compare"
    (place / "runs").mkdir(parents=True)
    compare.write_plan(plan, place)
    job = compare.jobs_of(plan, place)[1]
    job.prepare(None)
    job.result.write_text(json.dumps(result(0.5)), encoding="utf-8")
    assert [job.state for job in compare.jobs_of(plan, place)] == [WAITING, FINISHED]
    assert directory_of(plan, None, tmp_path) == place != directory_of(other, None, tmp_path)
    with pytest.raises(LossPlugError, match="a run of 'eiou' with cls_loss=None.*asked for cls_loss=qfl"):
        compare.jobs_of(other, directory_of(other, "compare", tmp_path))


def test_the_command_alone_continues_a_numbered_comparison(tmp_path):
    """Ultralytics numbers the second folder in its own way, which differs between releases."""
    args = {**KEYS, "loss": "ciou", "project": str(tmp_path)}
    folders = []
    for epochs in (1, 2, 3):
        plan = plan_of({**args, "epochs": epochs})
        folders.append(directory_of(plan, None, tmp_path))
        folders[-1].mkdir()
        compare.write_plan(plan, folders[-1])
    assert len(set(folders)) == 3
    for epochs, folder in zip((1, 2, 3), folders):
        assert directory_of(plan_of({**args, "epochs": epochs}), None, tmp_path) == folder


def test_errors_come_before_anything_is_written(tmp_path):
    for keys, message in (
        ({"loss": "ciou,eiuo"}, "Did you mean 'eiou'"),
        ({"loss": ","}, "loss=, lacks a value before or after a comma"),
        ({"epoch": 3}, "epoch=3 is unknown. Did you mean 'epochs'"),
        ({"data": None}, "data= is missing"),
        ({"seed": 1}, "seed=1 cannot be given to compare: give seeds= instead"),
        ({"match_gains": True, "loss": "none.py:own"}, "compare: `lossplug verify loss=NAME` prints the gain that"),
        ({"resume": True}, "the same command continues an unfinished comparison"),
        ({"seeds": 0}, "seeds=0 must be a number of seeds"),
        ({"seeds": (1, 1)}, "must be"),
        ({"engine": "slurm"}, "engine=slurm is unknown. Known: local, ray"),
        ({"devices": (0, 1)}, "device=cpu has no effect with devices="),
        ({"devices": 0, "device": None, "engine": "ray"}, "devices= has no effect with engine=ray"),
        ({"epochs": "many"}, "epochs"),
        ({"metric": "mAP60"}, "metric=mAP60 is unknown. Known: mAP50-95"),
        ({"metric": "AP_dog"}, "metric=AP_dog: no object that is validated has this class. Known: AP_small"),
        ({"metric": "AP_circle", "single_cls": True}, "Known: AP_small, AP_medium, AP_large, AP_item."),
        ({"metric": "AP_small(M)"}, "metric=AP_small(M): this exists for boxes only. Known: AP_small, "),
        ({"metric": "mAP50(M)"}, "metric=mAP50(M) belongs to task=segment, not to task=detect. Remove (M)."),
        ({"metric": "mAP51(P)"}, "mAP50-95(M), ... of masks and mAP50-95(P), ... of keypoints; with test/ before it"),
        ({"metric": "test/AP_small"}, "needs the test split: add split=test"),
        ({"split": "test"}, "has no test split"),
        ({"model": "nothere.yaml"}, "model=nothere.yaml cannot be"),
        ({"data": "nothere.yaml"}, "data=nothere.yaml cannot be"),
        ({"loss": "ciou,focal-eiou", "inner_ratio": 0.7}, "inner_ratio=0.7 has no effect"),
        ({"model": "yolov8s-world.yaml", "cls_weights": [1, 2, 3]}, "cannot be used with YOLO-World"),
    ):
        args = {key: value for key, value in {**KEYS, "project": str(tmp_path), **keys}.items() if value is not None}
        with pytest.raises(LossPlugError) as caught:
            compare.compare(args)
        assert message in str(caught.value)
        assert not list(tmp_path.iterdir())


def test_seeds_devices_and_the_line_of_a_run(tmp_path):
    plan = plan_of({**KEYS, "seeds": 3})
    assert plan.seeds == (0, 1, 2) and plan.devices == () and plan.engine == "local"
    assert [plan_of({**KEYS, "seeds": text}).seeds for text in ("3", "0,7")] == [(0, 1, 2), (0, 7)]
    keys = {key: value for key, value in KEYS.items() if key != "device"}
    assert plan_of({**keys, "seeds": (7, 42), "devices": (0, 1)}).devices == (0, 1)
    assert plan_of({**keys, "seeds": 1, "devices": "cpu,cpu"}).devices == ("cpu", "cpu")
    todo = [Job(arm, seed, tmp_path / "runs" / f"{arm}{seed}", {}) for seed in (0, 1) for arm in ("ciou", "eiou")]
    progress = compare.Progress(todo, "mAP50-95")
    todo[0].folder.mkdir(parents=True)
    todo[0].result.write_text(json.dumps(result(0.5)))
    todo[0].state, todo[1].state, todo[1].reason = FINISHED, FAILED, "out of luck"
    assert progress.line(todo[0]) == "2 of 4: ciou seed 0 finished · mAP50-95 0.5000 · about 0 s left"
    assert progress.line(todo[1]).startswith("2 of 4: eiou seed 0 failed (out of luck)")


def test_names_of_folders_and_metrics():
    names = ["ciou", "a b", "a_b.py:f", "a/b.py:f", "a:b.py:f", "focal-eiou focal_gamma=0.3"]
    assert len({jobs.slug(name) for name in names}) == len(names)
    assert jobs.slug("ciou") == "ciou"
    names = ["metrics/recall(B)", "metrics/mAP50(M)", "metrics/mAP50(B)", "metrics/mAP50-95(B)", "val/box_loss"]
    order = ["metrics/mAP50-95(B)", "metrics/mAP50(B)", "metrics/recall(B)", "metrics/mAP50(M)"]
    assert measures.order(dict.fromkeys(names)) == order
    assert [measures.label(name) for name in order] == ["mAP50-95", "mAP50", "recall", "mAP50 mask"]


def test_a_failed_run_first_and_a_damaged_result(tmp_path):
    todo = [Job("a", 0, tmp_path / "runs" / "a", {}), Job("b", 0, tmp_path / "runs" / "b", {})]
    todo[1].folder.mkdir(parents=True)
    todo[1].result.write_text(json.dumps(result(0.5)))
    todo[0].state, todo[1].state = FAILED, FINISHED
    write_summary(todo, tmp_path)
    rows = charts.read_table(tmp_path / "results.csv")
    assert rows[0]["metrics/mAP50-95(B)"] == "" and rows[1]["metrics/mAP50-95(B)"] == "0.5"
    assert "1 of 2 runs finished" in (tmp_path / "summary.md").read_text(encoding="utf-8")
    job = Job("a", 0, tmp_path / "runs" / "a", {})
    job.folder.mkdir(parents=True)
    job.result.write_text('{"broken')
    assert job.read() is None
    job.prepare(None)
    assert not job.result.exists()


def finished_runs(directory, **more):
    """A plan of two losses and one seed, all runs of which have finished."""
    plan = plan_of({**KEYS, "loss": "ciou,eiou", "seeds": 1, "project": directory.parent, **more})
    for job in compare.jobs_of(plan, directory):
        job.prepare(None)
        job.result.write_text(json.dumps(result(0.5)))
    compare.write_plan(plan, directory)
    return plan


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", "[" * 200_000, "null"])
def test_a_plan_is_rebuilt_from_the_runs(tmp_path, content):
    """Without a plan that can be read, the runs tell what they were trained with."""
    directory = tmp_path / "mine"
    plan = finished_runs(directory)
    file = directory / PLAN
    file.unlink() if content is None else file.write_text(content)
    assert directory_of(plan, "mine", tmp_path) == directory
    assert {job.state for job in compare.jobs_of(plan, directory)} == {FINISHED}
    other = plan_of({**KEYS, "epochs": 300, "loss": "ciou,eiou", "seeds": 1, "project": tmp_path})
    refuses("name=mine is a comparison with another epochs", directory_of, other, "mine", tmp_path)
    refuses("a run of 'ciou' with epochs=3, but you asked for epochs=300", compare.jobs_of, other, directory)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / PLAN).write_text(content or "")
    assert directory_of(plan, "empty", tmp_path) == empty, "there is no run, and nothing to lose"


HOLD = """
import pathlib, sys, time
from yolo_lossplug.tools.compare.command import locked
with locked(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_one_comparison_at_a_time_in_a_folder(tmp_path):
    """Another process is kept out, and one that was killed leaves no lock."""
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(LossPlugError, match="another comparison is running in"), compare.locked(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
    again = pytest.raises(LossPlugError, match="give another name=")
    with compare.locked(tmp_path), again, compare.locked(tmp_path):
        pass
    with pytest.raises(RuntimeError, match="fails inside"), compare.locked(tmp_path):
        raise RuntimeError("fails inside")
    with compare.locked(tmp_path):
        pass


def test_folders_of_runs_lie_in_the_comparison_whatever_the_project(tmp_path, monkeypatch):
    """Ultralytics puts a relative project below runs/detect."""
    monkeypatch.chdir(tmp_path)
    plan = plan_of({**KEYS, "loss": "ciou"})
    for project in ("mine", None):
        (job, *_) = compare.jobs_of(plan, directory_of(plan, "name", project))
        assert Path(job.args["project"]).is_absolute()
        assert (tmp_path in job.folder.parents) is (project is not None)
    for name in ("a/b", "..", str(tmp_path), "."):
        refuses("must be the name of a folder", directory_of, plan, name, "mine")


@pytest.mark.slow
def test_a_run_whose_loss_is_nan_has_failed(data, tmp_path, registry):
    own = tmp_path / "own.py"
    own.write_text("def broken(pred, target):\n    return (pred - target).sum(-1) * float('nan')\n")
    with pytest.raises(FloatingPointError, match=r"the loss is NaN or infinite after the last epoch: .*box_loss=nan"):
        one_run.train(
            {**TINY, "model": "yolov8n.yaml", "data": data, "loss": f"{own}:broken", "project": str(tmp_path)}
        )


@pytest.mark.slow
def test_the_test_split_is_measured_as_val_is(data, tmp_path, monkeypatch):
    """With the same choice of classes, limits and NMS, or a verdict would be one of other settings."""
    text = Path(data).read_text(encoding="utf-8")
    file = tmp_path / "tested.yaml"
    file.write_text(f"{text}test: images/val\n", encoding="utf-8")
    asked = {"classes": [0], "max_det": 5, "nms_iou": "diou", "iou": 0.5, "conf": 0.002}
    measured = []

    class Spy(one_run.DetectionCollector):
        def __call__(self, validator):
            super().__call__(validator)
            args = vars(validator.args)
            measured.append((args["split"], {key: args[key] for key in asked}))

    monkeypatch.setattr(one_run, "DetectionCollector", Spy)
    common = {**TINY, "model": "yolov8n.yaml", "data": str(file), "project": str(tmp_path), "loss": "eiou"}
    result = one_run.train({**common, **asked, "split": "test"})
    assert measured[-2:] == [("val", asked), ("test", asked)]
    assert result["test"]["metrics"] == result["metrics"]


def markdown(found, arms, metric=MAIN):
    return report_of(Comparison(arms, found, metric)).markdown()


def test_the_answer_where_nothing_was_learnt():
    zero = {key: {**result(0.0), "metrics": {MAIN: 0.0}} for key in (("a", 0), ("b", 0))}
    assert "nothing has been learnt yet" in markdown(zero, ["a", "b"])
    some = {("a", 0): result(0.0), ("b", 0): result(0.1)}
    assert "nothing has been learnt" not in markdown(some, ["a", "b"])
    assert Comparison(["ciou", "eiou"], {}, "").verdicts == ["No run has finished yet."]
    recall = "metrics/recall(B)"
    keys = [(arm, seed) for arm in ("a", "b") for seed in range(3)]
    zero = {key: {**result(0.0), "metrics": {MAIN: 0.0, recall: 0.0}} for key in keys}
    assert report_of(Comparison(["a", "b"], zero, MAIN)).terminal() == NOTHING_LEARNT and len(NOTHING_LEARNT) <= 80
    assert f"**{NOTHING_LEARNT}**" in markdown(zero, ["a", "b"])
    some = {key: {**value, "metrics": {MAIN: 0.0, recall: 0.1}} for key, value in zero.items()}
    assert Comparison(["a", "b"], some, MAIN).verdicts == ["mAP50-95 is 0 in all runs: nothing can be compared in it."]
    assert Comparison(["a", "b"], some, "AP_large").nothing == (
        "AP_large is missing in all runs: nothing can be compared in it."
    )
    assert Comparison(["a", "b"], some, recall).verdicts == ["Within noise, which does not prove equality: `b`."]
    alone = {key: value for key, value in some.items() if key[0] == "a"}
    assert Comparison(["a"], alone, recall).verdicts[0].startswith("Only one loss has run")


def test_long_names_of_losses_stay_different_in_the_answer():
    arms = ["cls_weights={'bicycle': 1}", "cls_weights={'bicycle': 2}", "cls_weights={'bicycle': 3}"]
    results = {(arm, seed): result(0.1 + 0.01 * seed) for arm in arms for seed in range(3)}
    rows = report_of(Comparison(arms, results, MAIN)).terminal().splitlines()[2:4]
    assert len({row[:NAME_WIDTH] for row in rows}) == 2 and all(len(row) <= 80 for row in rows)
    assert rows[0].startswith("…") and arms[1].endswith(rows[0][1:NAME_WIDTH])
    assert short_names(["ciou", "x" * 30]) == ["ciou", "x" * 23 + "…"]


def test_results_of_an_earlier_version_are_said_to_have_no_ap(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(compare, "say", told.append)
    todo = [Job(arm, 0, tmp_path / "runs" / arm, {}, FINISHED) for arm in ("ciou", "eiou", "siou")]
    for job, more in zip(todo, ({}, {"average_precision": {"AP_small": 0.3}}, {})):
        job.folder.mkdir(parents=True)
        job.result.write_text(json.dumps({**result(0.5), **more}))
    compare._say_older(todo)
    said = "No AP by size and class, because an earlier version made them: {}, {}."
    assert said.format("ciou seed 0", "siou seed 0") in told[0] and "delete their .result.json" in told[0]
    write_summary(todo, tmp_path)
    for name in ("summary.md", "report.html"):
        text = re.sub("</?code>", "`", (tmp_path / name).read_text(encoding="utf-8"))
        assert said.format("`ciou` seed 0", "`siou` seed 0") in text
    compare._say_older(todo[1:2])
    assert len(told) == 1


def result(value, **more):
    metrics = {"metrics/mAP50(B)": value + 0.2, "metrics/mAP50-95(B)": value, **more}
    return {"metrics": metrics, "losses": {"val/box_loss": 1.0}, "seconds": 2.0, "save_dir": "x", "versions": "a"}


def rows_of(found, arms=("a", "b")):
    rows = summary_rows(Comparison(arms, found, MAIN))
    return {(row["loss"], row["measure"]): row for row in rows}


def test_differences_are_those_of_common_seeds_with_the_interval_that_decides():
    found = {("a", 0): result(0.1), ("a", 1): result(0.2), ("b", 1): result(0.5), ("b", 2): result(0.9)}
    row = rows_of(found)["b", MAIN]
    assert (row["seeds"], row["paired_seeds"]) == (2, 1)
    assert row["mean"] == pytest.approx(0.7) and row["difference"] == pytest.approx(0.3)
    only = {("a", 0): result(0.1), ("b", 1): result(0.5)}
    assert all(row["difference"] is None for row in rows_of(only).values())
    assert Comparison(["a", "b"], only, MAIN).effects[0].words == "no common seed"
    gains = (0.001, 0.02, 0.003)
    found = {("a", seed): result(0.1) for seed in range(3)}
    found = {**found, **{("b", seed): result(0.1 + gain) for seed, gain in enumerate(gains)}}
    row = rows_of(found)["b", MAIN]
    assert row["low"] < 0 < row["high"] and row["verdict"] == "within noise"
    line = f"| `b` | {row['difference']:+.4f} | {row['low']:+.4f} | {row['high']:+.4f} | within noise | 3 | 95 % |"
    assert line in markdown(found, ["a", "b"])
    two = {key: value for key, value in found.items() if key[1] < 2}
    assert "| `b` | +0.0105 | no verdict | 2 |" in markdown(two, ["a", "b"])


def test_a_verdict_on_survivors_says_so_and_nan_is_missing():
    found = {
        (arm, seed): result(0.1 + 0.1 * (arm == "b") + 0.001 * seed * (arm == "b")) for arm in "ab" for seed in range(4)
    }
    del found["b", 3]
    failed = [("b", 3, "out of memory")]
    (sentence,) = Comparison(["a", "b"], found, MAIN, failed, 8).verdicts
    assert sentence.startswith("`b` is better than `a` in mAP50-95: +0.1010 (")
    assert sentence.endswith(", in the 3 of 4 seeds that did not fail).")
    found["b", 2]["metrics"][MAIN] = float("nan")
    comparison = Comparison(["a", "b"], found, MAIN, failed, 8)
    assert comparison.effects[0].seeds == 2 and "nan" not in report_of(comparison).markdown()
    assert comparison.verdicts == [
        "No verdict, which takes 3 common seeds: `b` (in the 2 of 3 seeds that did not fail)."
    ]


@pytest.mark.parametrize("mark", ["M", "P"])
def test_a_verdict_says_whose_map_it_is(mark):
    masks = MAIN.replace("(B)", f"({mark})")
    found = {(arm, seed): result(0.5 + 0.1 * (arm == "b") + 0.001 * seed) for arm in "ab" for seed in range(3)}
    for run_result in found.values():
        run_result["metrics"][masks] = run_result["metrics"][MAIN]
    for metric, name in ((MAIN, "mAP50-95 box"), (masks, f"mAP50-95 {'mask' if mark == 'M' else 'pose'}")):
        comparison = Comparison(["a", "b"], found, metric, [], 6)
        assert comparison.verdicts[0].startswith(f"`b` is better than `a` in {name}: +0.1")
        assert f"{name}: differences from a" in report_of(comparison).terminal()


def test_the_summary_says_which_gains_ran():
    def notes(cls):
        gains = {"bce": {"box": 7.5, "cls": 0.5, "dfl": 1.5}, "qfl": {"box": 7.5, "cls": cls, "dfl": 1.5}}
        return Comparison(["bce", "qfl"], {(arm, 0): {**result(0.5), "gains": gains[arm]} for arm in gains}, MAIN).notes

    (text,) = [note for note in notes(0.5) if "gains" in note]
    assert "box=7.5, cls=0.5, dfl=1.5" in text and "not matched" in text
    bce, qfl = (note for note in notes(4.0) if "gains" in note)
    assert "`bce`" in bce and "cls=0.5" in bce and "cls=4" in qfl


def test_listed_arms_keep_their_gains_and_are_named_in_the_command(tmp_path):
    listed = [{"loss": "ciou"}, {"cls_loss": "qfl", "cls": 5.0}]
    plan = plan_of({**KEYS, "arms": listed, "project": tmp_path, "name": "listed"})
    todo = compare.jobs_of(plan, tmp_path / "listed")
    assert [job.args.get("cls") for job in todo[:2]] == [None, 5.0]
    words = [word.split("=", 1) for word in shlex.split(plan.command)[2:]]
    again = plan_of({key: smart_value(value) for key, value in words})
    assert again.arms == plan.arms and again.seeds == plan.seeds
    refuses("tal_topkk=3 is unknown", plan_of, {**KEYS, "arms": [{"loss": "ciou"}, {"tal_topkk": 3}]})

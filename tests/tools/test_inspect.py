# SPDX-License-Identifier: AGPL-3.0-or-later
"""The command: what it writes and prints, with and without a model, and on data that is wrong."""

import re
from pathlib import Path

import numpy as np
import pytest
from ultralytics.utils.loss import v8DetectionLoss

from tests.conftest import dataset
from tests.runs import run, slow, train
from tests.tools.test_compare import COMMAND
from tests.ultralytics_hook.test_dataset import random_lines, write_data
from yolo_lossplug import LossPlugError, charts
from yolo_lossplug.boxes import SIZES
from yolo_lossplug.tools.inspect import command as inspect
from yolo_lossplug.tools.inspect import findings as inspect_findings
from yolo_lossplug.tools.inspect import pictures
from yolo_lossplug.tools.inspect import report as inspect_report
from yolo_lossplug.tools.inspect.advice import advise
from yolo_lossplug.tools.inspect.command import inspect_plan, write_inspection
from yolo_lossplug.tools.inspect.findings import Findings
from yolo_lossplug.tools.inspect.pictures import NO_SIGNAL, Panel, window
from yolo_lossplug.tools.inspect.rules import percent
from yolo_lossplug.ultralytics_hook.engines.parity import METHOD


def inspected(tmp_path, **keys):
    found = findings(**keys, project=tmp_path, name="out")
    write_inspection(found)
    return found, tmp_path / "out"


def findings(**keys):
    return Findings(inspect_plan(keys))


def rows(folder, name="objects.csv"):
    return charts.read_table(folder / name)


def pixels(file):
    from PIL import Image

    return np.asarray(Image.open(file).convert("RGB"))


def has_red(file):
    """Return whether there is an outline of an object without signal; the legend below has one, too."""
    red = np.array([int(NO_SIGNAL[i : i + 2], 16) for i in (1, 3, 5)])
    above_legend = pixels(file)[: -len(pixels(file)) // 5].astype(int)
    return bool((np.abs(above_legend - red).max(-1) < 3).sum() > 20)


@pytest.mark.slow
def test_what_is_written_of_labels_alone(data, tmp_path, capsys):
    found, folder = inspected(tmp_path, data=data, imgsz="64,128")
    n = len(found.labels.cls)
    objects = rows(folder)
    assert len(objects) == 2 * n and [row["imgsz"] for row in objects] == ["64"] * n + ["128"] * n
    for row in objects[:n]:
        levels = sum(int(row[f"candidates_stride{stride}"]) for stride in (8, 16, 32))
        assert int(row["candidates"]) == levels and row["size"] in SIZES and row["positives"] == ""
        assert float(row["side"]) == pytest.approx((float(row["width"]) * float(row["height"])) ** 0.5, abs=0.5)
    assert sum(int(row["objects"]) for row in rows(folder, "classes.csv")) == n
    text = (folder / "summary.md").read_text(encoding="utf-8")
    for heading in ("Worth a comparison", "Size of objects", "Candidates of objects", "Crowding", "Labels", "Classes"):
        assert f"## {heading}" in text
    assert "About " in text and found.facts.pace.seconds > 0 and found.facts.pace.images == len(found.labels.files)
    assert f"{n:,} objects" in text and "lossplug compare data=" in text and "(sizes.png)" in text
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 3 and "Need of the loss step" in page and "http-equiv" in page
    for name in ("sizes.png", "candidates.png", "images.png"):
        assert len(np.unique(pixels(folder / name).reshape(-1, 3), axis=0)) > 20
    assert has_red(folder / "images.png") == bool((found.views[0].total == 0).any())


def test_shares_of_the_tables_are_those_of_the_objects(data, tmp_path):
    found, folder = inspected(tmp_path, data=data, imgsz=64)
    objects = rows(folder)
    total = np.array([int(row["candidates"]) for row in objects])
    (row,) = inspect_report.candidates_table(found).rows
    assert row[1:4] == [percent((total < limit).mean()) for limit in (1, 4, 10)]
    assert row[5] == f"{np.median(total):.0f}"
    by_size = inspect_report.sizes_table(found).rows[1]
    expected = [np.mean([row["size"] == size for row in objects]) for size in SIZES]
    assert by_size[1:4] == [percent(value) for value in expected]


BRANCHES = {"yolov8n": ("main",), "yolov10n": ("one2many", "one2one"), "yolov8n-obb": ("main",)}


@pytest.mark.parametrize("model", ["yolov8n", slow("yolov10n"), slow("yolov8n-obb")])
def test_what_is_written_with_a_model(model, tmp_path):
    task, branches = "obb" if "obb" in model else "detect", {*BRANCHES[model]}
    found, folder = inspected(
        tmp_path, data=dataset(f"inspect-{task}", task=task), model=f"{model}.yaml", imgsz=64, batch=3
    )
    objects = rows(folder)
    assert {row["branch"] for row in objects} == branches
    (view,) = found.views
    for branch, assigned in view.assigned.items():
        mine = [row for row in objects if row["branch"] == branch]
        assert [int(row["positives"]) for row in mine] == assigned.positives.tolist() and assigned.positives.sum() > 0
        assert all(0 <= float(row["score"] or 0) <= 1 and float(row["best_iou"] or 0) <= 1.001 for row in mine)
        assert all(int(row["positives"]) <= int(row["candidates"]) for row in mine)
    assert all(bool(need.fast) == bool(need.stock) == hasattr(v8DetectionLoss, METHOD) for need in found.costs)
    table = inspect_report.assignment_table(found)
    assert [row[2] for row in table.rows] == [*SIZES, "all"] * len(branches)
    assert "Assignment" in (folder / "summary.md").read_text(encoding="utf-8")
    assert (folder / "images.png").is_file()


def test_numbers_of_the_assigner_count(data):
    args = {"data": data, "model": "yolov8n.yaml", "imgsz": 64}
    few, many = (findings(**args, tal_topk=topk) for topk in (2, 10))
    assert few.topk == 2 and few.views[0].main.positives.max() <= 2 < many.views[0].main.positives.max()


@pytest.mark.parametrize("task", ["detect", slow("obb")])
def test_what_other_numbers_would_change_is_what_they_change(task, monkeypatch):
    monkeypatch.setattr(inspect_findings, "CONTESTED", 0.0)  # so that another imgsz is tried
    model = {"detect": "yolov8n.yaml", "obb": "yolov8n-obb.yaml"}[task]
    args = {"data": dataset(f"inspect-{task}", task=task), "model": model, "tal_topk": 6}
    tried = findings(**args, imgsz=64).facts.tried
    assert [str(one) for one in tried[:2]] == ["tal_topk=12", "tal_topk=3"] and str(tried[-1]) == "imgsz=96"
    for one in tried:
        facts = findings(**{**args, "imgsz": 64, one.key: one.value}).facts
        assert one.after == pytest.approx((facts.without, facts.conflicts)) and one.before == tried[0].before
    assert len({one.after for one in tried}) > 1
    *_, of_views = findings(**args, imgsz="64,96").facts.tried
    assert of_views.images == 0 < tried[-1].images and of_views.after == pytest.approx(tried[-1].after)


def test_objects_without_a_signal_are_outlined_in_red(tmp_path):
    """A box beyond the image: its part inside has no centre of a cell."""
    lines = [(0, 0.5, 0.5, 0.4, 0.4), (1, 0.0, 0.0, 0.0, 0.0)]
    data = write_data(tmp_path / "data", {"a": ((64, 64), lines), "b": ((64, 64), lines[:1])})
    found, folder = inspected(tmp_path, data=data, imgsz=64)
    assert has_red(folder / "images.png")
    (view,) = found.views
    assert (view.total == 0).sum() == 1
    scores = found.reasons(view)
    assert scores["objects without a candidate"].tolist() == [1, 0]
    assert found.facts.none == (pytest.approx(1 / 3),)
    assert inspect_report.main_point(advise(found.facts)).startswith("Faults in the labels: 1 side below")


def panel_of(centres, side, has_signal=True, imgsz=640):
    centres = np.asarray(centres, float)
    corners = centres[:, None] + np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * side / 2
    pixels = np.zeros((imgsz, imgsz, 3), np.uint8)
    signal, nothing = np.full(len(centres), has_signal), np.zeros(0, int)
    return Panel(pixels, (0, 80, imgsz, 560), "", corners, signal, nothing, nothing, np.zeros((4, 2)), np.zeros(4))


def test_what_is_drawn_of_an_image():
    whole = panel_of([(100, 200), (300, 300)], 120)
    assert window(whole) == whole.shown == (0, 80, 640, 560)
    rng = np.random.default_rng(0)
    tiny = panel_of([(600, 100), *rng.uniform(290, 310, (8, 2))], 8)
    left, top, right, bottom = window(tiny)
    assert left > 150 and right < 450 and right - left == bottom - top < 200, "around those that are near each other"
    tiny.has_signal[0] = False
    left, top, right, bottom = window(tiny)
    assert left < 600 < right <= 640 and 80 <= top < 100 < bottom, "around the one without signal, inside of the image"
    crowd = panel_of(rng.uniform(80, 560, (3000, 2)), 60)
    left, top, right, bottom = window(crowd)
    centres = crowd.corners.mean(1)
    assert 10 < ((centres > (left, top)) & (centres < (right, bottom))).all(1).sum() <= 80


def test_what_is_printed_fits_a_terminal(data, tmp_path, capsys):
    inspect.main({"data": data, "imgsz": (64, 96), "project": str(tmp_path), "name": "run", "model": "yolov8n.yaml"})
    said = capsys.readouterr().out
    summary = said[re.search(r"\d+ images, \d+ objects", said).start() :]
    for line in summary.splitlines():
        line = re.sub(r"\x1b\[[0-9;]*m", "", line)
        assert len(line) <= 80 or line.startswith(("lossplug compare", "LossPlug: report in"))
    assert "Candidates of objects" in said and "contested" in said and "random weights" in said
    assert (tmp_path / "run" / "report.html").is_file()
    inspect.main({"data": data, "imgsz": 64, "project": str(tmp_path), "name": "run"})
    assert len(list(tmp_path.glob("run*"))) == 2


def test_one_image(tmp_path):
    """With a class whose name a page would read as markup."""
    data = write_data(tmp_path / "data", {"a": ((48, 32), [(0, 0.5, 0.5, 0.4, 0.4)])}, names=("<b>|x", "b"))
    found, folder = inspected(tmp_path, data=data, imgsz=64, model="yolov8n.yaml")
    assert found.counts.tolist() == [1] and len(rows(folder)) == 1
    assert "<b>|x" not in (folder / "report.html").read_text(encoding="utf-8")
    assert "\\<b>\\|x" in (folder / "summary.md").read_text(encoding="utf-8")
    with pytest.raises(LossPlugError, match="not enough for batch normalisation; give a larger imgsz"):
        inspected(tmp_path, data=data, imgsz=32, model="yolov8n.yaml")


@pytest.mark.slow
def test_3000_objects_in_an_image(tmp_path):
    lines = random_lines(np.random.default_rng(0), 3000)
    data = write_data(tmp_path / "data", {"a": ((64, 64), lines), "b": ((64, 64), lines[:2]), "c": ((64, 64), None)})
    found, folder = inspected(tmp_path, data=data, imgsz=160)
    assert found.counts.tolist() == [3000, 2, 0] and len(rows(folder)) == 3002
    assert found.costs[1].most == 3000 and found.costs[1].dense == 3 * 3000 * 525 * 13
    is_timed = hasattr(v8DetectionLoss, METHOD)  # else there is no step that the fast engine could replace
    assert bool(found.costs[1].stock) == bool(found.costs[1].fast) == is_timed
    assert "Need of the loss step" in (folder / "report.html").read_text(encoding="utf-8")


def test_objects_beyond_the_shown_part_are_not_drawn():
    """Nothing of them is seen, and 2,000 would take seconds; what is shown is the same."""
    panel = panel_of(np.random.default_rng(0).uniform(80, 560, (2000, 2)), 9)
    axis = charts.figure(1, 1)[1][0, 0]
    pictures._draw(axis, panel, 8.0)
    left, top, right, bottom = window(panel)
    is_seen = ((panel.corners.max(1) >= (left, top)) & (panel.corners.min(1) <= (right, bottom))).all(1)
    assert 0 < 2 * is_seen.sum() <= len(axis.patches) < 400


def test_most_images_without_objects(tmp_path):
    images = {name: ((64, 64), [(0, 0.5, 0.5, 0.4, 0.4)] if name == "a" else []) for name in "abcdefghij"}
    found = findings(data=write_data(tmp_path / "data", images), imgsz=64, batch=1)
    assert [cost.most for cost in found.costs] == [0, 1] and found.costs[0].dense == 0
    is_timed = hasattr(v8DetectionLoss, METHOD)
    assert [cost.timed for cost in found.costs] == ([4, 4] if is_timed else [0, 0])
    assert inspect_report.costs_table(found).rows


def test_large_steps_are_not_timed(tmp_path):
    lines = random_lines(np.random.default_rng(0), 1500)
    data = write_data(tmp_path / "data", {"a": ((64, 64), lines)})
    found = findings(data=data, imgsz=640)
    cost = found.costs[0]
    assert cost.stock is None and cost.timed == 0 and cost.dense == 1500 * 8400 * 13
    assert "not timed" in inspect_report.costs_table(found).rows[0]


def test_mistakes_are_one_line(data, tmp_path):
    for keys, message in (
        ({}, "data= is missing: lossplug inspect data=coco128.yaml"),
        ({"data": "nothere.yaml"}, "data=nothere.yaml cannot be read: .*does not exist"),
        ({"split": "test"}, "split=test: .* has no such images; it has train, val"),
        ({"imgsz": 16}, "imgsz=16 must be a whole number from 32 to 8192"),
        ({"batch": 0}, "batch=0 must be a whole number from 1"),
        ({"fraction": 0}, "fraction=0 must be above 0 and at most 1, or a number of images"),
        ({"loss": "eiou"}, "loss=eiou has no effect here: inspect looks at data and assigner. Remove it"),
        ({"tal_topk": 0}, r"tal_topk=0 is out of range"),
        ({"tal_iuo": "iou"}, "tal_iuo=iou is unknown. Did you mean 'tal_iou'"),
        ({"task": "classify"}, "task=classify has no boxes to inspect; give detect, segment, pose, obb"),
        ({"model": "nothere.yaml"}, "model=nothere.yaml cannot be used: .*does not exist"),
        ({"model": "yolov8n.yaml", "task": "obb"}, "task=obb"),
        ({"model": "yolov8n.yaml", "device": "xyz"}, "device=xyz is not available here; give cpu, or"),
    ):
        with pytest.raises(LossPlugError, match=message) as error:
            inspect.main({**({"data": data, "project": str(tmp_path)} if keys else {}), **keys})
        assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("lines", [None, []])
def test_no_labels_are_one_line(lines, tmp_path):
    data = write_data(tmp_path / "data", dict.fromkeys("abc", ((32, 32), lines)))
    with pytest.raises(
        LossPlugError, match=r"has no labels in 3 images of split=train\. Labels are expected in .*labels"
    ):
        inspect.main({"data": data, "project": str(tmp_path / "runs")})
    assert not (tmp_path / "runs").exists()


def test_no_images_are_one_line(tmp_path):
    data = write_data(tmp_path / "data", {"a": ((32, 32), None)})
    next((tmp_path / "data" / "images" / "train").iterdir()).unlink()
    with pytest.raises(LossPlugError, match="cannot be read: .*No images found|cannot be read: .*Error loading data"):
        inspect.main({"data": data, "project": str(tmp_path / "runs")})


def test_only_labels_with_errors_are_one_line(tmp_path):
    data = write_data(tmp_path / "data", {"a": ((32, 32), [(9, 0.5, 0.5, 0.2, 0.2)])})
    with pytest.raises(LossPlugError, match="no image that the loader accepts, .*a.png for example: .*[Cc]lass"):
        inspect.main({"data": data, "project": str(tmp_path / "runs")})


BOX, TRIANGLE, POINTS = (0, 0.5, 0.5, 0.2, 0.2), (1, 0.2, 0.2, 0.6, 0.2, 0.6, 0.7), (0.5, 0.5, 2, 0.4, 0.4, 1)
HIDDEN = (0.5, 0.5, 0, 0.4, 0.4, 0)


@pytest.mark.parametrize("task", ["segment", "obb"])
@pytest.mark.parametrize("mixed", [False, True])
def test_labels_that_a_training_refuses_get_no_comparison(task, mixed, tmp_path):
    images = {"a": ((64, 64), [TRIANGLE if mixed else BOX]), "b": ((64, 64), [BOX, BOX[:1] + BOX[2:] + (0.1,)])}
    data = write_data(tmp_path / "data", images)
    file = "b.txt" if mixed else "a.txt"
    with pytest.raises(LossPlugError, match=rf"boxes of four numbers, in .*{file} for example. A training with task="):
        inspect.main({"data": data, "task": task, "project": str(tmp_path)})
    assert findings(data=data, imgsz=64).labels.task == "detect"
    refused = "equal numbers of boxes and segments|not a (segment|OBB) dataset"
    with pytest.raises((ValueError, TypeError), match=refused):
        train(f"yolov8n-{task[:3]}.yaml", data=data, project=str(tmp_path))


@pytest.mark.parametrize(
    ("shape", "mirrored", "message"),
    [
        (None, None, "kpt_shape"),
        (
            [2, 3],
            [1, 0, 2],
            r"has flip_idx=\[1, 0, 2\]; for each of the 2 keypoints of kpt_shape",
        ),
        ([2, 3], [0, 2], "the index of the one on the other side, 0 to 1. A training refuses it"),
        ([3, 3], None, "no image that the loader accepts, .*a.png for example: .*columns"),
    ],
)
def test_keypoints_that_a_training_refuses(shape, mirrored, message, tmp_path):
    given = {"kpt_shape": shape, "flip_idx": mirrored}
    more = {key: value for key, value in given.items() if value is not None}
    data = write_data(tmp_path / "data", {"a": ((64, 64), [BOX + POINTS])}, **more)
    with pytest.raises(LossPlugError, match=message):
        inspect.main({"data": data, "task": "pose", "project": str(tmp_path)})


@pytest.mark.parametrize(("long", "loss"), [(0.14, "mgiou"), (0.7, "kld")])
def test_rotated_boxes_are_seen_along_their_own_axes(long, loss, tmp_path):
    """Squares and long thin boxes, turned by 45°, whose boxes along the axes of the image are squares both."""
    along, across = np.array([long, long]) / 4, np.array([0.14, -0.14]) / 4
    corners = [0.5 + first * along + second * across for first, second in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    data = write_data(tmp_path / "data", {"a": ((64, 64), [(0, *np.concatenate(corners).tolist())])})
    (advice,) = [one for one in advise(findings(data=data, imgsz=640).facts) if one.name.endswith("rotated objects")]
    assert f"loss=probiou,{loss} seeds=3" in advice.command and "100 % of objects are" in advice.text


def test_objects_without_a_visible_keypoint_are_counted(tmp_path):
    images = {"a": ((64, 64), [BOX + POINTS, (1, *BOX[1:], *HIDDEN)])}
    faults = findings(data=write_data(tmp_path / "some", images, kpt_shape=[2, 3]), imgsz=64).faults
    assert faults["objects without a visible keypoint"] == 1
    images = {"a": ((64, 64), [BOX + HIDDEN])}
    found = findings(data=write_data(tmp_path / "none", images, kpt_shape=[2, 3]), imgsz=64)
    assert found.facts.faults == {"all objects without a visible keypoint": 1}  # some may be right, all are not


def test_labels_that_are_no_text_are_faults(tmp_path):
    box = [(0, 0.5, 0.5, 0.2, 0.2)]
    data = write_data(tmp_path / "data", {"a": ((32, 32), box), "b": ((32, 32), box)})
    next((tmp_path / "data" / "labels").rglob("a.txt")).write_bytes(b"\xff\xfe\x00 1 2 3\n")
    inspect.main({"data": data, "imgsz": 32, "project": str(tmp_path / "runs")})
    summary = (tmp_path / "runs" / "inspect" / "summary.md").read_text(encoding="utf-8")
    assert "images that the loader leaves out" in summary and "codec can't decode" in summary


@pytest.mark.slow
def test_the_page_has_room_and_no_errors(data, tmp_path, measure):
    _, folder = inspected(tmp_path, data=data, imgsz="64,96", model="yolov8n.yaml")
    for width in (1280, 390):
        seen = measure(folder / "report.html", width)
        assert not seen["overflow"] and not seen["errors"] and seen["scroll_width"] <= width
        assert len(seen["pictures"]) == 3 and all(seen["pictures"])


@pytest.mark.slow
def test_command(data, tmp_path):
    words = [*COMMAND[:-1], "inspect", f"data={data}", "imgsz=64,96", f"project={tmp_path / 'runs'}", "name=one"]
    done = run(words, tmp_path)
    assert "report in" in done.stdout and (tmp_path / "runs" / "one" / "report.html").is_file()
    failed = run([*words, "imgzs=3"], tmp_path, check=False)
    assert failed.returncode == 1 and "Did you mean 'imgsz'" in failed.stdout and "Traceback" not in failed.stdout
    assert Path(tmp_path / "runs" / "one" / "objects.csv").is_file()

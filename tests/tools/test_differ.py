# SPDX-License-Identifier: AGPL-3.0-or-later
"""Images in which two runs differ, and their pictures."""

import json

import numpy as np
import pytest
from PIL import Image
from ultralytics import YOLO

from yolo_lossplug import charts
from yolo_lossplug.tools.compare import differ
from yolo_lossplug.ultralytics_hook.dataset.detections import DetectionCollector

GT = np.array([[10.0, 10, 40, 40], [50.0, 50, 60, 60]])


def found(file, boxes, scores, iou):
    boxes, zeros = np.array(boxes, dtype=float).reshape(-1, 4), np.zeros(len(boxes))
    about = {"file": str(file), "shape": [64, 64], "pad": [0, 8], "gt_boxes": GT, "gt_classes": np.zeros(2)}
    return {**about, "boxes": boxes, "scores": np.array(scores), "classes": zeros, "iou": np.array(iou).reshape(-1, 2)}


def test_the_images_that_differ_are_written_and_drawn(tmp_path):
    files = [tmp_path / f"{name}.png" for name in ("same", "other")]
    for file in files:
        Image.new("RGB", (128, 96), "#88aa88").save(file)
    both = found(files[0], GT, [0.9, 0.8], np.eye(2))
    one = [both, found(files[1], GT, [0.9, 0.8], np.eye(2))]
    other = [both, found(files[1], [GT[0], [1, 1, 5, 5]], [0.9, 0.85], [[1, 0], [0, 0]])]
    for name, images in (("a", one), ("b", other)):
        (tmp_path / name).mkdir()
        differ.save_detections(images, {0: "x"}, tmp_path / name / differ.DETECTIONS)
    first, second = (tmp_path / name / differ.DETECTIONS for name in "ab")
    figure = differ.draw_differing(differ.DetectionPair("b", 0, first, second), "a", tmp_path)
    (row,) = json.loads((tmp_path / "differ-b.json").read_text())["images"]
    assert row["file"] == "other.png" and row["a"]["misses"] == [] and len(row["a"]["hits"]) == 2
    assert row["b"]["misses"] == [[50, 50, 60, 60]] and row["b"]["alarms"] == [[1, 1, 5, 5]]
    with Image.open(charts.save(figure, tmp_path / "differ.png")) as picture:
        assert picture.width > 800 and len(picture.convert("L").getcolors(256)) > 20
    assert differ.draw_differing(differ.DetectionPair("a", 0, first, first), "a", tmp_path) is None


def test_boxes_lie_on_the_image_without_its_padding():
    ((axis,),) = charts.figure(1, 1)[1]
    boxes = {"hits": [[20, 18, 40, 38]], "misses": [], "alarms": []}
    differ._show(axis, Image.new("RGB", (40, 20)), {**boxes, "shape": [64, 96], "pad": [8, 12]})
    assert axis.images[0].get_extent() == [8, 88, 52, 12]
    assert axis.get_xlim() == (8, 88) and axis.get_ylim() == (52, 12)


@pytest.mark.slow
@pytest.mark.parametrize("rect", [True, False])
def test_the_padding_is_that_of_the_validation(data, tmp_path, rect):
    """Objects of a label file are where the recorded ones are; rectangular batches pad on all sides."""
    model, recorder = YOLO("yolov8n.yaml"), DetectionCollector()
    model.add_callback("on_val_start", recorder)
    options = {"imgsz": 96, "batch": 4, "rect": rect, "workers": 0, "device": "cpu", "plots": False, "verbose": False}
    model.val(data=data, project=str(tmp_path), **options)
    assert recorder.images and {(image["pad"][0] > 0) for image in recorder.images} == {rect}
    for image in recorder.images:
        file = image["file"].replace("images", "labels").rsplit(".", 1)[0] + ".txt"
        labels = np.loadtxt(file, ndmin=2)[:, 1:]
        (x, y), (height, width) = image["pad"], image["shape"]
        centres = image["gt_boxes"][:, :2] / 2 + image["gt_boxes"][:, 2:] / 2
        shown = (centres - [x, y]) / [width - 2 * x, height - 2 * y]
        np.testing.assert_allclose(np.sort(shown, 0), np.sort(labels[:, :2], 0), atol=1 / 96)


def test_a_run_is_judged_at_its_best_score_and_an_object_hit_once():
    images = [found("x", [GT[0], [1, 1, 5, 5], [2, 2, 6, 6]], [0.3, 0.2, 0.1], [[0.6, 0], [0, 0], [0, 0]])]
    assert differ.best_score(images) == 0.3
    assert differ.best_score([found("x", [], [], [])]) == differ.MIN_SCORE
    hits, is_hit = differ.matches(found("x", [GT[0], GT[0]], [0.3, 0.9], [[1, 0], [0.7, 0]]))
    assert hits.tolist() == [False, True] and is_hit.tolist() == [True, False]

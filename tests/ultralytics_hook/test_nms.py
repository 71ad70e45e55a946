# SPDX-License-Identifier: AGPL-3.0-or-later
"""Suppression by DIoU: exact, class-aware, on every route, and out of the way where it is not asked for."""

import random

import numpy as np
import pytest
import torch
from ultralytics import YOLO

from tests import oracles
from tests.runs import TINY, Log, refuses, train
from yolo_lossplug import LossPlugError
from yolo_lossplug.nms import diou_nms
from yolo_lossplug.ultralytics_hook import nms

try:
    from ultralytics.utils import nms as module
except ImportError:
    from ultralytics.utils import ops as module


def draw(rng, count):
    boxes = []
    for _ in range(count):
        x, y, w, h = rng.uniform(0, 60), rng.uniform(0, 60), rng.uniform(5, 40), rng.uniform(5, 40)
        boxes.append((x, y, x + w, y + h))
    return boxes


def oracle(boxes, scores, threshold):
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        values = ((oracles.geometry(boxes[i], boxes[j])) for j in kept)
        if all(g.u - g.distance <= threshold for g in values):
            kept.append(i)
    return kept


@pytest.mark.parametrize("seed", range(8))
def test_equals_the_scalar_rule(seed):
    rng = random.Random(seed)
    boxes, scores = draw(rng, 80), [rng.random() for _ in range(80)]
    for threshold in (0.0, 0.3, 0.6, 0.95):
        found = diou_nms(torch.tensor(boxes), torch.tensor(scores), threshold)
        assert found.tolist() == oracle(boxes, scores, threshold)
    assert diou_nms(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []


def prediction(seed, images=2, boxes=60, classes=3):
    """Raw predictions (images, 4 + classes, boxes) of x y w h and scores."""
    rng = torch.Generator().manual_seed(seed)
    box = torch.rand(images, boxes, 4, generator=rng) * torch.tensor([60.0, 60, 35, 35]) + 5
    return torch.cat((box, torch.rand(images, boxes, classes, generator=rng)), -1).transpose(1, 2).contiguous()


def with_overlap(name, *args, **kwargs):
    token = nms._overlap.set(name)
    try:
        return module.non_max_suppression(*args, **kwargs)
    finally:
        nms._overlap.reset(token)


OPTIONS = [{}, {"agnostic": True}, {"multi_label": True}, {"max_det": 5}, {"classes": [0, 2]}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_whole_suppression_equals_the_rule_class_by_class(options):
    made = prediction(3)
    found = with_overlap("diou", made.clone(), 0.3, 0.4, **options)
    everything = module.non_max_suppression.__wrapped__(made.clone(), 0.3, 1.0, **{**options, "max_det": 30000})
    fewer = module.non_max_suppression.__wrapped__(made.clone(), 0.3, 0.4, **options)
    for rows, candidates, stock in zip(found, everything, fewer):
        expected = []
        groups = [None] if options.get("agnostic") else range(3)
        for group in groups:
            rows_of_group = [r for r in candidates.tolist() if group is None or r[5] == group]
            kept = oracle([r[:4] for r in rows_of_group], [r[4] for r in rows_of_group], 0.4)
            expected += [rows_of_group[i] for i in kept]
        expected = sorted(expected, key=lambda r: -r[4])[: options.get("max_det", 300)]
        assert rows.tolist() == expected
        assert len(rows) >= len(stock), "DIoU drops fewer boxes"


def test_stock_where_it_is_not_asked_for_and_refused_where_there_is_none():
    made = prediction(5)
    found = module.non_max_suppression(made.clone(), 0.3, 0.4)
    expected = module.non_max_suppression.__wrapped__(made.clone(), 0.3, 0.4)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    for made, options in ((torch.rand(1, 9, 6), {}), (prediction(1), {"rotated": True})):
        refuses("nms_iou=diou", with_overlap, "diou", made, **options)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    return train(data=data, project=str(tmp_path_factory.mktemp("nms")), epochs=3, nms_iou="diou", optimizer="AdamW")


@pytest.fixture
def seen(monkeypatch):
    """Numbers of boxes of the calls of our own."""
    sizes = []
    monkeypatch.setattr(nms, "diou_nms", lambda *args: (sizes.append(len(args[0])), diou_nms(*args))[1])
    return sizes


def test_predict_and_val(trained, data, seen):
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    model = YOLO(trained.best)
    model.predict(image, imgsz=64, conf=0.001, verbose=False)
    assert not seen
    model.predict(image, imgsz=64, conf=0.001, verbose=False, nms_iou="DIoU")
    assert len(seen) == 1
    model.val(data=data, imgsz=64, plots=False, workers=0, nms_iou="diou")
    assert len(seen) == 5
    YOLO(trained.best).val(data=data, imgsz=64, plots=False, workers=0)
    assert len(seen) == 5, "a model trained with it is validated without, unless it is asked for"
    assert trained.args.nms_iou == "diou"


@pytest.mark.slow
def test_a_training_calls_it_where_the_host_does_and_says_first_where_it_cannot(data, tmp_path, seen):
    train(data=data, project=str(tmp_path), nms_iou="diou")
    assert seen
    seen.clear()
    if nms.is_nms_the_default():
        train(END_TO_END, data=data, project=str(tmp_path), nms_iou="diou")
        assert seen
    else:
        refuses("an end-to-end head has no NMS", train, END_TO_END, data=data, project=str(tmp_path), nms_iou="diou")
    begun = []
    with pytest.raises(LossPlugError, match="nms_iou=diou has no effect in validation here: an end-to-end head"):
        keys = {"data": data, "project": str(tmp_path), "nms_iou": "diou", "nms": False}
        train(END_TO_END, callbacks=[("on_train_epoch_start", begun.append)], **keys)
    assert not begun


def test_where_it_has_no_effect(tmp_path):
    for model, mode, given, message in (
        ("yolov8n.yaml", "export", "diou", "an exported model has its own NMS"),
        ("yolov8n.yaml", "predict", "dio", "nms_iou=dio is unknown. Did you mean 'diou'"),
        ("yolov8n-obb.yaml", "predict", "diou", "task=obb has no NMS of horizontal boxes"),
        ("yolov8n-cls.yaml", "val", "diou", "task=classify has no NMS of horizontal boxes"),
    ):
        refuses(message, getattr(YOLO(model), mode), nms_iou=given)
    with pytest.raises(LossPlugError, match="nms_iou=diou cannot be used with task=obb"):
        YOLO("yolov8n-obb.yaml").train(**TINY, data="none.yaml", project=str(tmp_path), nms_iou="diou")
    # With `nms=False` every release uses the one-to-one head.
    for mode in ("val", "predict", "track"):
        with pytest.raises(LossPlugError, match=f"mode={mode} here: an end-to-end head has no NMS"):
            getattr(YOLO(END_TO_END), mode)(nms_iou="diou", nms=False)


END_TO_END = "yolo26n.yaml"


@pytest.mark.slow
def test_end_to_end_head_with_nms_is_what_the_host_runs(seen):
    """Whether the key is refused is whether the host calls NMS by default."""
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    options = {"imgsz": 64, "conf": 0.0001, "verbose": False}
    model = YOLO(END_TO_END)
    if nms.has_nms(model.model, {}):
        with Log() as log:
            model.predict(image, **options, nms_iou="diou")
        assert seen and log.text.count("nms diou · mode predict") == 1
    else:
        refuses("an end-to-end head has no NMS", model.predict, image, **options, nms_iou="diou")


def test_releases_differ_in_their_default(monkeypatch):
    model = YOLO(END_TO_END).model
    for default, given, expected in (
        *((None, {}, True), (None, {"nms": False}, False), (None, {"end2end": True}, False), (False, {}, False)),
        *((False, {"nms": True}, True), (False, {"end2end": False}, True)),
    ):
        monkeypatch.setitem(nms.DEFAULT_CFG_DICT, "nms", default)
        assert nms.has_nms(model, given) is expected, (default, given)
    assert nms.has_nms(YOLO("yolov8n.yaml").model, {"nms": False})


def test_a_call_says_once_which_overlap_runs():
    model = YOLO("yolov8n.yaml")
    for mode in ("val", "predict", "track"):
        with Log() as log:
            nms.check_overlap(model, mode, {"nms_iou": "DIoU", "mode": mode})
            nms.check_overlap(model, "predict", {"nms_iou": "diou", "mode": "track"})
            nms.check_overlap(model, mode, {})
        assert log.text.count("nms diou") == 1 and f"mode {mode}" in log.text

# SPDX-License-Identifier: AGPL-3.0-or-later
"""AP by size and class against pycocotools, on random problems with ties, empty images and sizes on the limits."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolo_lossplug.tools.compare import average_precision
from yolo_lossplug.tools.compare.average_precision import Image

NAMES = {0: "cat", 1: "dog", 2: "small"}


def iou_of(one, other):
    """IoU (d, g) of boxes x, y, width, height."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, :2] + one[:, None, 2:], other[None, :, :2] + other[None, :, 2:])
    overlap = (high - low).clip(0).prod(-1)
    return overlap / (one[:, None, 2:].prod(-1) + other[None, :, 2:].prod(-1) - overlap)


def problem(seed):
    """Objects of all sizes, some of 32 x 32 and 96 x 96 exactly, detections near them with tied scores, and noise."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(rng.integers(1, 8)):
        count = rng.integers(0, 12)
        size = np.exp(rng.uniform(np.log(6), np.log(250), (count, 2)))
        size[rng.random(count) < 0.15] = rng.choice([32.0, 96.0])
        gts = np.concatenate([rng.uniform(0, 300, (count, 2)), size], 1)
        gt_classes = rng.integers(0, 2 + seed % 2, count)
        near = rng.integers(0, max(count, 1), rng.integers(0, 40) if count else 0)
        boxes = gts[near] * np.exp(rng.normal(0, 0.06, (len(near), 4))) if count else np.zeros((0, 4))
        boxes[rng.random(len(boxes)) < 0.1] = gts[0] if count else 0
        many = rng.integers(0, 150)
        far = np.concatenate([rng.uniform(0, 300, (many, 2)), rng.uniform(5, 120, (many, 2))], 1)
        classes = np.concatenate([gt_classes[near], rng.integers(0, 3, many)]) if count else rng.integers(0, 3, many)
        boxes = np.concatenate([boxes, far])
        images.append((boxes, rng.integers(1, 60, len(boxes)) / 60, classes, gts, gt_classes))
    return images


def ours(images, names=NAMES):
    return average_precision.precision_table(
        [
            Image(scores, classes, boxes[:, 2:].prod(1), iou_of(boxes, gts), gt_classes, gts[:, 2:].prod(1))
            for boxes, scores, classes, gts, gt_classes in images
        ],
        sorted(names),
    )


def pycocotools(images, names=NAMES, crowds=()):
    """AP (classes, areas, thresholds), NaN where there is no object; `crowds` are image, class and box."""
    objects = [
        {"image_id": i, "category_id": int(c), "bbox": list(b), "area": float(b[2] * b[3]), "iscrowd": 0}
        for i, (_, _, _, gts, classes) in enumerate(images)
        for b, c in zip(gts, classes)
    ]
    objects += [
        {"image_id": i, "category_id": c, "bbox": list(b), "area": float(b[2] * b[3]), "iscrowd": 1}
        for i, c, b in crowds
    ]
    found = [
        {"image_id": i, "category_id": int(c), "bbox": list(b), "score": float(s)}
        for i, (boxes, scores, classes, _, _) in enumerate(images)
        for b, s, c in zip(boxes, scores, classes)
    ]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in range(len(images))],
        "categories": [{"id": i, "name": name} for i, name in names.items()],
        "annotations": [{"id": i + 1, **one} for i, one in enumerate(objects)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., -1]  # thresholds, recalls, classes, areas, at most 100 detections
    return np.where(precision < 0, np.nan, precision).mean(1).transpose(1, 2, 0)


@pytest.mark.parametrize("seed", range(50))
def test_it_is_cocos(seed):
    images = problem(seed)
    if not sum(len(boxes) for boxes, *_ in images):
        pytest.fail("the problem has no detection")
    np.testing.assert_allclose(ours(images), pycocotools(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_regions_are_cocos_crowds(seed):
    """A detection without an object is ignored at the IoU up to which it lies in a crowd of its class."""
    images, rng = problem(seed), np.random.default_rng(seed)
    found, crowds = [], []
    for i, (boxes, scores, classes, gts, gt_classes) in enumerate(images):
        shares = np.zeros(len(boxes))
        for _ in range(3):
            cls, crowd = int(rng.integers(2)), np.concatenate([rng.uniform(0, 200, 2), rng.uniform(50, 250, 2)])
            crowds.append((i, cls, crowd))
            low = np.maximum(boxes[:, :2], crowd[:2])
            high = np.minimum(boxes[:, :2] + boxes[:, 2:], crowd[:2] + crowd[2:])
            share = (high - low).clip(0).prod(1) / boxes[:, 2:].prod(1)
            shares = np.maximum(shares, np.where(classes == cls, share, 0))
        iou = iou_of(boxes, gts)
        found.append(Image(scores, classes, boxes[:, 2:].prod(1), iou, gt_classes, gts[:, 2:].prod(1), shares))
    table = average_precision.precision_table(found, sorted(NAMES))
    assert np.nansum(table - ours(images)) > 0.01
    np.testing.assert_allclose(table, pycocotools(images, crowds=crowds), rtol=0, atol=1e-6)


def test_names_and_missing_sizes():
    box = np.array([[0.0, 0, 10, 10]])
    image = Image(np.array([0.9]), np.array([1]), np.array([100.0]), iou_of(box, box), np.array([1]), np.array([100.0]))
    found = average_precision.by_size_and_class([image], NAMES)
    assert found == pytest.approx(
        {"AP_small": 1.0, "AP_medium": None, "AP_large": None, "AP_cat": None, "AP_dog": 1.0, "AP_small (class)": None}
    )
    assert average_precision.by_size_and_class([], NAMES)["AP_dog"] is None

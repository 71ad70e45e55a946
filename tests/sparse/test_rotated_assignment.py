# SPDX-License-Identifier: AGPL-3.0-or-later
"""The sparse assignment of rotated boxes against Ultralytics' own, bit for bit."""

import math
import os

import pytest
import torch
from ultralytics.utils.tal import RotatedTaskAlignedAssigner

from tests.problems import FAMILIES, N_CLASSES, STRIDES, points, problem
from yolo_lossplug.sparse import assign
from yolo_lossplug.sparse.grid import bounds_of_rotated, levels_of_shapes, rectangles, shapes_of_points
from yolo_lossplug.sparse.pairs import enumerate_pairs
from yolo_lossplug.ultralytics_hook import assigner as hook
from yolo_lossplug.ultralytics_hook.rotated import pair_shape, rotated_candidates

N_PROBLEMS = int(os.environ.get("LOSSPLUG_PROBLEMS", "12"))
"""Problems of each family. More, by hand: LOSSPLUG_PROBLEMS=4000 pytest tests/sparse"""
SETTINGS = ({"topk": 10}, {"topk": 7, "topk2": 1}, {"topk": 5, "topk2": 3, "alpha": 1.0})


def assigner_of(**settings):
    """Return Ultralytics' assigner."""
    return RotatedTaskAlignedAssigner(**{"num_classes": N_CLASSES, "alpha": 0.5, "stride": list(STRIDES), **settings})


def rotated(family, seed):
    """Return the inputs of an assigner by name, with angles, a third of them multiples of 90°."""
    scores, predicted, places, labels, boxes, mask = problem(family, seed)
    rng = torch.Generator().manual_seed(seed)

    def turned(corners):
        angle = (torch.rand(*corners.shape[:2], 1, generator=rng) - 0.25) * math.pi
        right = torch.randint(-1, 3, angle.shape, generator=rng) * math.pi / 2
        angle = torch.where(torch.rand(angle.shape, generator=rng) < 0.3, right, angle)
        return torch.cat(((corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] - corners[..., :2], angle), -1)

    return scores.float(), turned(predicted), places, labels, turned(boxes) * mask, mask


def sparse(assigner, inputs):
    """Return the five outputs of an assigner, from candidates only."""
    scores, boxes, places, labels, gt_boxes, mask = inputs
    assert hook.is_sparse(assigner, {torch.float32}, places)
    gts, levels = hook.gts_of(mask, len(places)), levels_of_shapes(places, shapes_of_points(places))
    gt_of, first = gt_boxes.flatten(0, 1)[gts.slot], gts.begin * N_CLASSES + labels.flatten().long()[gts.slot]

    def measure(row, anchor):
        score, box = scores.flatten()[first[row] + anchor * N_CLASSES], boxes.flatten(0, 1)[gts.begin[row] + anchor]
        return hook.metric_of(assigner, score, gt_of[row], box)

    assignment = hook.sparse_assignment(assigner, gts, measure, levels, gt_boxes, mask)
    if assignment is None:  # metrics that are not finite: the host takes the step
        return None
    return hook.dense_outputs(assignment, labels, gt_boxes, scores.shape)


@pytest.mark.parametrize("family", FAMILIES)
def test_random_problems(family, monkeypatch):
    n_positives = 0
    for seed in range(N_PROBLEMS):
        monkeypatch.setattr(assign, "MIN_PAIRS", 2**16 if seed % 2 else 50)
        monkeypatch.setattr(assign, "PAIRS_PER_ANCHOR", 2 if seed % 2 else 0)
        assigner, inputs = assigner_of(**SETTINGS[seed % 3]), rotated(family, seed)
        expected, actual = assigner(*(tensor.clone() for tensor in inputs)), sparse(assigner, inputs)
        assert actual is not None or family == "negative"
        for one, other in zip(expected, actual or ()):
            torch.testing.assert_close(other.to(one.dtype), one, rtol=2e-6 if one is expected[2] else 0, atol=0)
        n_positives += int(expected[3].sum())
    assert (n_positives > N_PROBLEMS) == (family != "no_objects")


@pytest.mark.parametrize("is_static", [False, True])
def test_candidates_without_a_floor(is_static):
    def in_box(self, xy_centers, boxes, mask):
        corner, (along, across) = boxes[..., None, :2], axes(boxes)
        away = xy_centers - corner
        return ((away * along).sum(-1).abs() <= boxes[..., 2:3] / 2) & (
            (away * across).sum(-1).abs() <= boxes[..., 3:4] / 2
        )

    def axes(boxes):
        cos, sin = boxes[..., 4:].cos(), boxes[..., 4:].sin()
        return torch.cat((cos, sin), -1).unsqueeze(-2), torch.cat((-sin, cos), -1).unsqueeze(-2)

    own = staticmethod(lambda *args: in_box(None, *args)) if is_static else in_box
    kind = type("Own", (RotatedTaskAlignedAssigner,), {"select_candidates_in_gts": own})
    assigner, places = kind(num_classes=3, stride=[8, 16, 32]), points(320, 320)
    assert pair_shape(assigner) == (-1, 1, 1, 2) and not hook.is_sparse(assigner, {torch.float32}, places)
    boxes = rotated("realistic", 1)[4][0]
    bounds, inside = rotated_candidates(assigner, boxes, places)
    levels = levels_of_shapes(places, shapes_of_points(places))
    pairs = enumerate_pairs(rectangles(bounds, levels), levels)
    kept = inside(pairs.row, pairs.anchor)
    expected = assigner.select_candidates_in_gts(places, boxes.unsqueeze(0), torch.ones(1, len(boxes), 1))[0].nonzero()
    assert torch.equal(torch.stack((pairs.row, pairs.anchor), 1)[kept], expected) and len(expected) < len(pairs.row)


def test_a_test_that_compares_no_pairs_is_recognised():
    kind = type("Own", (RotatedTaskAlignedAssigner,), {"select_candidates_in_gts": lambda self, xy, boxes: None})
    assert pair_shape(kind(stride=[8, 16, 32])) is None
    assert not hook.is_sparse(kind(stride=[8, 16, 32]), {torch.float32}, points(320, 320))


def test_bounds_of_boxes_without_a_side():
    boxes = torch.tensor([[100.0, 100, 0, 40, 0.3], [100.0, 100, 20, 40, math.pi / 2]])
    floored, free = (bounds_of_rotated(boxes, 16.0, is_floored) for is_floored in (True, False))
    assert floored.isfinite().all() and not free[0].isfinite().any()
    torch.testing.assert_close(free[1], torch.tensor([80.0, 90, 120, 110]), rtol=0, atol=0.01)

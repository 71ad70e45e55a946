# SPDX-License-Identifier: AGPL-3.0-or-later
"""The sparse assignment against Ultralytics' own, bit for bit, and each rule that this depends on."""

import os

import pytest
import torch
from ultralytics.utils.ops import xywh2xyxy, xyxy2xywh
from ultralytics.utils.tal import PoseTaskAlignedAssigner, RotatedTaskAlignedAssigner, SegTaskAlignedAssigner
from ultralytics.utils.tal import TaskAlignedAssigner as StockAssigner

from tests.problems import FAMILIES, N_CLASSES, STRIDES, points, problem
from tests.runs import slow
from yolo_lossplug import TaskAlignedAssigner, create_box_loss
from yolo_lossplug.sparse import assign as assignment
from yolo_lossplug.sparse import topk
from yolo_lossplug.ultralytics_hook import assigner as hook
from yolo_lossplug.ultralytics_hook import min_side as floors

N_PROBLEMS = int(os.environ.get("LOSSPLUG_PROBLEMS", "40"))
"""Problems of each family. More, by hand: LOSSPLUG_PROBLEMS=4000 pytest tests/sparse"""
SETTINGS = (
    {"topk": 10, "alpha": 0.5, "beta": 6.0},
    {"topk": 7, "topk2": 1, "alpha": 0.5, "beta": 6.0},
    {"topk": 13, "alpha": 1.0, "beta": 6.0},
    {"topk": 10, "topk2": 3, "alpha": 0.5, "beta": 2.0},
    {"topk": 5, "alpha": 0.5, "beta": 0.0},
)


@pytest.fixture
def sparse_runs(monkeypatch):
    """Make tiny problems use the sparse assignment too, and record every use."""
    calls = []
    dense_outputs = hook.dense_outputs
    monkeypatch.setattr(hook, "MIN_SPARSE", {})
    monkeypatch.setattr(hook, "DENSE_ON_GPU", 0)
    monkeypatch.setattr(hook, "dense_outputs", lambda *args: calls.append(1) or dense_outputs(*args))
    return calls


def pair(**settings):
    settings = {"topk": 10, "alpha": 0.5, "beta": 6.0, "num_classes": N_CLASSES, "stride": list(STRIDES), **settings}
    return StockAssigner(**settings), TaskAlignedAssigner(**settings)


def equal(assigners, inputs, device="cpu", tolerance=0.0):
    """Assert that all five outputs and their dtypes are equal; return those of Ultralytics."""
    expected, actual = ([*one(*(tensor.clone().to(device) for tensor in inputs))] for one in assigners)
    for one, other in zip(expected, actual):
        torch.testing.assert_close(other, one, rtol=tolerance if one is expected[2] else 0, atol=0)
    return expected


def boxes_of(*rows):
    """Return the last three inputs for one image: classes 0, boxes, no empty slot."""
    boxes = torch.tensor([rows]).float()
    return torch.zeros(1, len(rows), 1), boxes, torch.ones(1, len(rows), 1)


def flat(image=(320, 320), score=0.5, side=40.0):
    """Return the first three inputs for one image whose anchors all predict the same box around their centre."""
    anchors = points(*image)
    scores = torch.full((1, len(anchors), N_CLASSES), score)
    return scores, torch.cat((anchors - side / 2, anchors + side / 2), -1).unsqueeze(0), anchors


@pytest.mark.parametrize("family", FAMILIES)
def test_random_problems(family, sparse_runs, device):
    assigners = [pair(**settings) for settings in SETTINGS]
    n_positives = 0
    for seed in range(N_PROBLEMS):
        n_positives += int(equal(assigners[seed % 5], problem(family, seed), device)[3].sum())
    assert len(sparse_runs) == N_PROBLEMS
    assert (n_positives > N_PROBLEMS) == (family != "no_objects")


@pytest.mark.parametrize("family", ["crowded", "tiny", "edges", "zero_size", "holes"])
@pytest.mark.parametrize("min_side", [1.5, 16.0, 32.0, 40.3])
def test_floors_of_a_side(family, min_side, sparse_runs):
    unlike = 0
    for seed in range(4):
        assigners, inputs = pair(), problem(family, seed)
        before = assigners[0](*(tensor.clone() for tensor in inputs))
        for one in assigners:
            floors.set_min_side(one, min_side)
            assert floors.floor_of(one) == (min_side, min_side)
        unlike += not torch.equal(before[3], equal(assigners, inputs)[3])
        inside = brute_force(inputs[2], *inputs[4:], min_side)
        assert torch.equal(assigners[0].select_candidates_in_gts(inputs[2], *inputs[4:]) & inputs[5].bool(), inside)
    assert sparse_runs and (unlike == 0 or min_side != 16)
    assert unlike or min_side < 32 or family not in ("crowded", "tiny")


def brute_force(anchors, boxes, mask, min_side):
    """Return which anchors (b, n, A) lie in boxes whose sides are at least a floor long."""
    centre, side = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    away = (anchors - centre.unsqueeze(2)).abs()
    return (away < side.clamp(min=min_side).unsqueeze(2) / 2 - 1e-6).all(-1) & mask.bool()


def test_a_release_without_a_floor_is_recognised():
    def first_to_second(self, points, boxes, mask, eps=1e-9):
        sides = xyxy2xywh(boxes)
        is_small = (sides[..., 2:] < self.stride[0]) & mask.bool()
        boxes = xywh2xyxy(torch.cat((sides[..., :2], sides[..., 2:].masked_fill(is_small, self.stride_val)), -1))
        return no_floor(self, points, boxes)

    def no_floor(self, points, boxes, eps=1e-9):
        return ((points - boxes[..., None, :2] > eps) & (boxes[..., None, 2:] - points > eps)).all(-1)

    assert not floors.has_floor(first_to_second) and not floors.has_floor(no_floor)
    assert floors.has_floor(StockAssigner.select_candidates_in_gts)
    assert floors.has_floor(RotatedTaskAlignedAssigner.select_candidates_in_gts, is_rotated=True)


@pytest.mark.parametrize("iou", ["iou", "giou", "eiou"])
def test_other_overlaps(iou, sparse_runs):
    stock, ours = StockAssigner(10, N_CLASSES, 0.5), TaskAlignedAssigner(10, N_CLASSES, 0.5, iou=iou)
    hook.set_overlap(stock, create_box_loss(iou))
    equal((stock, ours), problem("crowded", 1))
    assert sparse_runs


@pytest.mark.parametrize("family", [slow("crowded"), "equal", "zero_metrics", "near_first", "holes"])
def test_many_pairs_are_processed_in_chunks(family, sparse_runs, monkeypatch):
    seen = []
    enumerate_pairs = assignment.enumerate_pairs
    monkeypatch.setattr(assignment, "enumerate_pairs", lambda *args: seen.append(1) or enumerate_pairs(*args))
    monkeypatch.setattr(assignment, "MIN_PAIRS", 1)
    for seed in range(5):
        inputs = problem(family, seed, b=5)
        for per_anchor in (0.0, 0.002, 0.02):
            monkeypatch.setattr(assignment, "PAIRS_PER_ANCHOR", per_anchor)
            # The last elements of a chunk are computed without vector instructions, which round differently.
            equal(pair(), inputs, tolerance=1e-5)
            equal(pair(topk=7, topk2=2), inputs, tolerance=1e-5)
    assert len(seen) > 2 * len(sparse_runs) == 60


# The rules. Without its rule each of these problems has a different result.


def test_boxes_as_ultralytics_sees_them(sparse_runs):
    labels, boxes, mask = boxes_of([10, 10, 90, 90], [-90, -90, 40, 40], [30, 30, 60, 70])
    mask = boxes.sum(2, keepdim=True).gt(0).float()
    assert mask.flatten().tolist() == [1, 0, 1]
    *_, foreground, _ = equal(pair(), (*flat(), labels, boxes, mask))
    assert foreground.any()
    # Small boxes are widened to the second stride, for the search only.
    inputs = (*flat(side=6.0), *boxes_of([101, 101, 104, 105], [201, 50, 203, 90]))
    assert equal(pair(), inputs)[3].sum() >= 4
    # A box whose edge lies on a centre excludes it; edges are those after conversion to centre and size and back.
    for box, n_inside in (([100, 100, 132, 132], 9 + 4 + 1), ([99.99, 99.99, 132.01, 132.01], 25 + 9 + 1)):
        assert equal(pair(topk=30), (*flat(), *boxes_of(box)))[3].sum() == min(n_inside, 30)
    edge = 143.2761993408203
    boxes = torch.tensor([116.0, 116.0, edge, edge])
    assert xywh2xyxy(xyxy2xywh(boxes))[0] < 116  # so that the centres at 116 are inside
    assert equal(pair(topk=30), (*flat(), *boxes_of(boxes.tolist())))[3].sum() > 9
    assert len(sparse_runs) == 5


@pytest.mark.parametrize("k", [10, 13])
def test_ties_are_broken_as_topk_breaks_them(k, sparse_runs):
    inputs = (*flat(), *boxes_of([20, 20, 200, 180], [20, 20, 200, 180], [60, 60, 300, 300]))
    assert equal(pair(topk=k), inputs)[3].sum() > k


def test_zero_metrics_fill_up_from_the_first_anchors(sparse_runs):
    scores, boxes, anchors = flat()
    boxes = boxes + 5000  # no overlap anywhere, so that every metric is 0
    foreground = equal(pair(), (scores, boxes, anchors, *boxes_of([0, 0, 60, 20])))[3]
    assert foreground.nonzero()[:, 1].max() < 10 and foreground.any()
    boxes[:, 45] = torch.tensor([0.0, 0, 60, 20])  # one metric above 0, far from the first anchors
    equal(pair(), (scores, boxes, anchors, *boxes_of([0, 0, 60, 60])))
    assert len(sparse_runs) == 2


def test_a_contested_anchor_goes_to_the_largest_overlap_of_all_gts(sparse_runs):
    # The third gt overlaps most, but has so many better anchors that it does not select the contested ones.
    scores, boxes, anchors = flat(side=80.0)
    scores[..., 1] = 0.9
    labels, gts, mask = boxes_of([90, 90, 170, 170], [95, 90, 175, 170], [60, 60, 260, 260])
    labels[0, 2] = 1
    index = equal(pair(), (scores, boxes, anchors, labels, gts, mask))[4]
    assert len(index.unique()) > 1 and sparse_runs


def test_equal_overlaps_go_to_the_first_gt_and_zeros_to_the_first_slot(sparse_runs):
    scores, boxes, anchors = flat()
    same = boxes_of([40, 40, 120, 120], [40, 40, 120, 120])
    index, foreground = equal(pair(), (scores, boxes, anchors, *same))[4:2:-1]
    assert (index[foreground] == 0).all()
    far = torch.cat((boxes[:, :, :2] + 3000, boxes[:, :, 2:] + 3000), -1)
    # Two gts that share the first anchors, and a first slot that is elsewhere, or empty.
    for first, is_gt in (([200.0, 200, 280, 280], 1.0), ([0.0, 0, 0, 0], 0.0)):
        labels, gts, mask = boxes_of(first, [0, 0, 100, 30], [0, 0, 90, 30])
        mask[0, 0] = is_gt
        _, target, score, foreground, index = equal(pair(), (scores, far, anchors, labels, gts, mask))
        assert foreground.any() and (index[foreground] == 0).all() and not score.any()
        assert (target[foreground] == gts[0, 0]).all()
    assert len(sparse_runs) == 3


def test_outputs_of_anchors_without_a_gt_and_scores_in_the_order_of_ultralytics(sparse_runs):
    labels, boxes, mask = boxes_of([40, 40, 120, 120], [10, 10, 30, 30])
    labels[0] = torch.tensor([[3.0], [-1.0]])
    out_labels, out_boxes, _, foreground, _ = equal(pair(), (*flat(), labels, boxes, mask))
    assert (out_labels[~foreground] == 3).all() and (out_boxes[~foreground] == boxes[0, 0]).all()
    score = equal(pair(), problem("realistic", 5))[2]
    assert len(score[score > 0].unique()) > 10 and len(sparse_runs) == 2


@pytest.mark.parametrize("topk2", [1, 3])
def test_a_second_selection_after_conflicts(topk2, sparse_runs):
    scores, boxes, anchors = flat()
    far = boxes + 3000
    for predicted in (boxes, far, torch.where(torch.arange(len(anchors)).view(1, -1, 1) < 6, far, boxes)):
        inputs = (scores, predicted, anchors, *boxes_of([0, 0, 100, 60], [0, 0, 100, 60], [30, 30, 200, 200]))
        equal(pair(topk=7, topk2=topk2), inputs)
    assert len(sparse_runs) == 3


# Where Ultralytics' own assignment is used.


@pytest.mark.parametrize("name", ["nan", "inf", "irregular", "moved", "double", "small", "shuffled"])
def test_fallback_to_ultralytics(name, sparse_runs):
    scores, boxes, anchors, labels, gts, mask = problem("realistic", 2, size=(96, 96) if name == "small" else None)
    if name in ("nan", "inf"):
        boxes[0, 50:90] = float(name)
        scores[0] = float(name)
    if name == "irregular":
        anchors = anchors + torch.rand(anchors.shape, generator=torch.Generator().manual_seed(0))
    if name == "moved":  # an anchor off its grid
        anchors = anchors.clone()
        anchors[1000, 0] += 1
    if name == "shuffled":
        order = torch.randperm(len(anchors), generator=torch.Generator().manual_seed(0))
        anchors, boxes, scores = anchors[order], boxes[:, order], scores[:, order]
    if name == "double":
        boxes, gts = boxes.double(), gts.double()
    assigners = pair()
    inputs = (scores, boxes, anchors, labels, gts, mask)
    expected, actual = ([*one(*(tensor.clone() for tensor in inputs))] for one in assigners)
    for one, other in zip(expected, actual):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    assert not sparse_runs


def test_one_assigner_for_several_image_shapes(sparse_runs):
    assigners = pair()
    for size in ((256, 416), (416, 256), (256, 416), (320, 320)):
        equal(assigners, problem("realistic", 4, size=size))
    assert len(sparse_runs) == 4


def test_no_slots_and_tiny_problems_use_the_dense_form():
    scores, boxes, anchors, labels, gts, mask = problem("realistic", 0)
    equal(pair(), (scores, boxes, anchors, labels[:, :0], gts[:, :0], mask[:, :0]))
    assert StockAssigner.forward is not TaskAlignedAssigner.forward
    inputs = problem("realistic", 0)
    assert inputs[4].shape[1] * len(inputs[2]) * 2 < hook.MIN_SPARSE["cpu"]
    equal(pair(), inputs)


def test_assigners_with_overridden_methods_keep_their_own():
    anchors = points(320, 320)
    for other in (
        PoseTaskAlignedAssigner(torch.ones(3)),
        SegTaskAlignedAssigner(),
        type("Own", (StockAssigner,), {"get_box_metrics": lambda self: None})(),
    ):
        assert not hook.is_sparse(other, {torch.float32}, anchors)
    assert hook.is_sparse(StockAssigner(), {torch.float32}, anchors)
    assert not hook.is_sparse(StockAssigner(), {torch.float32, torch.float16}, anchors)


def test_topk_fills_up_as_the_selection_expects(monkeypatch, sparse_runs):
    assert hook.fills_up_in_order("cpu")
    assert topk.is_exact(10, 640, "cpu") and not topk.is_exact(10, 639, "cpu")
    monkeypatch.setattr(hook, "fills_up_in_order", lambda device_type: False)
    equal(pair(), problem("realistic", 1))
    assert not sparse_runs

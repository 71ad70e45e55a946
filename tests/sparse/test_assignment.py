# SPDX-License-Identifier: AGPL-3.0-or-later
"""The sparse assignment against Ultralytics' own, bit for bit, and each rule that this takes."""

import os

import pytest
import torch
from ultralytics.utils.ops import xywh2xyxy, xyxy2xywh
from ultralytics.utils.tal import PoseTaskAlignedAssigner, RotatedTaskAlignedAssigner
from ultralytics.utils.tal import TaskAlignedAssigner as StockAssigner

from tests.problems import FAMILIES, N_CLASSES, STRIDES, points, problem
from yolo_lossplug import TaskAlignedAssigner
from yolo_lossplug.sparse import assign as assignment
from yolo_lossplug.sparse import topk
from yolo_lossplug.ultralytics_hook import assigner as hook

N_PROBLEMS = int(os.environ.get("LOSSPLUG_PROBLEMS", "60"))
"""Problems of each family. More, by hand: LOSSPLUG_PROBLEMS=4000 pytest tests/sparse"""
NUMBERS = (
    {"topk": 10, "alpha": 0.5, "beta": 6.0},
    {"topk": 7, "topk2": 1, "alpha": 0.5, "beta": 6.0},
    {"topk": 13, "alpha": 1.0, "beta": 6.0},
    {"topk": 10, "topk2": 3, "alpha": 0.5, "beta": 2.0},
    {"topk": 5, "alpha": 0.5, "beta": 0.0},
)


@pytest.fixture
def steps(monkeypatch):
    """Let tiny problems go the sparse way too, and count those that do."""
    taken = []
    dense_outputs = hook.dense_outputs
    monkeypatch.setattr(hook, "SMALLEST", {})
    monkeypatch.setattr(hook, "DENSE_ON_GPU", 0)
    monkeypatch.setattr(hook, "dense_outputs", lambda *args: taken.append(1) or dense_outputs(*args))
    return taken


def pair(**numbers):
    """Return the host's assigner and ours, with the same numbers."""
    numbers = {"topk": 10, "alpha": 0.5, "beta": 6.0, "num_classes": N_CLASSES, "stride": list(STRIDES), **numbers}
    return StockAssigner(**numbers), TaskAlignedAssigner(**numbers)


def equal(assigners, given, device="cpu", tolerance=0.0):
    """Assert that both assign the same, in all five outputs and their types; return the host's."""
    expected, found = ([*one(*(tensor.clone().to(device) for tensor in given))] for one in assigners)
    for one, other in zip(expected, found):
        torch.testing.assert_close(other, one, rtol=tolerance if one is expected[2] else 0, atol=0)
    return expected


def boxes_of(*rows):
    """Return the last three inputs for one image: classes 0, boxes, all of them objects."""
    boxes = torch.tensor([rows]).float()
    return torch.zeros(1, len(rows), 1), boxes, torch.ones(1, len(rows), 1)


def flat(image=(320, 320), score=0.5, side=40.0):
    """Return the first three inputs for one image whose anchors all predict the same around themselves."""
    places = points(*image)
    scores = torch.full((1, len(places), N_CLASSES), score)
    return scores, torch.cat((places - side / 2, places + side / 2), -1).unsqueeze(0), places


@pytest.mark.parametrize("family", FAMILIES)
def test_random_problems(family, steps, device):
    assigners = [pair(**numbers) for numbers in NUMBERS]
    n_positives = 0
    for seed in range(N_PROBLEMS):
        n_positives += int(equal(assigners[seed % 5], problem(family, seed), device)[3].sum())
    assert len(steps) == N_PROBLEMS
    assert (n_positives > N_PROBLEMS) == (family != "no_objects")


@pytest.mark.parametrize("iou", ["iou", "giou", "eiou"])
def test_another_overlap(iou, steps):
    stock, ours = StockAssigner(10, N_CLASSES, 0.5), TaskAlignedAssigner(10, N_CLASSES, 0.5, iou=iou)
    hook.set_overlap(stock, iou)
    equal((stock, ours), problem("crowded", 1))
    assert steps


@pytest.mark.parametrize("family", ["crowded", "equal", "zero_metrics", "near_first", "holes"])
def test_many_pairs_are_worked_on_in_parts(family, steps, monkeypatch):
    seen = []
    enumerate_pairs = assignment.enumerate_pairs
    monkeypatch.setattr(assignment, "enumerate_pairs", lambda *args: seen.append(1) or enumerate_pairs(*args))
    monkeypatch.setattr(assignment, "FEWEST_PAIRS", 1)
    for seed in range(5):
        given = problem(family, seed, b=5)
        for per_anchor in (0.0, 0.002, 0.02):
            monkeypatch.setattr(assignment, "PAIRS_PER_ANCHOR", per_anchor)
            # The last elements of a part are computed without vector instructions, and so round in another way.
            equal(pair(), given, tolerance=1e-5)
            equal(pair(topk=7, topk2=2), given, tolerance=1e-5)
    assert len(seen) > 2 * len(steps) == 60


# The rules. Each problem has another result where the rule is left out.


def test_an_object_without_a_positive_sum_of_coordinates_is_none(steps):
    labels, boxes, mask = boxes_of([10, 10, 90, 90], [-90, -90, 40, 40], [30, 30, 60, 70])
    mask = boxes.sum(2, keepdim=True).gt(0).float()
    assert mask.flatten().tolist() == [1, 0, 1]
    *_, foreground, _ = equal(pair(), (*flat(), labels, boxes, mask))
    assert foreground.any() and steps


def test_small_boxes_are_widened_to_the_second_stride_for_the_search_only(steps):
    given = (*flat(side=6.0), *boxes_of([101, 101, 104, 105], [201, 50, 203, 90]))
    foreground = equal(pair(), given)[3]
    assert foreground.sum() >= 4
    assert steps


def test_a_box_whose_edge_lies_on_a_centre_excludes_it(steps):
    for box, n_inside in (([100, 100, 132, 132], 9 + 4 + 1), ([99.99, 99.99, 132.01, 132.01], 25 + 9 + 1)):
        assert equal(pair(topk=30), (*flat(), *boxes_of(box)))[3].sum() == min(n_inside, 30)
    assert len(steps) == 2


def test_the_edges_tested_are_those_after_the_way_to_centre_and_size_and_back(steps):
    edge = 143.2761993408203
    boxes = torch.tensor([116.0, 116.0, edge, edge])
    assert xywh2xyxy(xyxy2xywh(boxes))[0] < 116  # so that the centres at 116 are inside
    assert equal(pair(topk=30), (*flat(), *boxes_of(boxes.tolist())))[3].sum() > 9
    assert steps


@pytest.mark.parametrize("k", [10, 13])
def test_ties_are_broken_as_topk_breaks_them(k, steps):
    given = (*flat(), *boxes_of([20, 20, 200, 180], [20, 20, 200, 180], [60, 60, 300, 300]))
    assert equal(pair(topk=k), given)[3].sum() > k


def test_zero_metrics_fill_up_from_the_first_anchors(steps):
    scores, boxes, places = flat()
    boxes = boxes + 5000  # no overlap anywhere, so that every metric is 0
    foreground = equal(pair(), (scores, boxes, places, *boxes_of([0, 0, 60, 20])))[3]
    assert foreground.nonzero()[:, 1].max() < 10 and foreground.any()
    boxes[:, 45] = torch.tensor([0.0, 0, 60, 20])  # one metric above 0, far from the first anchors
    equal(pair(), (scores, boxes, places, *boxes_of([0, 0, 60, 60])))
    assert len(steps) == 2


def test_a_contested_anchor_goes_to_the_largest_overlap_of_all_objects_around(steps):
    # The third object overlaps best, but has so many better anchors that it does not select the contested ones.
    scores, boxes, places = flat(side=80.0)
    scores[..., 1] = 0.9
    labels, objects, mask = boxes_of([90, 90, 170, 170], [95, 90, 175, 170], [60, 60, 260, 260])
    labels[0, 2] = 1
    index = equal(pair(), (scores, boxes, places, labels, objects, mask))[4]
    assert len(index.unique()) > 1 and steps


def test_equal_overlaps_go_to_the_first_object_and_none_to_the_first_of_the_image(steps):
    scores, boxes, places = flat()
    same = boxes_of([40, 40, 120, 120], [40, 40, 120, 120])
    index, foreground = equal(pair(), (scores, boxes, places, *same))[4:2:-1]
    assert (index[foreground] == 0).all()
    far = torch.cat((boxes[:, :, :2] + 3000, boxes[:, :, 2:] + 3000), -1)
    # Two objects that share the first anchors, and a first one that is elsewhere: or no object at all.
    for first, is_object in (([200.0, 200, 280, 280], 1.0), ([0.0, 0, 0, 0], 0.0)):
        labels, objects, mask = boxes_of(first, [0, 0, 100, 30], [0, 0, 90, 30])
        mask[0, 0] = is_object
        _, target, score, foreground, index = equal(pair(), (scores, far, places, labels, objects, mask))
        assert foreground.any() and (index[foreground] == 0).all() and not score.any()
        assert (target[foreground] == objects[0, 0]).all()
    assert len(steps) == 3


def test_what_anchors_without_an_object_are_given(steps):
    labels, boxes, mask = boxes_of([40, 40, 120, 120], [10, 10, 30, 30])
    labels[0] = torch.tensor([[3.0], [-1.0]])
    out_labels, out_boxes, _, foreground, _ = equal(pair(), (*flat(), labels, boxes, mask))
    assert (out_labels[~foreground] == 3).all() and (out_boxes[~foreground] == boxes[0, 0]).all()
    assert steps


@pytest.mark.parametrize("topk2", [1, 3])
def test_a_second_selection_after_conflicts(topk2, steps):
    scores, boxes, places = flat()
    far = boxes + 3000
    for predicted in (boxes, far, torch.where(torch.arange(len(places)).view(1, -1, 1) < 6, far, boxes)):
        given = (scores, predicted, places, *boxes_of([0, 0, 100, 60], [0, 0, 100, 60], [30, 30, 200, 200]))
        equal(pair(topk=7, topk2=topk2), given)
    assert len(steps) == 3


def test_the_normalised_score_is_divided_in_the_hosts_order(steps):
    given = problem("realistic", 5)
    score = equal(pair(), given)[2]
    assert len(score[score > 0].unique()) > 10 and steps


# Where the host is asked itself.


@pytest.mark.parametrize("name", ["nan", "inf", "irregular", "moved", "double", "small", "shuffled"])
def test_the_hosts_own_way(name, steps):
    scores, boxes, places, labels, objects, mask = problem("realistic", 2, size=(96, 96) if name == "small" else None)
    if name in ("nan", "inf"):
        boxes[0, 50:90] = float(name)
        scores[0] = float(name)
    if name == "irregular":
        places = places + torch.rand(places.shape, generator=torch.Generator().manual_seed(0))
    if name == "moved":  # an anchor that is no corner of its grid
        places = places.clone()
        places[1000, 0] += 1
    if name == "shuffled":
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(0))
        places, boxes, scores = places[order], boxes[:, order], scores[:, order]
    if name == "double":
        boxes, objects = boxes.double(), objects.double()
    assigners = pair()
    given = (scores, boxes, places, labels, objects, mask)
    expected, found = ([*one(*(tensor.clone() for tensor in given))] for one in assigners)
    for one, other in zip(expected, found):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    assert not steps


def test_one_assigner_for_images_of_equal_size_and_another_shape(steps):
    assigners = pair()
    for size in ((256, 416), (416, 256), (256, 416), (320, 320)):
        equal(assigners, problem("realistic", 4, size=size))
    assert len(steps) == 4


def test_no_places_for_objects():
    scores, boxes, places, labels, objects, mask = problem("realistic", 0)
    equal(pair(), (scores, boxes, places, labels[:, :0], objects[:, :0], mask[:, :0]))


def test_tiny_problems_go_the_hosts_way():
    assert StockAssigner.forward is not TaskAlignedAssigner.forward
    given = problem("realistic", 0)
    assert given[4].shape[1] * len(given[2]) * 2 < hook.SMALLEST["cpu"]
    equal(pair(), given)


def test_assigners_with_hooks_of_their_own_are_left_alone():
    places = points(320, 320)
    for other in (
        PoseTaskAlignedAssigner(torch.ones(3)),
        RotatedTaskAlignedAssigner(),
        type("Own", (StockAssigner,), {"get_box_metrics": lambda self: None})(),
    ):
        assert not hook.is_sparse(other, {torch.float32}, places)
    assert hook.is_sparse(StockAssigner(), {torch.float32}, places)
    assert not hook.is_sparse(StockAssigner(), {torch.float32, torch.float16}, places)


def test_topk_fills_up_as_the_selection_expects(monkeypatch, steps):
    assert hook.fills_up_in_order("cpu")
    assert topk.is_exact(10, 640, "cpu") and not topk.is_exact(10, 639, "cpu")
    monkeypatch.setattr(hook, "fills_up_in_order", lambda device_type: False)
    equal(pair(), problem("realistic", 1))
    assert not steps

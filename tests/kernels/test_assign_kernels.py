# SPDX-License-Identifier: AGPL-3.0-or-later
"""The kernels' assignment against Ultralytics' own, and each rule that this takes."""

import os

import pytest
import torch
from ultralytics.utils.ops import xywh2xyxy, xyxy2xywh
from ultralytics.utils.tal import TaskAlignedAssigner as StockAssigner

from tests.problems import FAMILIES, N_CLASSES, SHAPES, STRIDES, problem
from tests.runs import slow
from yolo_lossplug import create_box_loss
from yolo_lossplug.kernels import is_interpreted
from yolo_lossplug.kernels.assignment import Anchors, Numbers, assign, describe
from yolo_lossplug.kernels.box_maths import HOST
from yolo_lossplug.registry import OVERLAP, REGISTRY
from yolo_lossplug.ultralytics_hook.assigner import set_overlap

N_PROBLEMS = int(os.environ.get("LOSSPLUG_PROBLEMS", "1" if is_interpreted() else "250"))
"""Problems of each family; the interpreter takes seconds for one. More, by hand: LOSSPLUG_PROBLEMS=20 pytest ..."""
MOST = 5 if is_interpreted() and "LOSSPLUG_PROBLEMS" not in os.environ else 1000
"""Objects of an image, for the same reason."""
SETTINGS = ((10, 10, 0.5, 6.0), (7, 1, 0.5, 6.0), (13, 13, 1.0, 6.0), (10, 3, 0.5, 2.0), (5, 5, 0.5, 0.0))
"""Numbers of an assigner: topk, topk2, alpha, beta."""
QUICK = ("realistic", "crowded", "zero_metrics", "no_objects")
"""Families of problems that the quick tests have too, in which the interpreter takes a second for each."""


@pytest.fixture(autouse=True)
def lowest_first(monkeypatch, place):
    """Let `torch.topk` on the CPU take the lowest index of equals, as it does on a GPU."""
    if place == "cpu":

        def topk(values, k, dim=-1, largest=True):
            found = values.sort(dim=dim, descending=largest, stable=True)
            return torch.return_types.topk(side.narrow(dim, 0, k) for side in found)

        monkeypatch.setattr(torch, "topk", topk)


def anchors_of(points, size):
    """Return anchors as the kernels read them, of images of some size in pixels."""
    shapes = [(size[0] // stride, size[1] // stride) for stride in STRIDES]
    strides = torch.cat([torch.full((h * w,), float(s)) for (h, w), s in zip(shapes, STRIDES)])
    first = [sum(h * w for h, w in shapes[:i]) for i in range(len(shapes))]
    levels = torch.tensor([(a, *shape) for a, shape in zip(first, shapes)], dtype=torch.int32)
    return Anchors(points, points / strides.unsqueeze(1), strides, levels, torch.ones(2))


class Problem:
    """A problem as the kernels are given it, whose boxes are those that the kernels make of it."""

    def __init__(self, given, size, place, order=None, floor=(16.0, 16.0)):
        scores, boxes, points, labels, objects = (*given[:3], *(tensor[:, :MOST] for tensor in given[3:5]))
        self.n_images, self.n_places = objects.shape[:2]
        boxes = boxes.to(scores.dtype).float()  # as the host has them where the head puts out half precision
        self.anchors = Anchors(*(tensor.to(place) for tensor in anchors_of(points, size)))
        image = torch.arange(self.n_images).repeat_interleave(self.n_places)
        rows = xyxy2xywh(objects.flatten(0, 1))
        self.order = torch.arange(len(rows)) if order is None else order
        self.logits = (scores.double().logit().to(scores.dtype)).permute(0, 2, 1).contiguous().to(place)
        grid = boxes / self.anchors.strides.cpu().view(1, -1, 1)
        assert torch.equal(grid * self.anchors.strides.cpu().view(1, -1, 1), boxes)
        self.grid = grid.flatten(0, 1).contiguous().to(place)
        sources = (tensor[self.order].to(place) for tensor in (image.float(), labels.flatten(), rows))
        self.rows = describe(*sources, (self.n_images, N_CLASSES), self.anchors, floor)
        self.objects = torch.empty_like(self.rows.boxes)
        self.objects[self.order] = self.rows.boxes
        assert torch.equal(self.objects.cpu(), xywh2xyxy(rows))
        self.given = (
            self.logits.permute(0, 2, 1).sigmoid(),
            boxes.to(place),
            points.to(place),
            labels.to(place),
            self.objects.view(self.n_images, -1, 4),
            (self.objects.sum(1) > 0).float().view(self.n_images, -1, 1),
        )

    def found(self, topk, topk2, alpha, beta, kind=HOST.value, theta=0.0):
        """Return foreground, objects, classes and scores of anchors as the kernels assign them."""
        is_half = self.logits.dtype == torch.float16
        numbers = Numbers(topk, topk2, alpha, beta, 1e-9, kind, theta, is_half)
        assigned = assign(self.rows, self.logits, self.grid, self.anchors, numbers)
        total = assigned.sums.sum()
        torch.testing.assert_close(total, assigned.score.sum(), rtol=1e-5, atol=1e-6, equal_nan=True)
        row = assigned.row.long().cpu()
        first = torch.arange(self.n_images).repeat_interleave(len(row) // self.n_images) * self.n_places
        place = self.order[row.clamp(min=0)] - first
        return row >= 0, place, assigned.label.cpu(), assigned.score.cpu()

    def expected(self, assigner):
        """Return the same as the host assigns them."""
        labels, _, scores, foreground, place = (tensor.cpu() for tensor in assigner(*self.given))
        return foreground.flatten(), place.flatten().long(), labels.flatten(), scores.sum(-1).flatten().float()


def stock(topk, topk2, alpha, beta):
    return StockAssigner(topk, N_CLASSES, alpha, beta, list(STRIDES), topk2=topk2)


def equal(found, expected):
    """Assert that two assignments are the same; return the number of positives."""
    foreground = expected[0]
    assert torch.equal(found[0], foreground)
    assert torch.equal(found[1][foreground], expected[1][foreground])
    assert torch.equal(found[2][foreground], expected[2][foreground].int())
    torch.testing.assert_close(found[3], expected[3], rtol=1e-5, atol=1e-7)
    return int(foreground.sum())


@pytest.mark.parametrize("family", [name if name in QUICK else slow(name) for name in FAMILIES])
def test_random_problems(family, place):
    n_positives = 0
    for seed in range(3, 3 + N_PROBLEMS):  # in that with seed 3 every family has positives
        setting = SETTINGS[(seed + FAMILIES.index(family)) % len(SETTINGS)]
        given = Problem(problem(family, seed), SHAPES[seed % len(SHAPES)], place)
        n_positives += equal(given.found(*setting), given.expected(stock(*setting)))
    assert (n_positives > 0) == (family != "no_objects")


@pytest.mark.parametrize("setting", [*SETTINGS[:2], *map(slow, SETTINGS[2:])])
def test_settings(setting, place):
    given = Problem(problem("overlapping", 0, size=(160, 128)), (160, 128), place)
    assert equal(given.found(*setting), given.expected(stock(*setting)))


@pytest.mark.parametrize("name", [spec.name for spec in REGISTRY if spec.kind == OVERLAP and spec.kernel])
def test_another_overlap(name, place):
    given = Problem(problem("realistic", 1, size=(160, 128)), (160, 128), place)
    assigner = stock(10, 10, 0.5, 6.0)
    set_overlap(assigner, name)
    assert equal(given.found(10, 10, 0.5, 6.0, *create_box_loss(name).kernel), given.expected(assigner))


def test_objects_may_come_in_any_order_of_images(place):
    made = problem("crowded", 3, size=(160, 128))
    n = min(MOST, made[4].shape[1])
    order = torch.arange(2 * n).view(2, n).t().flatten()  # by turns one of each image
    given = Problem(made, (160, 128), place, order)
    assert equal(given.found(10, 10, 0.5, 6.0), given.expected(stock(10, 10, 0.5, 6.0)))


def test_releases_that_widen_no_box(place):
    given = Problem(problem("tiny", 2, size=(160, 128)), (160, 128), place, floor=(0.0, 0.0))
    assigner = stock(10, 10, 0.5, 6.0)
    assigner.stride_val = 0
    assert equal(given.found(10, 10, 0.5, 6.0), given.expected(assigner))


def test_zeros_fill_up_from_the_first_anchors(place):
    """An object with too few metrics above 0 takes zeros of the first anchors, if they are inside it."""
    scores, boxes, points, labels, objects, mask = problem("near_first", 0, size=(160, 128))
    boxes = boxes + 5000  # no overlap anywhere
    objects = torch.tensor([[[0.0, 0, 60, 20], [0, 0, 60, 12]]]).expand(2, -1, -1).contiguous()
    given = Problem((scores, boxes, points, labels[:, :1].expand(-1, 2, -1), objects, mask), (160, 128), place)
    for setting in ((10, 10, 0.5, 6.0), (10, 2, 0.5, 6.0)):
        found = given.found(*setting)
        assert equal(found, given.expected(stock(*setting)))
        assert found[0].view(2, -1).nonzero()[:, 1].max() < 10 and (found[1][found[0]] == 0).all()


def test_metrics_that_are_no_numbers_are_selected_first(place):
    """So that the loss is none either, as that of the host."""
    scores, boxes, points, labels, objects, mask = problem("realistic", 0, size=(160, 128))
    objects[:, 0] = torch.tensor([20.0, 20, 120, 90])
    given = Problem((scores, boxes, points, labels, objects, mask), (160, 128), place)
    given.grid.view(2, -1, 4)[:, 60] = float("nan")
    foreground, _, _, score = given.found(10, 10, 0.5, 6.0)
    assert points[60].tolist() == [100, 28]
    assert foreground.view(2, -1)[:, 60].all() and score.view(2, -1)[:, 60].isnan().all()


def test_no_objects_at_all(place):
    scores, boxes, points, labels, objects, mask = problem("realistic", 0, size=(160, 128))
    given = Problem((scores, boxes, points, labels[:, :0], objects[:, :0], mask[:, :0]), (160, 128), place)
    assigned = assign(
        given.rows, given.logits, given.grid, given.anchors, Numbers(10, 3, 0.5, 6.0, 1e-9, 0, 0.0, False)
    )
    assert (assigned.row == -1).all() and not assigned.score.any() and not assigned.label.any()


@pytest.mark.slow
def test_the_same_every_time(place):
    given = Problem(problem("crowded", 1, size=(160, 128)), (160, 128), place)
    runs = [given.found(7, 2, 0.5, 6.0) for _ in range(3)]
    assert all(torch.equal(one, other) for run in runs[1:] for one, other in zip(runs[0], run))

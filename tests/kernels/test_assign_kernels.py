# SPDX-License-Identifier: AGPL-3.0-or-later
"""The kernels' assignment against Ultralytics' own, and each rule that this depends on."""

import os

import pytest
import torch
from ultralytics.utils.ops import xywh2xyxy, xyxy2xywh
from ultralytics.utils.tal import TaskAlignedAssigner as StockAssigner

from tests.problems import FAMILIES, N_CLASSES, SHAPES, STRIDES, problem
from tests.runs import slow
from yolo_lossplug import create_box_loss
from yolo_lossplug.kernels import is_interpreted
from yolo_lossplug.kernels.assignment import AssignerConfig, assign_rows
from yolo_lossplug.kernels.box_maths import STOCK_CIOU
from yolo_lossplug.kernels.gt_rows import KernelAnchors, describe_gts
from yolo_lossplug.registry import OVERLAP, REGISTRY
from yolo_lossplug.ultralytics_hook.assigner import set_overlap
from yolo_lossplug.ultralytics_hook.min_side import set_min_side

N_PROBLEMS = int(os.environ.get("LOSSPLUG_PROBLEMS", "1" if is_interpreted() else "250"))
"""Problems of each family; the interpreter takes seconds for one. More, by hand: LOSSPLUG_PROBLEMS=20 pytest ..."""
MAX_GTS = 5 if is_interpreted() and "LOSSPLUG_PROBLEMS" not in os.environ else 1000
"""Maximum number of gts per image, for the same reason."""
SETTINGS = ((10, 10, 0.5, 6.0), (7, 1, 0.5, 6.0), (13, 13, 1.0, 6.0), (10, 3, 0.5, 2.0), (5, 5, 0.5, 0.0))
"""Settings of an assigner: topk, topk2, alpha, beta."""
QUICK = ("realistic", "zero_metrics", "no_objects")
"""Families of the quick tests; each takes the interpreter about a second."""


@pytest.fixture(autouse=True)
def lowest_first(monkeypatch, kernel_device):
    """Make `torch.topk` on the CPU break ties by the lowest index, as on a GPU."""
    if kernel_device == "cpu":

        def topk(values, k, dim=-1, largest=True):
            actual = values.sort(dim=dim, descending=largest, stable=True)
            return torch.return_types.topk(side.narrow(dim, 0, k) for side in actual)

        monkeypatch.setattr(torch, "topk", topk)


def anchors_of(points, size):
    """Return the anchors of images of a size in pixels, as the kernels read them."""
    shapes = [(size[0] // stride, size[1] // stride) for stride in STRIDES]
    strides = torch.cat([torch.full((h * w,), float(s)) for (h, w), s in zip(shapes, STRIDES)])
    first = [sum(h * w for h, w in shapes[:i]) for i in range(len(shapes))]
    levels = torch.tensor([(a, *shape) for a, shape in zip(first, shapes)], dtype=torch.int32)
    return KernelAnchors(points, points / strides.unsqueeze(1), strides, levels, torch.ones(2))


class Problem:
    """A problem in the layout of the kernels, with the gt boxes that the kernels compute from it."""

    def __init__(self, case, size, device, order=None, floor=(16.0, 16.0)):
        scores, boxes, points, labels, gts = (*case[:3], *(tensor[:, :MAX_GTS] for tensor in case[3:5]))
        self.n_images, self.n_slots = gts.shape[:2]
        boxes = boxes.to(scores.dtype).float()  # as in Ultralytics where the head's outputs are half precision
        self.anchors = KernelAnchors(*(tensor.to(device) for tensor in anchors_of(points, size)))
        image = torch.arange(self.n_images).repeat_interleave(self.n_slots)
        rows = xyxy2xywh(gts.flatten(0, 1))
        self.order = torch.arange(len(rows)) if order is None else order
        self.logits = (scores.double().logit().to(scores.dtype)).permute(0, 2, 1).contiguous().to(device)
        grid = boxes / self.anchors.strides.cpu().view(1, -1, 1)
        assert torch.equal(grid * self.anchors.strides.cpu().view(1, -1, 1), boxes)
        self.grid = grid.flatten(0, 1).contiguous().to(device)
        sources = (tensor[self.order].to(device) for tensor in (image.float(), labels.flatten(), rows))
        self.rows = describe_gts(*sources, (self.n_images, N_CLASSES), self.anchors, floor)
        self.gts = torch.empty_like(self.rows.boxes)
        self.gts[self.order] = self.rows.boxes
        assert torch.equal(self.gts.cpu(), xywh2xyxy(rows))
        self.stock_inputs = (
            *(self.logits.permute(0, 2, 1).sigmoid(), boxes.to(device), points.to(device), labels.to(device)),
            *(self.gts.view(self.n_images, -1, 4), (self.gts.sum(1) > 0).float().view(self.n_images, -1, 1)),
        )

    def actual(self, topk, topk2, alpha, beta, kind=STOCK_CIOU.value, theta=0.0):
        """Return foreground, gt slots, classes and scores of anchors as the kernels assign them."""
        is_half = self.logits.dtype == torch.float16
        config = AssignerConfig(topk, topk2, alpha, beta, 1e-9, kind, theta, is_half)
        assigned = assign_rows(self.rows, self.logits, self.grid, self.anchors, config)
        total = assigned.sums.sum()
        torch.testing.assert_close(total, assigned.score.sum(), rtol=1e-5, atol=1e-6, equal_nan=True)
        row = assigned.row.long().cpu()
        first = torch.arange(self.n_images).repeat_interleave(len(row) // self.n_images) * self.n_slots
        slot = self.order[row.clamp(min=0)] - first
        return row >= 0, slot, assigned.label.cpu(), assigned.score.cpu()

    def expected(self, assigner):
        labels, _, scores, foreground, slot = (tensor.cpu() for tensor in assigner(*self.stock_inputs))
        return foreground.flatten(), slot.flatten().long(), labels.flatten(), scores.sum(-1).flatten().float()


def stock(topk, topk2, alpha, beta):
    return StockAssigner(topk, N_CLASSES, alpha, beta, list(STRIDES), topk2=topk2)


def equal(actual, expected):
    """Assert that two assignments are the same; return the number of positives."""
    foreground = expected[0]
    assert torch.equal(actual[0], foreground)
    assert torch.equal(actual[1][foreground], expected[1][foreground])
    assert torch.equal(actual[2][foreground], expected[2][foreground].int())
    torch.testing.assert_close(actual[3], expected[3], rtol=1e-5, atol=1e-7)
    return int(foreground.sum())


@pytest.mark.parametrize("family", [name if name in QUICK else slow(name) for name in FAMILIES])
def test_random_problems(family, kernel_device):
    n_positives = 0
    for seed in range(3, 3 + N_PROBLEMS):  # with seed 3 every family has positives
        setting = SETTINGS[(seed + FAMILIES.index(family)) % len(SETTINGS)]
        case = Problem(problem(family, seed), SHAPES[seed % len(SHAPES)], kernel_device)
        n_positives += equal(case.actual(*setting), case.expected(stock(*setting)))
    assert (n_positives > 0) == (family != "no_objects")


@pytest.mark.parametrize("min_side", [6.5, slow(32.0)])
def test_floors_of_a_side(min_side, kernel_device):
    case = Problem(problem("crowded", 3), SHAPES[3 % len(SHAPES)], kernel_device, floor=(min_side, min_side))
    assigner = stock(*SETTINGS[0])
    before = case.expected(assigner)
    set_min_side(assigner, min_side)
    expected = case.expected(assigner)
    assert equal(case.actual(*SETTINGS[0]), expected)
    assert not torch.equal(before[0], expected[0])


@pytest.mark.parametrize("setting", [SETTINGS[1], *map(slow, SETTINGS[2:])])
def test_settings(setting, kernel_device):
    case = Problem(problem("overlapping", 0, size=(160, 128)), (160, 128), kernel_device)
    assert equal(case.actual(*setting), case.expected(stock(*setting)))


@pytest.mark.parametrize("name", [spec.name for spec in REGISTRY if spec.kind == OVERLAP and spec.kernel])
def test_other_overlaps(name, kernel_device):
    case = Problem(problem("realistic", 1, size=(160, 128)), (160, 128), kernel_device)
    assigner = stock(10, 10, 0.5, 6.0)
    set_overlap(assigner, create_box_loss(name))
    assert equal(case.actual(10, 10, 0.5, 6.0, *create_box_loss(name).kernel), case.expected(assigner))


def test_gts_in_any_order_or_none_and_releases_that_widen_no_box(kernel_device):
    made = problem("crowded", 3, size=(160, 128))
    n = min(MAX_GTS, made[4].shape[1])
    order = torch.arange(2 * n).view(2, n).t().flatten()  # alternating between the images
    case = Problem(made, (160, 128), kernel_device, order)
    assert equal(case.actual(10, 10, 0.5, 6.0), case.expected(stock(10, 10, 0.5, 6.0)))
    case = Problem(problem("tiny", 2, size=(160, 128)), (160, 128), kernel_device, floor=(0.0, 0.0))
    assigner = stock(10, 10, 0.5, 6.0)
    assigner.stride_val = 0
    assert equal(case.actual(10, 10, 0.5, 6.0), case.expected(assigner))
    scores, boxes, points, labels, gts, mask = problem("realistic", 0, size=(160, 128))
    case = Problem((scores, boxes, points, labels[:, :0], gts[:, :0], mask[:, :0]), (160, 128), kernel_device)
    assigned = assign_rows(
        case.rows, case.logits, case.grid, case.anchors, AssignerConfig(10, 3, 0.5, 6.0, 1e-9, 0, 0.0, False)
    )
    assert (assigned.row == -1).all() and not assigned.score.any() and not assigned.label.any()


def test_zeros_fill_up_from_the_first_anchors_and_nan_is_selected_first(kernel_device):
    """A gt with too few metrics above 0 gets zeros of the first anchors, if they are inside it."""
    scores, boxes, points, labels, gts, mask = problem("near_first", 0, size=(160, 128))
    boxes = boxes + 5000  # no overlap anywhere
    gts = torch.tensor([[[0.0, 0, 60, 20], [0, 0, 60, 12]]]).expand(2, -1, -1).contiguous()
    case = Problem((scores, boxes, points, labels[:, :1].expand(-1, 2, -1), gts, mask), (160, 128), kernel_device)
    for setting in ((10, 10, 0.5, 6.0), (10, 2, 0.5, 6.0)):
        actual = case.actual(*setting)
        assert equal(actual, case.expected(stock(*setting)))
        assert actual[0].view(2, -1).nonzero()[:, 1].max() < 10 and (actual[1][actual[0]] == 0).all()
    scores, boxes, points, labels, gts, mask = problem("realistic", 0, size=(160, 128))
    gts[:, 0] = torch.tensor([20.0, 20, 120, 90])
    case = Problem((scores, boxes, points, labels, gts, mask), (160, 128), kernel_device)
    case.grid.view(2, -1, 4)[:, 60] = float("nan")
    foreground, _, _, score = case.actual(10, 10, 0.5, 6.0)
    assert points[60].tolist() == [100, 28]
    assert foreground.view(2, -1)[:, 60].all() and score.view(2, -1)[:, 60].isnan().all()


@pytest.mark.slow
def test_the_same_every_time(kernel_device):
    case = Problem(problem("crowded", 1, size=(160, 128)), (160, 128), kernel_device)
    runs = [case.actual(7, 2, 0.5, 6.0) for _ in range(3)]
    assert all(torch.equal(one, other) for run in runs[1:] for one, other in zip(runs[0], run))

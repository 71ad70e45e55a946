# SPDX-License-Identifier: AGPL-3.0-or-later
"""Cells inside boxes, and levels that are recovered from anchors."""

import pytest
import torch

from tests.problems import points
from yolo_lossplug import TaskAlignedAssigner
from yolo_lossplug.sparse import grid
from yolo_lossplug.sparse.candidates import mean_candidates
from yolo_lossplug.sparse.grid import levels_of_shapes, rectangles
from yolo_lossplug.sparse.pairs import n_cells
from yolo_lossplug.ultralytics_hook.min_side import candidate_boxes, floor_of, set_min_side


@pytest.mark.parametrize("stride", [8, 12, 7.3, 0.5])
def test_rank_is_that_of_a_search(stride):
    centres, uneven = (torch.arange(50) + 0.5) * stride, torch.tensor([0.0, 1, 2, 10])
    rng = torch.Generator().manual_seed(0)
    edges = torch.cat((torch.rand(2000, generator=rng) * 70 * stride - 10 * stride, centres))
    edges = torch.cat((edges, *(torch.nextafter(centres, torch.tensor(to)) for to in (-torch.inf, torch.inf))))
    infinite = torch.cat((edges, torch.tensor([torch.inf, -torch.inf, 3e38])))
    for right in (False, True):
        for places, some in ((centres, edges), (centres, infinite), (uneven, edges)):
            expected = torch.searchsorted(places, some, right=right)
            assert torch.equal(grid._rank(places, some, right=right), expected), right


def test_shapes_are_recovered_from_points_and_a_nan_has_no_cells():
    levels = grid.levels_of_shapes(points(64, 64), ((8, 8), (4, 4), (2, 2)))
    boxes = torch.tensor([[0.0, 0, 64, 64], [0, float("nan"), 64, 64], [-torch.inf, 0, torch.inf, 64]])
    sides = grid.rectangles(boxes, levels).diff(dim=-1)
    assert grid.rectangles(boxes, levels)[1].eq(0).all()
    assert grid.rectangles(boxes, levels)[[0, 2], 0].tolist() == [[0, 0, 8, 8]] * 2 and sides.shape == (3, 3, 3)
    for size in ((64, 64), (320, 64), (64, 320), (32, 32)):
        anchors = points(*size)
        shapes = tuple((size[0] // stride, size[1] // stride) for stride in (8, 16, 32))
        assert grid.shapes_of_points(anchors) == shapes
        assert torch.equal(grid.points_of_levels(grid.levels_of_shapes(anchors, shapes)), anchors)
    assert grid.shapes_of_points(torch.rand(500, 2, generator=torch.Generator().manual_seed(0))) is None
    assert grid.shapes_of_points(torch.zeros(0, 2)) is None


@pytest.mark.parametrize("size", [(5, 5), (22, 22), (24, 24), (10, 50)])
def test_the_mean_number_of_candidates_is_that_of_the_assigner(size):
    for side, mean in {3: 5.25, 16: 5.25, 22: 9.926, 24: 11.8125}.items():
        assert mean_candidates(side, side) == pytest.approx(mean, abs=5e-4)
    centres = 128 + 64 * torch.rand(1, 20000, 2, generator=torch.Generator().manual_seed(0))
    half = torch.tensor(size) / 2
    boxes = torch.cat((centres - half, centres + half), -1)
    levels = levels_of_shapes(points(320, 320), [(320 // stride,) * 2 for stride in (8, 16, 32)])
    assigner = TaskAlignedAssigner(stride=[8, 16, 32])
    for min_side in (16.0, 32.0, 20.5):
        set_min_side(assigner, min_side)
        widened = candidate_boxes(boxes, torch.ones(1, 20000, 1), floor_of(assigner))
        counted = n_cells(rectangles(widened[0], levels)).double().mean().item()
        assert counted == pytest.approx(mean_candidates(*size, min_side), rel=0.01), min_side

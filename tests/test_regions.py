# SPDX-License-Identifier: AGPL-3.0-or-later
"""Regions: which cells and boxes lie in them, and what the keys `ignore` and `annotated` take."""

import numpy as np
import pytest
import torch

from yolo_lossplug.regions import ImageRegions, lies_in_region, silenced_cells, upright_corners
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.regions import rules_of

NAMES = {0: "cat", 1: "dog", 2: "crowd"}
TWO = {"train": ["a", "b"], "val": "c"}


@pytest.mark.parametrize(
    ("ignore", "annotated", "words"),
    [
        (["crows"], None, "ignore: the data has no class 'crows'. Did you mean 'crowd'? Known: cat, dog, crowd."),
        (7, None, "no class '7'"),
        ("{crowd: [cat", None, "cannot be read"),
        ({"crowd": []}, None, "silence no class"),
        ([0, 1, "crowd"], None, "nothing is taught"),
        (None, [["cat"]], "has 1 lists of classes for 2 entries of train:"),
        (None, "cat", "has 1 lists of classes for 2 entries"),
        (None, {"test": [["cat"]]}, "for 0 entries of test:"),
        (None, [["cat"], ["dog"]], "no entry of train: annotates the class 'crowd'"),
        (["crowd"], [["cat", "crowd"], ["cat"]], "class 'crowd' is both in annotated and in ignore"),
        (None, [["cat"], ["dig"]], "annotated: the data has no class 'dig'. Did you mean 'dog'?"),
    ],
)
def test_mistakes(ignore, annotated, words):
    with pytest.raises(LossPlugError) as error:
        rules_of(NAMES, ignore, annotated, TWO)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_rules():
    assert rules_of(NAMES, None, None, TWO) is None
    assert rules_of(NAMES, [], [["cat", "dog", "crowd"], "all"], TWO) is None, "everything is annotated"
    for given in (["crowd"], "crowd", "[crowd]", [2], 2, {"crowd": "all"}, "{crowd: all}"):
        rules = rules_of(NAMES, given, None, TWO)
        assert rules.kinds == {2: 0} and rules.rows == ({0, 1, 2},)
    rules = rules_of(NAMES, "{crowd: [cat]}", "[[cat], [cat, dog]]", TWO)
    assert rules.kinds == {2: 0} and rules.rows == ({0}, {1}) and rules.entries == {"train": (1, None)}
    assert rules.describe() == "ignore: 1 class, annotated: 1 entry in part"


def drawn(rng, count=4, is_box=True, kinds=2):
    """Return regions of an image with two kinds, one of which silences every class."""
    centre, half = rng.random((count, 2)), rng.random((count, 2)) * 0.4
    corners = upright_corners(np.concatenate((centre - half, centre + half), 1)).astype(np.float32)
    if not is_box:
        turn = rng.random(count) * np.pi
        matrix = np.stack((np.cos(turn), -np.sin(turn), np.sin(turn), np.cos(turn)), -1).reshape(-1, 2, 2)
        corners = ((corners - centre[:, None]) @ matrix + centre[:, None]).astype(np.float32)
    table = np.array([[True, True, True], [False, True, False]])
    return ImageRegions(corners, rng.integers(kinds, size=count), table)


def is_in(corners, x, y):
    """Whether a point lies in a quadrilateral: left of all its sides, or right of all."""
    sides = [
        (bx - ax) * (y - ay) - (by - ay) * (x - ax) for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0))
    ]
    return min(sides) >= 0 or max(sides) <= 0


def cells_by_hand(images, size, strides):
    """Return the silenced elements (b, classes, A), point by point."""
    rows = []
    for one in images:
        points = [
            ((j + 0.5) * s, (i + 0.5) * s) for s in strides for i in range(size[0] // s) for j in range(size[1] // s)
        ]
        rows.append(
            [
                [
                    any(
                        one.table[kind][cls] and is_in(corners * [size[1], size[0]], x, y)
                        for corners, kind in zip(one.corners.astype(float), one.kind)
                    )
                    for x, y in points
                ]
                for cls in range(one.table.shape[1])
            ]
        )
    return torch.tensor(rows)


@pytest.mark.parametrize("is_box", [True, False])
def test_cells_in_regions_equal_those_found_point_by_point(is_box, device):
    rng = np.random.default_rng(0)
    images = [drawn(rng, count, is_box) for count in (5, 0, 2)]
    shapes = [(64 // s, 96 // s) for s in (8, 16, 32)]
    found = silenced_cells(images, (64, 96), shapes, torch.device(device)).cpu()
    expected = cells_by_hand(images, (64, 96), (8, 16, 32))
    assert expected.any() and not expected[1].any() and torch.equal(found, expected)


def test_edges_belong_to_a_region_and_seams_leave_no_gap():
    table = np.array([[True]])
    halves = upright_corners(np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1]], np.float32))
    one = ImageRegions(halves, np.zeros(2, np.int64), table)
    assert silenced_cells([one], (3, 3), [(3, 3)], torch.device("cpu")).all()


def test_boxes_with_more_than_half_of_their_area_in_a_region():
    table = np.array([[True, False], [True, True]])
    region = np.array([[0, 0, 0.5, 0.5]], np.float32)
    boxes = torch.tensor([[0.0, 0, 20, 20], [40, 0, 56, 20], [40, 0, 60, 20], [90, 90, 99, 99], [5, 5, 5, 5]])
    for kind, expected in (
        (0, [[1, 0], [1, 0], [0, 0], [0, 0], [0, 0]]),
        (1, [[1, 1], [1, 1], [0, 0], [0, 0], [0, 0]]),
    ):
        one = ImageRegions(upright_corners(region), np.array([kind]), table)
        assert lies_in_region(boxes, one, (100, 100)).int().tolist() == expected
        turned = ImageRegions(np.roll(one.corners, 1, axis=1), one.kind, table)  # the way of rotated boxes
        corners = boxes[:4, [0, 1, 2, 1, 2, 3, 0, 3]].view(-1, 4, 2)
        assert lies_in_region(corners, turned, (100, 100)).int().tolist() == expected[:4]

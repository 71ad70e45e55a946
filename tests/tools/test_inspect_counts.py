# SPDX-License-Identifier: AGPL-3.0-or-later
"""Numbers of `lossplug inspect`, against brute force and by hand."""

import numpy as np
import pytest

from yolo_lossplug.tools.inspect import counts as numbers
from yolo_lossplug.ultralytics_hook.dataset.candidates import overlap_of


def iou(one, other):
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    common = max(width, 0) * max(height, 0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - common
    return common / union if union else 0.0


def random_objects(seed, images=12, most=16):
    rng = np.random.default_rng(seed)
    n = rng.integers(0, most, images)
    n[0] = 0
    total = int(n.sum())
    centre, side = rng.uniform(0, 60, (total, 2)), rng.uniform(0, 50, (total, 2))
    boxes = np.concatenate((centre - side / 2, centre + side / 2), 1).astype(np.float32)
    copies = rng.random(total) < 0.4
    boxes[1:][copies[1:]] = boxes[:-1][copies[1:]]
    return n, rng.integers(0, 3, total), boxes


@pytest.mark.parametrize("chunk", [2_000_000, 7, 1])
@pytest.mark.parametrize("seed", range(4))
def test_pairs_are_those_of_brute_force(seed, chunk, monkeypatch):
    monkeypatch.setattr(numbers, "MAX_PAIRS", chunk)
    n, cls, boxes = random_objects(seed)
    found = numbers.count_pairs(n, cls, overlap_of(boxes))
    image = np.repeat(np.arange(len(n)), n)
    pairs, above, close, doubles, two = 0, [0, 0], [set(), set()], 0, 0
    for i in range(len(cls)):
        for j in range(i + 1, len(cls)):
            if image[i] != image[j]:
                continue
            overlap = iou(boxes[i].astype(float), boxes[j].astype(float))
            is_same = cls[i] == cls[j]
            pairs += is_same
            doubles += is_same and overlap >= 0.95
            two += not is_same and overlap >= 0.95
            for k, limit in enumerate((0.5, 0.7)):
                if is_same and overlap > limit:
                    above[k] += 1
                    close[k] |= {i, j}
    assert (found.pairs, found.above, found.doubles, found.two_classes) == (pairs, tuple(above), doubles, two)
    assert found.objects == tuple(map(len, close)) and set(found.is_crowded.nonzero()[0].tolist()) == close[1]
    assert doubles and two and above[1] > 0


def test_pairs_of_3000_objects_are_not_held_at_once_and_there_may_be_none(monkeypatch):
    most = []

    def overlap(one, other):
        most.append(len(one))
        return np.zeros(len(one))

    n = np.array([3000, 2])
    found = numbers.count_pairs(n, np.zeros(3002, np.int64), overlap)
    assert found.pairs == 3000 * 2999 // 2 + 1 == sum(most) and max(most) <= numbers.MAX_PAIRS
    for n in ([0, 0], [1, 1], [0]):
        found = numbers.count_pairs(
            np.array(n), np.zeros(sum(n), np.int64), overlap_of(np.zeros((sum(n), 4), np.float32))
        )
        assert found.pairs == 0 and found.above == (0, 0) and len(found.is_crowded) == sum(n)


def test_faults_and_crowds_by_hand():
    boxes = np.array(
        [
            [0.5, 0.5, 0.2, 0.2],
            [0.5, 0.5, 0.0, 0.2],  # no width
            [0.5, 0.5, 0.004, 0.2],  # 0.4 pixels
            [0.05, 0.5, 0.2, 0.2],  # 5 pixels outside
            [0.095, 0.5, 0.2, 0.2],  # half a pixel outside
            [0.5, 0.5, 1.0, 1.0],  # the whole image
            [0.5, 0.5, 0.97, 0.97],  # 94 % of it
        ]
    )
    shapes = np.full((7, 2), 100.0)
    pairs = numbers.PairCounts(9, (1, 1), (2, 2), 3, 4, np.zeros(7, bool))
    assert list(numbers.faults(boxes, boxes[:, 2:] * 100, shapes, pairs, 5).values()) == [2, 1, 5, 3, 4, 1]
    nothing = numbers.PairCounts(0, (0, 0), (0, 0), 0, 0, np.zeros(0, bool))
    empty = np.zeros((0, 4)), np.zeros((0, 2)), np.zeros((0, 2))
    assert not any(numbers.faults(*empty, nothing, 0).values())
    areas = np.array([0.0, 1023.99, 1024, 1025, 9215.9, 9216, 1e6])
    assert numbers.sizes_of(areas).tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert numbers.size_shares(areas) == pytest.approx((2 / 7, 3 / 7, 2 / 7))
    assert numbers.size_shares(np.zeros(0)) == (0.0, 0.0, 0.0)
    assert numbers.crowding(np.array([0, 1, 2, 3, 104])) == (2.0, pytest.approx(83.8), 104, 1)
    assert numbers.crowding(np.array([3])) == (3.0, 3.0, 3, 0)
    cls, image = np.array([0, 0, 2, 0, 2]), np.array([0, 0, 0, 3, 4])
    objects, images = numbers.class_counts(cls, image, 4)
    assert objects.tolist() == [3, 0, 2, 0] and images.tolist() == [2, 0, 2, 0]
    assert numbers.imbalance(objects) == 1.5 and numbers.imbalance(np.array([0, 5])) == 1.0
    assert numbers.imbalance(np.zeros(3, int)) == 1.0
    assert numbers.rare_classes(np.array([100, 5, 6, 0, 1]), 20).tolist() == [1, 4]
    sides = np.array([[10.0, 10], [40, 10], [10, 41], [0, 5], [0, 0]])
    assert numbers.elongated(sides).tolist() == [1, 4, 4.1, 1000, 0]


def test_bins_batches_and_telling_images_by_hand():
    mean, count = numbers.by_bins(np.array([1.0, 2, 3, 8, 100]), np.array([5.0, 1, 3, 7, 9]), (2, 4, 8, 16))
    assert mean[:1].tolist() == [3.0] and np.isnan(mean[1]) and mean[2] == 8 and count.tolist() == [3, 0, 2]
    n = np.concatenate((np.full(990, 5), np.full(10, 500)))
    assert numbers.typical_maximum(n, 16) == 5 and numbers.typical_maximum(n, 512) == 500
    assert numbers.typical_maximum(np.array([3]), 16) == 3
    scores = {"most": np.array([1.0, 5, 3, 0]), "none": np.zeros(4), "other": np.array([0.0, 9, 0, 2])}
    assert numbers.telling(scores, 6) == [(1, "most"), (3, "other"), (2, "most"), (0, "most")]
    assert numbers.telling(scores, 2) == [(1, "most"), (3, "other")]
    assert numbers.telling({"none": np.zeros(2)}, 6) == []

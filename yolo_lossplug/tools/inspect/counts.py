# SPDX-License-Identifier: AGPL-3.0-or-later
"""Numbers of a dataset for `lossplug inspect`: sizes, crowding, pairs, classes and faults of its labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Callable, NamedTuple

import numpy as np

from yolo_lossplug.boxes import LIMITS, SIZES

OVERLAPS = (0.5, 0.7)
"""IoU above which pairs of one class are counted; 0.7 is where the NMS of Ultralytics' validation cuts."""
SAME_BOX = 0.95
"""IoU from which two labels are taken for the same box."""
FULL_IMAGE = 0.95
"""Share of the image from which an object counts as the whole image."""
MIN_EXPECTED = 10
"""Objects of a class that an entry of a dataset would have as elsewhere, from which it is noted that it has none."""
MAX_PAIRS = 100_000
"""Pairs that are handled at once, which bounds memory: each takes about 140 bytes."""


class PairCounts(NamedTuple):
    """Pairs of objects of one image.

    Attributes:
        pairs: Pairs of one class.
        above: How many of them overlap above each of `OVERLAPS`.
        objects: Objects that are in such a pair, for each of `OVERLAPS`.
        doubles: Pairs of one class that are the same box.
        two_classes: Pairs of two classes that are the same box.
        is_crowded: Whether each object (G,) is in a pair above the larger of `OVERLAPS`.
    """

    pairs: int
    above: tuple[int, ...]
    objects: tuple[int, ...]
    doubles: int
    two_classes: int
    is_crowded: np.ndarray


def sizes_of(areas: np.ndarray) -> np.ndarray:
    """Return the size of objects (G,) by their areas in pixels (G,): 0 small, 1 medium, 2 large.

    >>> sizes_of(np.array([1023.9, 1024.0, 9216.0])).tolist()
    [0, 1, 2]
    """
    return np.searchsorted(np.array(LIMITS), areas, side="right")


def share(is_counted: np.ndarray) -> float:
    """Return the share of objects that a mask (G,) marks; 0 for no objects."""
    return float(is_counted.mean()) if len(is_counted) else 0.0


def size_shares(areas: np.ndarray) -> tuple[float, ...]:
    """Return the shares of small, medium and large objects."""
    size = sizes_of(areas)
    return tuple(share(size == i) for i in range(len(SIZES)))


def crowding(counts: np.ndarray) -> tuple[float, float, int, int]:
    """Return median, 95th percentile and maximum of the objects of images (n,), and the images without any."""
    median, high = np.percentile(counts, (50, 95)).tolist()
    return median, high, int(counts.max()), int((counts == 0).sum())


def pair_chunks(counts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the pairs of objects of one image as indices (P,) and (P,), in chunks; those of an image go together."""
    ends = np.repeat(counts.cumsum(), counts)
    rest = ends - 1 - np.arange(len(ends))  # objects of the same image after each object
    total, start = np.concatenate(([0], rest.cumsum())), 0
    while start < len(rest):
        end = max(start + 1, int(np.searchsorted(total, total[start] + MAX_PAIRS, side="right")) - 1)
        rows = rest[start:end]
        first = np.repeat(np.arange(start, end), rows)
        yield first, first + 1 + np.arange(len(first)) - np.repeat(rows.cumsum() - rows, rows)
        start = end


def count_pairs(counts: np.ndarray, cls: np.ndarray, overlap: Callable[..., np.ndarray]) -> PairCounts:
    """Return the counts of pairs of objects of one image, by the objects of each image (n,) and their classes (G,).

    `overlap` takes objects (P,) and other objects (P,), and returns their IoU (P,).
    """
    pairs, above, doubles, two = 0, np.zeros(len(OVERLAPS), np.int64), 0, 0
    is_close = np.zeros((len(OVERLAPS), len(cls)), bool)
    for first, second in pair_chunks(counts):
        is_same, iou = cls[first] == cls[second], overlap(first, second)
        pairs += int(is_same.sum())
        doubles += int((is_same & (iou >= SAME_BOX)).sum())
        two += int((~is_same & (iou >= SAME_BOX)).sum())
        for i, limit in enumerate(OVERLAPS):
            close = is_same & (iou > limit)
            above[i] += close.sum()
            is_close[i, first[close]] = is_close[i, second[close]] = True
    return PairCounts(pairs, tuple(above.tolist()), tuple(is_close.sum(1).tolist()), doubles, two, is_close[-1])


def faults(boxes: np.ndarray, sides: np.ndarray, shapes: np.ndarray, pairs: PairCounts, removed: int) -> dict[str, int]:
    """Return how many labels have which fault.

    Args:
        boxes: Centre x, centre y, width, height (G, 4) as shares of the image.
        sides: Width and height (G, 2) in pixels of the image.
        shapes: Height and width (G, 2) of each object's image.
        pairs: Counts of pairs.
        removed: Exact duplicates that the loader has removed.
    """
    size = shapes[:, ::-1]
    centre, half = boxes[:, :2] * size, boxes[:, 2:] * size / 2
    beyond = np.maximum(-(centre - half), centre + half - size).max(1, initial=0)
    return {
        "side below 1 pixel": int((sides.min(1, initial=np.inf) < 1).sum()),
        "more than 1 pixel outside the image": int((beyond > 1).sum()),
        "exact duplicates, which the loader removes": removed,
        f"other pairs of one class with IoU of {SAME_BOX} or more": pairs.doubles,
        f"pairs of two classes with IoU of {SAME_BOX} or more": pairs.two_classes,
        f"{100 * FULL_IMAGE:.0f} % of the image or more": int((boxes[:, 2] * boxes[:, 3] >= FULL_IMAGE).sum()),
    }


def class_counts(cls: np.ndarray, image: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of objects, and of images with any, of each class (classes,)."""
    images = np.bincount(np.unique(np.stack((image, cls)), axis=1)[1], minlength=n_classes)
    return np.bincount(cls, minlength=n_classes), images


def imbalance(objects: np.ndarray) -> float:
    """Return objects of the largest class over those of the smallest that has any; 1 for fewer than two classes."""
    there = objects[objects > 0]
    return float(there.max() / there.min()) if len(there) else 1.0


def rare_classes(objects: np.ndarray, ratio: float) -> np.ndarray:
    """Return the classes that have objects, but fewer than the largest class by a ratio or more."""
    return ((objects > 0) & (objects * ratio <= objects.max(initial=0))).nonzero()[0]


def elongated(sides: np.ndarray) -> np.ndarray:
    """Return the ratio of the longer to the shorter side (G,), at most 1000."""
    low, high = sides.min(1, initial=np.inf), sides.max(1, initial=0)
    return np.minimum(high / np.maximum(low, 1e-9), 1000.0)


def by_bins(sides: np.ndarray, values: np.ndarray, edges: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (bins,) of values (G,) by side (G,), NaN for an empty bin, and the number of objects (bins,).

    Sides beyond the ascending edges count in the outer bins.
    """
    index = np.clip(np.searchsorted(np.asarray(edges), sides, side="right") - 1, 0, len(edges) - 2)
    count, total = (np.bincount(index, weights, len(edges) - 1) for weights in (None, values))
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0), count


def typical_maximum(counts: np.ndarray, batch: int) -> int:
    """Return the median over 200 random batches of the most objects (n,) that an image of the batch has."""
    rows = np.random.default_rng(0).integers(0, len(counts), (200, batch))
    return int(np.median(counts[rows].max(1)))


def absent_classes(objects: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Return which classes entries of a dataset have no object of, though there would be `MIN_EXPECTED` as elsewhere.

    Args:
        objects: Objects by entry and class (E, classes).
        images: Images by entry (E,).

    >>> absent_classes(np.array([[30, 0], [40, 25]]), np.array([50, 50])).tolist()
    [[False, True], [False, False]]
    """
    elsewhere = (objects.sum(0) - objects) / np.maximum(1, images.sum() - images)[:, None]
    return np.asarray((objects == 0) & (elsewhere * images[:, None] >= MIN_EXPECTED))


def telling(scores: dict[str, np.ndarray], limit: int) -> list[tuple[int, str]]:
    """Return images and why each is shown: for each reason the image with the highest score, each image once.

    Images with a score (n,) of 0 or less are not shown for that reason.
    """
    chosen: dict[int, str] = {}
    order = {reason: np.argsort(-values, kind="stable")[: 2 * limit].tolist() for reason, values in scores.items()}
    for _ in range(limit):
        for reason, images in order.items():
            left = [image for image in images if image not in chosen and scores[reason][image] > 0]
            if left and len(chosen) < limit:
                chosen[left[0]] = reason
    return list(chosen.items())

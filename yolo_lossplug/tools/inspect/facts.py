# SPDX-License-Identifier: AGPL-3.0-or-later
"""The facts that the advice of `lossplug inspect` goes by, the time of a measured training step among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional

from torch.optim import SGD

from yolo_lossplug.ultralytics_hook.console import quiet
from yolo_lossplug.ultralytics_hook.host import device_of
from yolo_lossplug.ultralytics_hook.trial import one_step, timing

LONG = 4.0
"""Ratio of the sides from which an object counts as elongated."""
SQUARE = 1.1
"""The same up to which a rotated object counts as square."""
RARE = 20.0
"""Ratio to the largest class from which a class counts as rare."""
EPOCHS, SEEDS = 100, 3
"""Of the comparisons that are advised."""
MISSED, CONTESTED = 0.05, 0.15
"""Share of objects without an anchor, and of anchors that two objects select, from which other numbers are advised."""

MAX_IMGSZ_CPU, IMAGES_CPU = 320, 2
"""Side and images of a step on a CPU; longer sides take longer by their area."""
STEPS = 3


class Shares(NamedTuple):
    """Shares of an assignment: of objects without an anchor, and of selected anchors that two objects select."""

    without: float
    conflicts: float


class Tried(NamedTuple):
    """What changes if one key of a run does.

    Attributes:
        key: The key.
        now: Its value in the run that was inspected.
        value: Another one.
        before: Shares of the run that was inspected.
        after: Shares with the other value.
        images: On how many images it was tried; 0 for all.
    """

    key: str
    now: float
    value: float
    before: Shares
    after: Shares
    images: int = 0

    def __str__(self) -> str:
        return f"{self.key}={self.value:g}"


class Pace(NamedTuple):
    """How fast a model trains.

    Attributes:
        seconds: Seconds of an image, forward and backward, for each pixel.
        images: Images of an epoch.
        device: Name of the device.
    """

    seconds: float
    images: int
    device: str

    def hours(self, sizes: Sequence[int], runs: int) -> str:
        """Return in words what some runs take at each imgsz."""
        hours = sum(size * size for size in sizes) * self.seconds * self.images * EPOCHS * runs / 3600
        shown = f"{60 * hours:.0f} min" if hours < 1 else f"{hours:.1f} h" if hours < 10 else f"{hours:,.0f} h"
        return (
            f"About {shown} on {self.device}: {runs * len(sizes)} runs, {EPOCHS} epochs, {self.images:,} images, by "
            "the time of a step measured here; loading and validation come on top."
        )


def pace(args: Mapping[str, Any], imgsz: int, images: int) -> Optional[Pace]:
    """Return how fast a model trains on the device that a comparison would take; None if no step can be taken."""
    device = device_of(args.get("device"))
    is_cpu = device.type == "cpu"
    size, batch = (min(imgsz, MAX_IMGSZ_CPU), IMAGES_CPU) if is_cpu else (imgsz, int(args.get("batch", 16)))
    try:
        with quiet():
            one = one_step.trial({**args, "imgsz": size, "batch": batch, "device": args.get("device")})
            criterion, optimizer = one_step.criterion_of(one, is_stock=True), SGD(one.model.parameters(), lr=0.0)
            takes = (timing.training_step(one.model, optimizer, criterion, one.batch, not is_cpu) for _ in range(STEPS))
            seconds = min([*takes][1:])
    except Exception:  # of a model or data with which only a training shows that it cannot
        return None
    return Pace(seconds / batch / size**2, images, "this CPU" if is_cpu else str(device))


def larger(imgsz: int) -> int:
    """Return half as much again, as a multiple of 32.

    >>> larger(640), larger(96)
    (960, 160)
    """
    return -(-imgsz * 3 // 2 // 32) * 32


@dataclass(frozen=True)
class Facts:
    """What the rules of the advice read. Shares are of objects, in [0, 1]; those by imgsz have one for each imgsz.

    Attributes:
        data: Dataset as the user has named it.
        model: Model for the comparisons.
        task: The task.
        imgsz: The sizes of the input that were inspected.
        n_objects: Number of objects.
        few: Share with fewer than `FEW` candidates.
        few_p2: The same with a level of stride 4 in addition.
        none: Share without any candidate.
        tiny: Share with a side (root of the area) below `TINY` pixels of the input.
        small_input: Share of small objects in pixels of the input.
        small_original: The same in pixels of the image.
        long: Share with sides in a ratio of `LONG` or more.
        square: Share of rotated objects with sides in a ratio of `SQUARE` or less.
        crowded: Share in a pair of one class that overlaps above 0.7.
        rare: Names of classes with objects, but fewer than 1/`RARE` of the largest.
        rare_share: Share of objects of these classes.
        imbalance: Objects of the largest class over those of the smallest.
        faults: Labels with faults that a training suffers from, and images that the loader leaves out, by kind.
        dense_bytes: Memory of stock's assigner in a typical batch.
        without: Share without an anchor in the assignment of the model; None without a model.
        without_small: The same of small objects.
        conflicts: Share of selected anchors that two objects select; None without a model.
        tried: How these two shares change with other numbers of the assigner, or another imgsz.
        unused: Names of classes that are called as regions are in other datasets, and whose boxes are objects here.
        absent: Names of classes that an entry of several has no object of, though it would have as elsewhere, by entry.
        end_to_end: Whether the model has a branch without NMS.
        is_untrained: Whether the model has random weights.
        mean_side: Mean side (root of the area) in pixels of the input.
        kept: What a comparison takes over from the inspection: numbers of the assigner, and more.
        pace: How fast the model trains here; None if that is not known.
    """

    data: str
    model: str
    task: str
    imgsz: tuple[int, ...]
    n_objects: int
    few: tuple[float, ...]
    few_p2: tuple[float, ...]
    none: tuple[float, ...]
    tiny: tuple[float, ...] = (0.0,)
    small_input: tuple[float, ...] = (0.0,)
    small_original: float = 0.0
    long: float = 0.0
    square: float = 0.0
    crowded: float = 0.0
    rare: Sequence[str] = ()
    rare_share: float = 0.0
    imbalance: float = 1.0
    faults: Mapping[str, int] = field(default_factory=dict)
    dense_bytes: int = 0
    without: Optional[float] = None
    without_small: Optional[float] = None
    conflicts: Optional[float] = None
    tried: Sequence[Tried] = ()
    unused: Sequence[str] = ()
    absent: Mapping[str, Sequence[str]] = field(default_factory=dict)
    end_to_end: bool = False
    is_untrained: bool = False
    mean_side: tuple[float, ...] = (0.0,)
    kept: Mapping[str, Any] = field(default_factory=dict)
    pace: Optional[Pace] = None

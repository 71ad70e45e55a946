# SPDX-License-Identifier: AGPL-3.0-or-later
"""The embedded synthetic datasets of circles, squares and triangles: a plain one, and one for each common problem."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple, Optional, Union

import cv2
import numpy as np

CLASSES = ("circle", "square", "triangle")
SHAPE_TASKS = ("detect", "segment", "pose", "obb")


@dataclass(frozen=True)
class Scene:
    """What images and labels are like; a range has its lowest and highest value.

    Attributes:
        objects: Range of the number of objects.
        sides: Range of an object's side as a share of the image's.
        stretch: Range of the factors by which width and height differ from that side.
        elongation: Longer side through shorter side, before the stretch.
        visible: Least share of an object that later ones may leave visible.
        tries: How often an object that would hide too much of others is drawn again before it is left out.
        classes: Relative frequency of each class; None for equal ones.
        jitter: Largest error of a label's centre and sides, as a share of the side.
        missing: Share of objects without a label.
    """

    objects: tuple[int, int] = (1, 12)
    sides: tuple[float, float] = (1 / 10, 1 / 2.5)
    stretch: tuple[float, float] = (0.7, 1.4)
    elongation: float = 1.0
    visible: float = 0.3
    tries: int = 1
    classes: Optional[tuple[float, ...]] = None
    jitter: float = 0.0
    missing: float = 0.0


class Splits(NamedTuple):
    """Scenes of training and validation."""

    train: Scene
    val: Scene


PLAIN = Scene()
TINY = Scene(sides=(4.4 / 160, 9.6 / 160), stretch=(0.9, 1.1))
CROWDS = Scene(objects=(40, 120), sides=(9 / 160, 26 / 160), tries=20)
THIN = Scene(sides=(1 / 10, 1 / 5), stretch=(1.0, 1.0), elongation=9.5)  # a drawn side gains about a pixel
SCENES = {
    "plain": Splits(PLAIN, PLAIN),
    "tiny": Splits(TINY, TINY),
    "crowds": Splits(CROWDS, CROWDS),
    "rare": Splits(Scene(classes=(30, 30, 1)), PLAIN),  # equal classes in validation, so that the rare one is measured
    "labels": Splits(Scene(jitter=0.2, missing=0.1), PLAIN),
    "thin": Splits(THIN, THIN),
}
"""The plain data and the problems, by name."""


class Shape(NamedTuple):
    """An object inside its image.

    Attributes:
        label: Class.
        mask: Its pixels (size, size), those behind others included.
        corners: Corners of its box (4, 2) in pixels, in turn.
        points: Its upper, right, lower and left point (4, 2) in pixels, in its own upright position.
    """

    label: int
    mask: np.ndarray
    corners: np.ndarray
    points: np.ndarray


def write_shapes(
    folder: Union[str, Path],
    images: int = 128,
    size: int = 160,
    validation: int = 32,
    seed: int = 0,
    task: str = "detect",
    scene: str = "plain",
) -> Path:
    """Write a dataset in Ultralytics' layout; the same arguments give the same files.

    The folder appears complete or not at all, also when several processes write it at once.

    Args:
        folder: Where to write; left alone if it exists.
        images: Number of images, training and validation together.
        size: Side of an image in pixels.
        validation: How many of the images are for validation.
        seed: Seed of the drawings.
        task: What the labels are for: ``detect``, ``segment``, ``pose`` or ``obb``, whose objects are rotated.
        scene: A name in `SCENES`; only ``detect`` has wrong labels.

    Returns:
        The folder.

    Raises:
        ValueError: If the task or the scene is unknown, or the scene has wrong labels and the task has none.
    """
    splits = _splits(task, scene)
    folder = Path(folder)
    if (folder / "images" / "val").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for kind, split in product(("images", "labels"), ("train", "val")):
            (unfinished / kind / split).mkdir(parents=True)
        for index in range(images):
            split = "train" if index < images - validation else "val"
            made: Scene = getattr(splits, split)
            image, rows = draw_shapes(np.random.default_rng((seed, index)), size, task, made)
            rows = _labelled(rows, np.random.default_rng((seed, index, 1)), made)
            cv2.imwrite(str(unfinished / "images" / split / f"{index:06d}.png"), image)
            text = "".join(f"{int(row[0])} " + " ".join(f"{v:.6f}" for v in row[1:]) + "\n" for row in rows)
            (unfinished / "labels" / split / f"{index:06d}.txt").write_text(text)
        unfinished.chmod(0o755)
        try:
            unfinished.rename(folder)
        except OSError:
            if not (folder / "images" / "val").exists():  # an empty or foreign folder stands in the way
                shutil.copytree(unfinished, folder, dirs_exist_ok=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _splits(task: str, scene: str) -> Splits:
    if task not in SHAPE_TASKS:
        raise ValueError(f"task={task} has no synthetic dataset. Known: {', '.join(SHAPE_TASKS)}.")
    if scene not in SCENES:
        raise ValueError(f"scene={scene} is unknown. Known: {', '.join(SCENES)}.")
    splits = SCENES[scene]
    if task != "detect" and any(split.jitter or split.missing for split in splits):
        raise ValueError(f"scene={scene} has wrong labels, which task={task} lacks. Give task=detect.")
    return splits


def _labelled(rows: list[tuple[float, ...]], rng: np.random.Generator, scene: Scene) -> list[tuple[float, ...]]:
    """Return the rows of boxes that a scene labels, with its errors, inside the image."""
    if not (scene.jitter or scene.missing):
        return rows
    kept = [row for row in rows if rng.uniform() >= scene.missing]
    return [(row[0], *_jittered(np.array(row[1:]), rng, scene.jitter)) for row in kept]


def _jittered(box: np.ndarray, rng: np.random.Generator, jitter: float) -> np.ndarray:
    """Return a box (centre x, centre y, width, height) with errors, cut at the border of the image."""
    centre = box[:2] + rng.uniform(-jitter, jitter, 2) * box[2:]
    half = box[2:] * rng.uniform(1 - jitter, 1 + jitter, 2) / 2
    low, high = (centre - half).clip(0, 1), (centre + half).clip(0, 1)
    return np.concatenate([(low + high) / 2, high - low])


def draw_shapes(
    rng: np.random.Generator, size: int, task: str = "detect", scene: Scene = PLAIN
) -> tuple[np.ndarray, list[tuple[float, ...]]]:
    """Draw one image, with some objects partly behind others; the plain one has 1 to 12.

    Args:
        rng: Source of randomness.
        size: Side of the image in pixels.
        task: What the labels are for; objects of ``obb`` are rotated.
        scene: What is drawn; the labels have no errors yet.

    Returns:
        image: (size, size, 3) uint8, BGR.
        rows: One for each object, lengths as shares of the side. A class, then of ``detect`` centre x, centre y, width
            and height of the whole object; of ``pose`` these and x, y, visibility of four points; of ``segment`` x, y
            of an outline of what is visible; of ``obb`` x, y of four corners.
    """
    coarse = rng.integers(90, 166, (size // 16 + 1, size // 16 + 1, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    owner = np.full((size, size), -1)
    shapes: list[Shape] = []
    for _ in range(int(rng.integers(scene.objects[0], scene.objects[1] + 1))):
        seen = np.bincount(owner.ravel() + 1, minlength=len(shapes) + 1)[1:]
        least = scene.visible * np.array([shape.mask.sum() for shape in shapes])
        candidates = (_shape(rng, size, task == "obb", scene) for _ in range(scene.tries))
        added = next((shape for shape in candidates if shape and _leaves_visible(shape, owner, seen, least)), None)
        if added is None:
            continue
        owner[added.mask] = len(shapes)
        colour = rng.integers(0, 80, 3)
        colour[added.label] += rng.integers(150, 176)  # so that a short training learns to tell the classes apart
        image[added.mask] = colour
        shapes.append(added)
    noise = rng.normal(0, 6, image.shape)
    rows = [(shape.label, *_row(shape, owner == i, task)) for i, shape in enumerate(shapes)]
    return np.clip(image + noise, 0, 255).astype(np.uint8), rows


def _leaves_visible(shape: Shape, owner: np.ndarray, seen: np.ndarray, least: np.ndarray) -> bool:
    """Return whether objects under a shape keep the least pixels (n,) of those seen (n,); `owner` has that of each."""
    hidden = np.bincount(owner[shape.mask] + 1, minlength=len(seen) + 1)[1:]
    return bool((seen - hidden >= least).all())


def _row(shape: Shape, visible: np.ndarray, task: str) -> list[float]:
    """Return the numbers of an object's label for a task, given its visible pixels (size, size)."""
    size = len(visible)
    if task == "obb":
        return list((shape.corners / size).clip(0, 1).flatten())
    if task == "segment":
        outlines, _ = cv2.findContours(visible.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        largest = max(outlines, key=cv2.contourArea)  # what stands before an object may part it
        return list(((largest[:, 0] + 0.5) / size).flatten())
    y, x = np.nonzero(shape.mask)
    x1, y1, x2, y2 = x.min(), y.min(), x.max() + 1, y.max() + 1
    box = [(x1 + x2) / 2 / size, (y1 + y2) / 2 / size, (x2 - x1) / size, (y2 - y1) / size]
    if task == "detect":
        return box
    points = shape.points.clip(0, size - 1)
    near = cv2.dilate(visible.astype(np.uint8), np.ones((3, 3)))  # a point lies on the edge
    seen = [2 if near[round(y), round(x)] else 1 for x, y in points]
    return [*box, *(number for (x, y), v in zip(points / size, seen) for number in (x, y, v))]


def _shape(rng: np.random.Generator, size: int, is_turned: bool, scene: Scene) -> Optional[Shape]:
    """Return an object inside the image, None if it has no pixel."""
    label = _label(rng, scene)
    width, height = _half_sides(rng, size, scene)
    angle = rng.uniform(0, np.pi) if is_turned else 0.0
    reach = float(np.hypot(width, height)) if is_turned else None
    x, y = (rng.uniform(reach or side, size - (reach or side)) for side in (width, height))
    turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])

    def place(*points: tuple[float, float]) -> np.ndarray:
        return np.array(points) * (width, height) @ turn.T + (x, y)

    box = place((-1, -1), (1, -1), (1, 1), (-1, 1))
    mask = np.zeros((size, size), np.uint8)
    if label == 0:
        axes = round(width), round(height)
        cv2.ellipse(mask, (round(x), round(y)), axes, float(np.degrees(angle)), 0, 360, 1, -1)
    else:
        outline = box if label == 1 else place((0, -1), (-1, 1), (1, 1))
        cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1)
    side = 0.5 if label == 2 else 1.0  # a triangle is half as wide at half its height
    points = place((0, -1), (side, 0), (0, 1), (-side, 0))
    return Shape(label, mask.astype(bool), box, points) if mask.any() else None


def _label(rng: np.random.Generator, scene: Scene) -> int:
    if scene.classes is None:
        return int(rng.integers(len(CLASSES)))
    return int(rng.choice(len(CLASSES), p=np.array(scene.classes) / sum(scene.classes)))


def _half_sides(rng: np.random.Generator, size: int, scene: Scene) -> np.ndarray:
    """Return half of width and of height (2,) in pixels."""
    low, high = (np.log(side * size) for side in scene.sides)
    half = np.exp(rng.uniform(low, high)) * rng.uniform(*scene.stretch, 2) / 2
    if scene.elongation == 1:  # no number is drawn, so that the plain images stay what they are
        return half
    longer = np.sqrt(scene.elongation)
    return half * ((longer, 1 / longer) if rng.uniform() < 0.5 else (1 / longer, longer))

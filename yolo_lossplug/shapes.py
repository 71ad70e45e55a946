# SPDX-License-Identifier: AGPL-3.0-or-later
"""The embedded dataset: drawn circles, squares and triangles, so that a first run needs no download."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple, Optional, Union

import cv2
import numpy as np

CLASSES = ("circle", "square", "triangle")
VISIBLE = 0.3
"""Least share of an object that later ones may leave visible."""
TASKS = ("detect", "segment", "pose", "obb")


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


def write(
    folder: Union[str, Path],
    images: int = 128,
    size: int = 160,
    validation: int = 32,
    seed: int = 0,
    task: str = "detect",
) -> Path:
    """Write a dataset in Ultralytics' layout; the same arguments give the same files.

    The folder appears complete or not at all, also when several processes write it at once.

    Args:
        folder: Where to write; left alone if it exists.
        images: Number of images, training and validation together.
        size: Side of an image in pixels.
        validation: How many of the images are for validation.
        seed: Seed of the drawings.
        task: What the labels are for: ``detect``, ``segment``, ``pose`` or ``obb``, whose objects are turned.

    Returns:
        The folder.

    Raises:
        ValueError: If there is no such task.
    """
    if task not in TASKS:
        raise ValueError(f"task={task} has no drawn dataset. Known: {', '.join(TASKS)}.")
    folder = Path(folder)
    if (folder / "images" / "val").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for split in ("train", "val"):
            (unfinished / "images" / split).mkdir(parents=True)
            (unfinished / "labels" / split).mkdir(parents=True)
        for index in range(images):
            split = "train" if index < images - validation else "val"
            image, rows = draw(np.random.default_rng((seed, index)), size, task)
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


def draw(rng: np.random.Generator, size: int, task: str = "detect") -> tuple[np.ndarray, list[tuple[float, ...]]]:
    """Draw one image of 1 to 12 objects, some partly behind others.

    Args:
        rng: Source of randomness.
        size: Side of the image in pixels.
        task: What the labels are for; those of ``obb`` are turned.

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
    for _ in range(int(rng.integers(1, 13))):
        shape = _shape(rng, size, task == "obb")
        if shape is None:
            continue
        left = [np.count_nonzero((owner == i) & ~shape.mask) for i in range(len(shapes))]
        if any(pixels < VISIBLE * one.mask.sum() for pixels, one in zip(left, shapes)):
            continue
        owner[shape.mask] = len(shapes)
        colour = rng.integers(0, 80, 3)
        colour[shape.label] += rng.integers(
            150, 176
        )  # a hint, so that a short training learns to tell the classes apart
        image[shape.mask] = colour
        shapes.append(shape)
    noise = rng.normal(0, 6, image.shape)
    rows = [(shape.label, *_row(shape, owner == i, task)) for i, shape in enumerate(shapes)]
    return np.clip(image + noise, 0, 255).astype(np.uint8), rows


def _row(shape: Shape, visible: np.ndarray, task: str) -> list[float]:
    """Return what a task's labels say of an object, given the pixels of it that are visible (size, size)."""
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


def _shape(rng: np.random.Generator, size: int, is_turned: bool) -> Optional[Shape]:
    """Return an object inside the image, None if it has no pixel."""
    label = int(rng.integers(len(CLASSES)))
    width, height = np.exp(rng.uniform(np.log(size / 10), np.log(size / 2.5))) * rng.uniform(0.7, 1.4, 2) / 2
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

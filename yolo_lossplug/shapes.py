# SPDX-License-Identifier: AGPL-3.0-or-later
"""The embedded dataset: drawn circles, squares and triangles, so that a first run needs no download."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Optional, Union

import cv2
import numpy as np

CLASSES = ("circle", "square", "triangle")
VISIBLE = 0.3
"""Least share of an object that later ones may leave visible."""


def write(
    folder: Union[str, Path],
    images: int = 128,
    size: int = 160,
    validation: int = 32,
    seed: int = 0,
    rotated: bool = False,
) -> Path:
    """Write a dataset in Ultralytics' layout; the same arguments give the same files.

    The folder appears complete or not at all, also when several processes write it at once.

    Args:
        folder: Where to write; left alone if it exists.
        images: Number of images, training and validation together.
        size: Side of an image in pixels.
        validation: How many of the images are for validation.
        seed: Seed of the drawings.
        rotated: Whether the objects are turned, and labelled for the obb task by their four corners.

    Returns:
        The folder.
    """
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
            image, rows = draw(np.random.default_rng((seed, index)), size, rotated)
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


def draw(rng: np.random.Generator, size: int, rotated: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image of 1 to 12 objects, some partly behind others.

    Args:
        rng: Source of randomness.
        size: Side of the image in pixels.
        rotated: Whether the objects are turned.

    Returns:
        image: (size, size, 3) uint8, BGR.
        rows: (n, 5) class, and centre x, centre y, width, height as shares of the side; of turned objects (n, 9) class,
            and x, y of four corners as shares of the side.
    """
    coarse = rng.integers(90, 166, (size // 16 + 1, size // 16 + 1, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    owner = np.full((size, size), -1)
    rows: list[tuple[float, ...]] = []
    areas: list[int] = []
    for _ in range(int(rng.integers(1, 13))):
        placed = _shape(rng, size, rotated)
        if placed is None:
            continue
        label, mask, corners = placed
        hidden = [np.count_nonzero((owner == i) & ~mask) < VISIBLE * area for i, area in enumerate(areas)]
        if any(hidden):
            continue
        owner[mask] = len(rows)
        colour = rng.integers(0, 80, 3)
        colour[label] += rng.integers(150, 176)  # a hint, so that a short training learns to tell the classes apart
        image[mask] = colour
        if rotated:
            rows.append((label, *(corners / size).clip(0, 1).flatten()))
        else:
            y, x = np.nonzero(mask)
            x1, y1, x2, y2 = x.min(), y.min(), x.max() + 1, y.max() + 1
            rows.append((label, (x1 + x2) / 2 / size, (y1 + y2) / 2 / size, (x2 - x1) / size, (y2 - y1) / size))
        areas.append(int(mask.sum()))
    noise = rng.normal(0, 6, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), np.array(rows)


def _shape(rng: np.random.Generator, size: int, rotated: bool) -> Optional[tuple[int, np.ndarray, np.ndarray]]:
    """Return a class, a mask (size, size) inside the image, and the corners of the box (4, 2) in pixels."""
    label = int(rng.integers(len(CLASSES)))
    width, height = np.exp(rng.uniform(np.log(size / 10), np.log(size / 2.5))) * rng.uniform(0.7, 1.4, 2) / 2
    angle = rng.uniform(0, np.pi) if rotated else 0.0
    reach = float(np.hypot(width, height)) if rotated else None
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
    return (label, mask.astype(bool), box) if mask.any() else None

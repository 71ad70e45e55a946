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


def write(folder: Union[str, Path], images: int = 128, size: int = 160, validation: int = 32, seed: int = 0) -> Path:
    """Write a detection dataset in Ultralytics' layout; the same arguments give the same files.

    The folder appears complete or not at all, also when several processes write it at once.

    Args:
        folder: Where to write; left alone if it exists.
        images: Number of images, training and validation together.
        size: Side of an image in pixels.
        validation: How many of the images are for validation.
        seed: Seed of the drawings.

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
            image, rows = draw(np.random.default_rng((seed, index)), size)
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


def draw(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image of 1 to 12 objects, some partly behind others.

    Args:
        rng: Source of randomness.
        size: Side of the image in pixels.

    Returns:
        image: (size, size, 3) uint8, BGR.
        rows: (n, 5) class, and centre x, centre y, width, height as shares of the side.
    """
    coarse = rng.integers(90, 166, (size // 16 + 1, size // 16 + 1, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    owner = np.full((size, size), -1)
    rows: list[tuple[float, ...]] = []
    areas: list[int] = []
    for _ in range(int(rng.integers(1, 13))):
        placed = _shape(rng, size)
        if placed is None:
            continue
        label, mask = placed
        hidden = [np.count_nonzero((owner == i) & ~mask) < VISIBLE * area for i, area in enumerate(areas)]
        if any(hidden):
            continue
        owner[mask] = len(rows)
        colour = rng.integers(0, 80, 3)
        colour[label] += rng.integers(150, 176)  # a hint, so that a short training learns to tell the classes apart
        image[mask] = colour
        y, x = np.nonzero(mask)
        x1, y1, x2, y2 = x.min(), y.min(), x.max() + 1, y.max() + 1
        rows.append((label, (x1 + x2) / 2 / size, (y1 + y2) / 2 / size, (x2 - x1) / size, (y2 - y1) / size))
        areas.append(int(mask.sum()))
    noise = rng.normal(0, 6, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), np.array(rows)


def _shape(rng: np.random.Generator, size: int) -> Optional[tuple[int, np.ndarray]]:
    """Return a class and a mask (size, size) inside the image."""
    label = int(rng.integers(len(CLASSES)))
    width, height = np.exp(rng.uniform(np.log(size / 10), np.log(size / 2.5))) * rng.uniform(0.7, 1.4, 2) / 2
    x, y = rng.uniform(width, size - width), rng.uniform(height, size - height)
    mask = np.zeros((size, size), np.uint8)
    if label == 0:
        cv2.ellipse(mask, (round(x), round(y)), (round(width), round(height)), 0, 0, 360, 1, -1)
    elif label == 1:
        cv2.rectangle(mask, (round(x - width), round(y - height)), (round(x + width), round(y + height)), 1, -1)
    else:
        corners = np.array([(x, y - height), (x - width, y + height), (x + width, y + height)])
        cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 1)
    return (label, mask.astype(bool)) if mask.any() else None

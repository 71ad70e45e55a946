# SPDX-License-Identifier: AGPL-3.0-or-later
"""Embedded synthetic datasets that are labelled in part: classes that a folder leaves out, and regions left out."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Union

from yolo_lossplug.shapes import CLASSES, write_shapes

KNOWN = ((0, 1), (2,))
"""Classes that each half of the training images of ``parts`` annotates."""
REGION = len(CLASSES)
"""Class of the regions of ``ignored``."""
Row = Sequence[float]


def write_partly(folder: Union[str, Path], kind: str, images: int = 128, size: int = 160, validation: int = 32) -> Path:
    """Write the plain dataset, and its training images once more with labels in part; not again if it is there.

    Args:
        folder: Where to write.
        kind: ``parts``: two halves, ``first`` and ``second``, that each know some classes alone; or ``ignored``: one
            folder of that name, in whose images one box of a class of its own stands for all objects in a quarter.
        images: Number of images, training and validation together.
        size: Side of an image in pixels.
        validation: How many of the images are for validation, all of whose objects are labelled.

    Returns:
        The folder.
    """
    folder = write_shapes(folder, images, size, validation)
    halves = ("first", "second") if kind == "parts" else ("ignored",)
    if all((folder / half).exists() for half in halves):
        return folder
    files = sorted((folder / "images" / "train").iterdir())
    for i, half in enumerate(halves):
        unfinished = Path(tempfile.mkdtemp(prefix=f".{half}-", dir=folder))
        for name in ("images", "labels"):
            (unfinished / name).mkdir()
        for index, file in enumerate(files):
            if index % len(halves) != i:
                continue
            shutil.copy(file, unfinished / "images")
            text = (folder / "labels" / "train" / f"{file.stem}.txt").read_text()
            rows = [tuple(map(float, line.split())) for line in text.splitlines()]
            kept = [row for row in rows if row[0] in KNOWN[i]] if kind == "parts" else with_region(rows, index)
            lines = [f"{int(row[0])} " + " ".join(f"{value:.6f}" for value in row[1:]) + "\n" for row in kept]
            (unfinished / "labels" / f"{file.stem}.txt").write_text("".join(lines))
        unfinished.chmod(0o755)
        try:
            unfinished.rename(folder / half)
        except OSError:  # another process was first
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def with_region(rows: Sequence[Row], index: int) -> list[Row]:
    """Return the boxes outside of one quarter of an image, and one that covers those in it, if there are any.

    Args:
        rows: Class, centre x, centre y, width, height of the objects of an image.
        index: Number of the image, which says which quarter it is.

    >>> with_region([(0, 0.2, 0.2, 0.1, 0.1), (1, 0.8, 0.8, 0.1, 0.1)], 0)
    [(1, 0.8, 0.8, 0.1, 0.1), (3, 0.2, 0.2, 0.1, 0.1)]
    """
    is_right, is_low = index % 2 == 1, index // 2 % 2 == 1
    hidden = [row for row in rows if (row[1] > 0.5) == is_right and (row[2] > 0.5) == is_low]
    kept = [row for row in rows if row not in hidden]
    if not hidden:
        return kept
    low = [min(row[axis] - row[axis + 2] / 2 for row in hidden) for axis in (1, 2)]
    high = [max(row[axis] + row[axis + 2] / 2 for row in hidden) for axis in (1, 2)]
    middle, sides = (
        [round(f(a, b), 6) for a, b in zip(low, high)] for f in (lambda a, b: (a + b) / 2, lambda a, b: b - a)
    )
    return [*kept, (REGION, *middle, *sides)]

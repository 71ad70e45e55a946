# SPDX-License-Identifier: AGPL-3.0-or-later
"""Embedded synthetic datasets that are labelled in part: classes that a folder leaves out, and regions left out."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Optional, Union

import numpy as np

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
    files = sorted((folder / "images" / "train").iterdir())
    for i, half in enumerate(halves):
        if not (folder / half).exists():
            _write_part(folder, half, files[i :: len(halves)], KNOWN[i] if kind == "parts" else None)
    return folder


def _write_part(folder: Path, name: str, files: Sequence[Path], known: Optional[Sequence[int]]) -> None:
    """Write images once more, with the labels of known classes, or with regions where all are known."""
    unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
    for part in ("images", "labels"):
        (unfinished / part).mkdir()
    for index, file in enumerate(files):
        shutil.copy(file, unfinished / "images")
        text = (folder / "labels" / "train" / f"{file.stem}.txt").read_text()
        rows = [tuple(map(float, line.split())) for line in text.splitlines()]
        kept = with_region(rows, index) if known is None else [row for row in rows if row[0] in known]
        lines = [f"{int(row[0])} " + " ".join(f"{value:.6f}" for value in row[1:]) + "\n" for row in kept]
        (unfinished / "labels" / f"{file.stem}.txt").write_text("".join(lines))
    unfinished.chmod(0o755)
    try:
        unfinished.rename(folder / name)
    except OSError:  # another process was first
        shutil.rmtree(unfinished, ignore_errors=True)


def with_region(rows: Sequence[Row], index: int) -> list[Row]:
    """Return the boxes outside of one quarter of an image, and one that covers those in it, if there are any.

    Args:
        rows: Class, centre x, centre y, width, height of the objects of an image.
        index: Number of the image, which says which quarter it is.

    >>> with_region([(0, 0.2, 0.2, 0.1, 0.1), (1, 0.8, 0.8, 0.1, 0.1)], 0)
    [(1, 0.8, 0.8, 0.1, 0.1), (3, 0.2, 0.2, 0.1, 0.1)]
    """
    quarter = index % 2 == 1, index // 2 % 2 == 1
    hidden = [row for row in rows if (row[1] > 0.5, row[2] > 0.5) == quarter]
    kept = [row for row in rows if row not in hidden]
    if not hidden:
        return kept
    boxes = np.array(hidden)[:, 1:]
    low, high = (boxes[:, :2] - boxes[:, 2:] / 2).min(0), (boxes[:, :2] + boxes[:, 2:] / 2).max(0)
    return [*kept, (REGION, *np.concatenate(((low + high) / 2, high - low)).round(6).tolist())]

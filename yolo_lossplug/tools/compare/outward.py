# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a summary shows to others: names and reasons without the folders of this machine, data and hardware."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from yolo_lossplug.tools.compare.jobs import Job
from yolo_lossplug.tools.compare.measures import Results

FOLDERS = re.compile(r"(?<![\w.~:/\\-])(?:[A-Za-z]:[\\/]|/|\\\\)(?:[^\s,:;'\"`|/\\]+[\\/])+")
"""The folders of an absolute path, on Linux and Windows."""


def without_folders(text: str) -> str:
    r"""Return a text with the bare names of files in place of their absolute paths.

    >>> without_folders("loss=ciou,/home/me/losses.py:mine data=C:\\sets\\my.yaml")
    'loss=ciou,losses.py:mine data=my.yaml'
    >>> without_folders("n/a, val/box_loss, https://a.org/b/c, ./own/losses.py")
    'n/a, val/box_loss, https://a.org/b/c, ./own/losses.py'
    """
    return FOLDERS.sub("", text)


def shown(runs: Sequence[Job]) -> list[Job]:
    """Return copies of runs whose names and reasons hold no folder; names that would be equal then stay as they are."""
    short = {job.arm: without_folders(job.arm) for job in runs}
    has_unique = len({*short.values()}) == len(short)
    return [
        replace(job, arm=short[job.arm] if has_unique else job.arm, reason=without_folders(job.reason)) for job in runs
    ]


def about(results: Results) -> list[str]:
    """Return the hardware of the runs and the size of their data, a line for each that is recorded."""
    hardware = sorted({str(result["hardware"]) for result in results.values() if result.get("hardware")})
    sizes = {split: _first(results, key) for split, key in (("train", "train"), ("val", "data"))}
    data = [f"{split} {_size(size)}" for split, size in sizes.items() if size.get("images")]
    lines = [f"Hardware: {'; '.join(hardware)}"] if hardware else []
    return [*lines, *([f"Data: {'; '.join(data)}"] if data else [])]


def _first(results: Results, key: str) -> Mapping[str, int]:
    """Return the size of the data under a key, which runs of an earlier version lack."""
    return next((result[key] for result in results.values() if result.get(key)), {})


def _size(size: Mapping[str, int]) -> str:
    """Return numbers of images and objects, of these by size where they are counted."""
    objects = f", {size['objects']} objects" if "objects" in size else ""
    by_size = ", ".join(f"{size[name]} {name}" for name in ("small", "medium", "large") if name in size)
    return f"{size['images']} images{objects}" + (f" ({by_size})" if by_size else "")

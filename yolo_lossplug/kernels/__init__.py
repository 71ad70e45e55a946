# SPDX-License-Identifier: AGPL-3.0-or-later
"""The loss step as a few Triton kernels, without host synchronisation and with the memory of the fast engine.

This module does not import Triton; those below do, and are imported only where `missing` returns None:

0. `launching`: launches, most of which leave out Triton's Python.
1. `rounding`: elementary functions.
2. `box_maths`: overlaps and box losses with their gradients.
3. `gt_rows`, `decoding`: gts with their candidates, and predicted boxes.
4. `assignment`: the task-aligned assignment.
5. `class_term`, `box_term`: the terms, forward and backward.
6. `step`: the three terms of a step.

All kernels are deterministic: atomic operations are on integers only, and sums have a fixed order.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import Optional

import torch

MIN_TRITON = (3, 0)
"""Minimum version of Triton."""


def is_interpreted() -> bool:
    """Return whether kernels run in Triton's interpreter, on any device and slowly: TRITON_INTERPRET=1, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def missing(device: torch.device) -> Optional[str]:
    """Return why the kernels cannot run on a device, None if they can."""
    reason = _missing_triton()
    if reason is None and not is_interpreted():
        if device.type != "cuda":
            return f"the kernels need a GPU, and the device is {device.type}"
        if torch.version.hip:
            return "its kernels compile for AMD GPUs, but nobody has run or measured them there yet"
    return reason


@functools.cache
def _missing_triton() -> Optional[str]:
    try:
        version = importlib.import_module("triton").__version__
    except Exception as error:  # a broken installation raises anything
        return f"Triton cannot be imported ({error})"
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_TRITON:
        return f"Triton {version} is older than {'.'.join(map(str, MIN_TRITON))}"
    return None

# SPDX-License-Identifier: AGPL-3.0-or-later
"""The host's classes of losses and assigners as it defines them, whatever others have put in their place.

Each is an attribute of this module.
"""

from __future__ import annotations

import importlib
from typing import Any

from yolo_lossplug.ultralytics_hook.patching import original

LOSSES = "ultralytics.utils.loss"
HOMES = {
    "DETRLoss": "ultralytics.models.utils.loss",
    **dict.fromkeys(("TaskAlignedAssigner", "RotatedTaskAlignedAssigner"), "ultralytics.utils.tal"),
}
"""Modules of the classes that are not in the one of losses."""


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return original(importlib.import_module(HOMES.get(name, LOSSES)), name)

# SPDX-License-Identifier: AGPL-3.0-or-later
"""The registry with all losses in it: ours, and those of installed packages."""

from __future__ import annotations

import importlib.metadata
import warnings

import yolo_lossplug.box_losses
import yolo_lossplug.class_losses  # noqa: F401  both imports fill the registry
from yolo_lossplug.registry import REGISTRY, Registry

GROUP = "yolo_lossplug.losses"
"""Entry points of packages with losses: each names a module, or a function in it."""

_is_loaded = False


def registry() -> Registry:
    """Return the registry; the first call lets installed packages register their losses."""
    global _is_loaded
    if not _is_loaded:
        _is_loaded = True  # first, since a package that registers a loss may ask for others
        found = importlib.metadata.entry_points()
        for entry in found.select(group=GROUP) if hasattr(found, "select") else found.get(GROUP, ()):
            try:
                entry.load()
            except Exception as error:  # a third-party package must not break a training that does not use it
                warnings.warn(f"yolo-lossplug: the losses of '{entry.value}' are not available: {error}", stacklevel=2)
    return REGISTRY

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Change the loss of any YOLO with one key, on an unmodified Ultralytics.

Importing this package enables the plugin; `disable` undoes it. Names are imported when they are first used, so that
the import itself costs next to nothing.
"""

from yolo_lossplug import _autoload

__version__ = "0.1.0"

_HOMES = {
    "Option": "registry",
    "LossPlugError": "registry",
    "box_loss": "registry",
    "class_loss": "registry",
    "create_box_loss": "selection.loss",
    "create_class_loss": "selection.loss",
    "list_box_losses": "selection.loss",
    "list_class_losses": "selection.loss",
    "DetectionLoss": "ultralytics_hook.criterion",
    "OBBLoss": "ultralytics_hook.criterion",
    "PoseLoss": "ultralytics_hook.criterion",
    "SegmentationLoss": "ultralytics_hook.criterion",
    "TaskAlignedAssigner": "ultralytics_hook.assigner",
}
__all__ = ["__version__", "disable", "enable", "is_enabled", *sorted(_HOMES)]


def enable() -> None:
    """Make Ultralytics know our keys, now and when more of it is imported. Calling it again changes nothing.

    Raises:
        ImportError: If this release of Ultralytics is not supported; it is left as it was.
    """
    _autoload.install()
    if _autoload.problem:
        raise ImportError(f"yolo-lossplug is not enabled: {_autoload.problem}.")


def disable() -> None:
    """Give Ultralytics back exactly the objects it had. Calling it again changes nothing."""
    _autoload.uninstall()


def is_enabled() -> bool:
    """Return whether Ultralytics knows our keys, or will when it is imported."""
    return _autoload.is_installed()


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'yolo_lossplug' has no attribute '{name}'")
    import importlib

    value = globals()[name] = getattr(importlib.import_module(f"yolo_lossplug.{_HOMES[name]}"), name)
    return value


def __dir__() -> list:
    return sorted({*globals(), *_HOMES})


if not _autoload.is_switched_off():
    enable()

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Words that neither Ultralytics nor the plugin knows: one line that names what was meant.

Imported while Ultralytics is, and so this module imports nothing of it before a function is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from itertools import filterfalse
from typing import Any

from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import instead_of, keys
from yolo_lossplug.selection.names import suggest
from yolo_lossplug.ultralytics_hook import typed

ALLOWED = ("augmentations", "save_dir")
"""What Ultralytics takes besides its keys."""


def point_to_ours(base: Mapping[str, Any], custom: Mapping[str, Any]) -> None:
    """Name the key of ours that was meant, by a key of older YOLOs or a misspelt one; the host names its own.

    Raises:
        LossPlugError: If Ultralytics would refuse the key; as `lossplug`, if it would refuse any.
    """
    ours = keys()
    known = {**ours, **base}
    for key in filterfalse({*known, *ALLOWED}.__contains__, custom):
        _refuse_unreadable(key)
        value = custom[key]
        hint, near = instead_of(key, value), ours.keys() & get_close_matches(key, known, 1)
        if not (hint or near or typed.is_lossplug()):
            continue
        if not _is_dropped(key):
            raise LossPlugError(f"{_as_typed(key, value)} is unknown.{f'{hint}.' if hint else _remedy(key, known)}")
        if hint and value and custom.get("mode") in (None, "", "train"):
            from yolo_lossplug.ultralytics_hook.console import warn_once

            warn_once(f"{key}={value} has no effect in this release of Ultralytics.{hint}.")


def _refuse_unreadable(word: str) -> None:
    """Raise an error for a key of ours whose value Ultralytics cannot read: then the whole word is its key."""
    key, is_pair, value = word.partition("=")
    if is_pair and key.strip() in keys():
        why = "cannot be read: close its brackets and quotation marks" if value.strip() else "has no value"
        raise LossPlugError(f"{word} {why}; write {key}=VALUE, or the key into a file, and cfg=FILE.")


def _as_typed(key: str, value: Any) -> str:
    return f"'{key}'" if value == "" else f"{key}={value}"


def _remedy(key: str, known: Iterable[str]) -> str:
    return suggest(key, known) or " `lossplug --help` lists commands, `yolo help` and `yolo cfg` what `yolo` takes."


def _is_dropped(key: str) -> bool:
    """Return whether Ultralytics drops a key with a warning, as it does with keys of its past."""
    from ultralytics import cfg

    from yolo_lossplug.ultralytics_hook.console import quiet

    handle = getattr(cfg, "_handle_deprecation", dict)
    with quiet():
        return key not in handle({key: 0.0})

# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is typed on the command line of `yolo`, as opposed to what a file gives.

Imported while Ultralytics is, and so this module imports nothing of it before a function is called.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Callable

from yolo_lossplug import terminal
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import NAMES, keys, refuse_none
from yolo_lossplug.ultralytics_hook.patching import held

_words: ContextVar[frozenset[str]] = ContextVar("words", default=frozenset())
_is_lossplug: ContextVar[bool] = ContextVar("is_lossplug", default=False)


def run_as_lossplug() -> None:
    """Run the command line of Ultralytics for `lossplug`."""
    from ultralytics.cfg import entrypoint

    with held(_is_lossplug, True):
        entrypoint()


def is_lossplug() -> bool:
    """Return whether the command line that runs is that of `lossplug`."""
    return _is_lossplug.get()


def words() -> frozenset[str]:
    """Return the keys that are typed on the command line that runs."""
    return _words.get()


def typed_pairs(lines: Sequence[str]) -> dict[str, str]:
    """Return what is typed as `key=value` on command lines, those of this process if there are none.

    Raises:
        LossPlugError: If brackets are open, or a key of ours has no value.
    """
    words = merged_words(" ".join(lines).split() or sys.argv[1:])
    for word in words:
        if word in keys():
            raise LossPlugError(f"'{word}' has no value: write {word}=VALUE.")
    return dict(word.lstrip("-").split("=", 1) for word in words if "=" in word)


def merged_words(words: Sequence[str]) -> list[str]:
    """Return words with what belongs together as one, as Ultralytics merges them.

    Raises:
        LossPlugError: If brackets are open.
    """
    from ultralytics.cfg import merge_equals_args

    try:
        return merge_equals_args(list(words))
    except SyntaxError as error:
        raise LossPlugError(f"{error} Close it, or write the key into a file, and give cfg=FILE.") from error


def refuse_typed_none(pairs: dict[str, str]) -> None:
    """Raise an error for `loss=none` on the command line, which would train stock without a word.

    Raises:
        LossPlugError: If a name is typed as none, unless all are: programs, as Ultralytics' tuner, give every key.
    """
    if not NAMES.keys() <= pairs.keys():
        for key, value in pairs.items():
            refuse_none(key, None if value.lower() == "none" else value)


def entrypoint(stock: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Run the command line; a mistake of the user is one line."""
    try:
        with held(_words, frozenset()):
            pairs = typed_pairs((*args, *kwargs.values()))
            _words.set(frozenset(pairs))
            refuse_typed_none(pairs)
            stock(*args, **kwargs)
    except LossPlugError as error:
        raise SystemExit(terminal.fit_error(f"LossPlug: {error}")) from error

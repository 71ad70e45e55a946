# SPDX-License-Identifier: AGPL-3.0-or-later
"""The selection of a trainer under construction, made once, after its arguments are merged; and the runs under way.

Imports no host code, since it is imported while Ultralytics is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Optional

from yolo_lossplug.selection.select import Selection, select
from yolo_lossplug.ultralytics_hook.family import with_task
from yolo_lossplug.ultralytics_hook.patching import held

_made: ContextVar[Optional[list[Selection]]] = ContextVar("made", default=None)
"""Selections of the trainer under construction: none until its arguments are merged, another when it resumes a run."""
_trainer: ContextVar[type] = ContextVar("trainer", default=object)
"""Class of the trainer under construction."""


@contextmanager
def making(trainer: type = object) -> Iterator[None]:
    """Cache the selection of a trainer, of a class, during its construction."""
    with held(_made, []), held(_trainer, trainer):
        yield


def is_making() -> bool:
    """Return whether a trainer is under construction."""
    return _made.get() is not None


def selected(args: Mapping[str, Any], is_final: bool = False) -> Selection:
    """Return the selection of the trainer under construction; final arguments are merged: none before them counts."""
    if (made := _made.get()) and not is_final:
        return made[-1]
    selection = select(with_task(args, _trainer.get()))
    if made is not None:
        made.append(selection)
    return selection


RUNS: dict[str, Any] = {}
"""The `Run` of each training that is under way, by its folder."""


def is_settled(args: Mapping[str, Any]) -> bool:
    """Return whether arguments are those of a run that is under way, as its validator has them too."""
    return str(args.get("save_dir")) in RUNS

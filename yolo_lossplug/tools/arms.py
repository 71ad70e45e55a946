# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is compared: `loss=ciou,focal-eiou focal_gamma=0.3,0.5` names three arms."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Optional

from yolo_lossplug.registry import BOX, CLASS, LossPlugError
from yolo_lossplug.selection import (
    COMMON,
    STOCK_BOX,
    STOCK_CLASS,
    WEIGHTS,
    Selection,
    given_keys,
    load_own,
    no_effect,
    select,
)


@dataclass(frozen=True)
class Arm:
    """One choice of losses among those that are compared.

    Attributes:
        name: What tells it from the others, ``focal-eiou focal_gamma=0.3``.
        keys: Our keys, as a training run takes them.
        selection: The choice, checked.
    """

    name: str
    keys: dict[str, Any]
    selection: Selection


def arms(args: Mapping[str, Any], task: Optional[str] = None) -> list[Arm]:
    """Return every combination of the values that our keys have in arguments, an option where it belongs alone.

    Args:
        args: Arguments; a value of ours may be a list, or a string with commas. Keys of others are ignored.
        task: Task of the runs, None for one with horizontal boxes.

    Returns:
        The arms, in the order of the values; each combination once.

    Raises:
        LossPlugError: If a value is wrong, or is used by no arm.
    """
    names = {key: _values(key, args.get(key)) or [None] for key in ("loss", "cls_loss")}
    load_user_losses(args)
    ours = {key: _values(key, value) for key, value in given_keys(args).items() if key not in names}
    found: dict[str, Arm] = {}
    used: set[str] = set()
    for pair in product(*names.values()):
        named = {key: name for key, name in zip(names, pair) if name is not None}
        chosen = select({**named, "task": task})
        known = COMMON.union(chosen.box.options, chosen.cls.options)
        lists = {key: values for key, values in ours.items() if key in known}
        for values in product(*lists.values()):
            given = {**named, **dict(zip(lists, values))}
            selection = select({**given, "task": task})
            name = _name(selection, given, {**names, **ours})
            used |= given.keys()
            found.setdefault(name, Arm(name, given, selection))
    for key in ours:
        if key not in used:
            box, cls = (
                ",".join(str(name or stock) for name in names[k]) for k, stock in zip(names, (STOCK_BOX, STOCK_CLASS))
            )
            raise LossPlugError(no_effect(key, args[key], box, cls))
    return list(found.values())


def labels(chosen: Sequence[Arm], is_class: bool = False) -> list[str]:
    """Return a label for each arm: its loss with the options, and the arm's name where two would be the same."""
    found = [short_name(str(arm.selection.cls if is_class else arm.selection.box)) for arm in chosen]
    counts = Counter(found)
    return [label if counts[label] == 1 else f"{label} [{arm.name}]" for label, arm in zip(found, chosen)]


def load_user_losses(args: Mapping[str, Any]) -> None:
    """Load the user-defined losses that arguments name, so that their options are keys of ours.

    Raises:
        LossPlugError: If one cannot be loaded.
    """
    for key, kind in (("loss", BOX), ("cls_loss", CLASS)):
        for name in _values(key, args.get(key)):
            if ":" in str(name):
                load_own(name, kind)


def _values(key: str, value: Any) -> list[Any]:
    """Return the values of a key, none for None.

    Raises:
        LossPlugError: If it is given without a value.
    """
    if value is None:
        return []
    if isinstance(value, str) and key != WEIGHTS:
        words = [word.strip() for word in value.split(",")]
        if not all(words):
            raise LossPlugError(f"{key}={value} lacks a value before or after a comma; write {key}=one,other.")
        return words
    if isinstance(value, (list, tuple)) and (key != WEIGHTS or any(isinstance(v, (list, tuple)) for v in value)):
        return list(value)
    return [value]


def _name(selection: Selection, given: Mapping[str, Any], lists: Mapping[str, list[Any]]) -> str:
    """Return the values that vary, names first; the box loss where nothing does."""
    names = {"loss": selection.box.name, "cls_loss": selection.cls.name}
    words = [_short(name, lists[key]) for key, name in names.items() if len(lists[key]) > 1]
    words += [f"{key}={value}" for key, value in given.items() if key not in names and len(lists[key]) > 1]
    return " ".join(words) or _short(selection.box.name, [])


def _short(name: str, others: list[Any]) -> str:
    """Return a loss of the user's own without its folder, unless another one would have the same name."""
    short = short_name(name)
    return short if sum(short_name(str(other)) == short for other in others) < 2 else name


def short_name(name: str) -> str:
    """Return ``file.py:function`` of ``path/to/file.py:function``; other names as they are.

    >>> short_name("own/losses.py:mine")
    'losses.py:mine'
    """
    return re.sub(r"[^(\s]*[/\\](?=[^/\\]+\.py:)", "", name)

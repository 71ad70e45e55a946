# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is compared: `loss=ciou,focal-eiou focal_gamma=0.3,0.5` names three arms."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Optional

from yolo_lossplug.registry import BOX, CLASS, LossPlugError
from yolo_lossplug.selection.keys import COMMON, STOCK_BOX, STOCK_CLASS, WEIGHTS, given_keys, no_effect, numeric_keys
from yolo_lossplug.selection.loss import Loss
from yolo_lossplug.selection.names import parts_of
from yolo_lossplug.selection.own import load_references
from yolo_lossplug.selection.select import Selection, select

NAMES = ("loss", "cls_loss")
"""Keys that name losses."""
ARMS = "arms"
"""The key that lists the arms one by one, in place of values that are multiplied."""


@dataclass(frozen=True)
class Arm:
    """One of the choices of losses that are compared.

    Attributes:
        name: What distinguishes it from the others, ``focal-eiou focal_gamma=0.3``.
        keys: Our keys, as a training run takes them.
        selection: The choice, checked.
    """

    name: str
    keys: dict[str, Any]
    selection: Selection


def chosen_by(
    args: Mapping[str, Any], task: Optional[str] = None, recipe: Optional[Mapping[str, Any]] = None
) -> list[Arm]:
    """Return the arms that arguments name: those listed, as `listed` takes them, or else those of `arms`.

    Raises:
        LossPlugError: If arms are listed and keys of ours are given beside them, or a choice is wrong.
    """
    if ARMS not in args:
        return arms(args, task, recipe)
    for key, value in given_keys(args).items():
        raise LossPlugError(f"{key}={value} has no effect beside {ARMS}=, which sets keys per arm. Move it there.")
    return listed(args[ARMS], task)


def arms(args: Mapping[str, Any], task: Optional[str] = None, recipe: Optional[Mapping[str, Any]] = None) -> list[Arm]:
    """Return every combination of the values of our keys; an option goes to the losses that have it.

    Args:
        args: Arguments; a value of ours may be a list, or a string with commas. Keys of others are ignored.
        task: Task of the runs, None for one with horizontal boxes.
        recipe: The keys of a file that the command line went over. Names of arms tell what differs from it. If the
            losses are not those of the file, no arm needs to have its options.

    Returns:
        The arms, in the order of the values; each combination once.

    Raises:
        LossPlugError: If a value is wrong, or is used by no arm.
    """
    load_user_losses(args)
    recipe = recipe or {}
    names = {key: _values(key, args.get(key)) or [None] for key in NAMES}
    options = {key: _values(key, value) for key, value in given_keys(args).items() if key not in names}
    found, used = dict[str, Arm](), set[str]()
    for keys in _combinations(names, options, task):
        selection = select({**keys, "task": task})
        name = _name(selection, keys, {**names, **options}, recipe)
        found.setdefault(name, Arm(name, keys, selection))
        used.update(keys)
    _refuse_unused([key for key in options if key not in used], args, recipe, names)
    return list(found.values())


def listed(choices: Any, task: Optional[str] = None) -> list[Arm]:
    """Return an arm for each of several choices of keys, named after its losses and its other keys.

    Args:
        choices: Keys of each arm, ours and gains that belong to it; the first is the one that others are compared with.
        task: Task of the runs, None for one with horizontal boxes.

    Raises:
        LossPlugError: If they are not mappings with keys, two are the same, or a choice of losses is wrong.

    Example:
        >>> [arm.name for arm in listed([{"loss": "ciou"}, {"tal_topk": 7}, {"cls_loss": "qfl", "cls": 5.0}])]
        ['ciou', 'tal_topk=7', 'qfl cls=5.0']
    """
    if not _is_list_of_keys(choices):
        example = "[{'loss':'ciou'},{'tal_topk':7}]"
        raise LossPlugError(f"{ARMS}={choices} must be a list with the keys of each arm: {ARMS}={example}.")
    chosen = [Arm(_listed_name(keys), dict(keys), select({**given_keys(keys), "task": task})) for keys in choices]
    counts = Counter(arm.name for arm in chosen)
    if twice := [name for name in counts if counts[name] > 1]:
        raise LossPlugError(f"{ARMS}= names {', '.join(twice)} twice; remove one.")
    return chosen


def _is_list_of_keys(choices: Any) -> bool:
    return isinstance(choices, (list, tuple)) and bool(choices) and all(isinstance(c, Mapping) and c for c in choices)


def _listed_name(keys: Mapping[str, Any]) -> str:
    return " ".join(short_name(str(value)) if key in NAMES else f"{key}={value}" for key, value in keys.items())


def values_by_key(chosen: Sequence[Arm]) -> dict[str, str]:
    """Return the values of each key of some arms, with commas, as `arms` takes them."""
    keys = dict.fromkeys(key for arm in chosen for key in arm.keys)
    values = {key: dict.fromkeys(str(arm.keys[key]) for arm in chosen if key in arm.keys) for key in keys}
    return {key: ",".join(of_key) for key, of_key in values.items()}


def _combinations(
    names: Mapping[str, Sequence[Any]], options: Mapping[str, Sequence[Any]], task: Optional[str]
) -> Iterator[dict[str, Any]]:
    for pair in product(*names.values()):
        named = {key: name for key, name in zip(names, pair) if name is not None}
        losses = select({**named, "task": task})
        accepted = COMMON.union(losses.box.options, losses.cls.options)
        lists = {key: values for key, values in options.items() if key in accepted}
        for values in product(*lists.values()):
            yield {**named, **dict(zip(lists, values))}


def _refuse_unused(
    unused: Sequence[str], args: Mapping[str, Any], recipe: Mapping[str, Any], names: Mapping[str, Sequence[Any]]
) -> None:
    """Raise an error for an option that no arm has, unless it came with the losses of a file, which are replaced."""
    is_replaced = any(args.get(key) != recipe.get(key) for key in NAMES)
    stock = dict(zip(NAMES, (STOCK_BOX, STOCK_CLASS)))
    for key in unused:
        if not (is_replaced and key in recipe and args[key] == recipe[key]):
            box, cls = (",".join(str(name or stock[each]) for name in names[each]) for each in NAMES)
            raise LossPlugError(no_effect(key, args[key], box, cls))


def labels(chosen: Sequence[Arm], is_class: bool = False) -> list[str]:
    """Return a label for each arm: its loss, with options that vary or are off their defaults.

    Where two would be the same, the name of the arm follows.
    """
    losses = [arm.selection.cls if is_class else arm.selection.box for arm in chosen]
    described = [_described(loss, losses) for loss in losses]
    counts = Counter(described)
    return [text if counts[text] == 1 else f"{text} [{arm.name}]" for text, arm in zip(described, chosen)]


def _described(loss: Loss, others: Sequence[Loss]) -> str:
    """Return a loss with those of its options that are off their defaults, or vary among others of its name."""
    alike, defaults = [other.options for other in others if other.name == loss.name], numeric_keys()
    shown = {
        key: value
        for key, value in loss.options.items()
        if value != defaults[key].default or any(options[key] != value for options in alike)
    }
    return str(replace(loss, name=short_name(loss.name), options=shown))


def load_user_losses(args: Mapping[str, Any]) -> None:
    """Load the user-defined losses that arguments name, so that their options are keys of ours.

    Raises:
        LossPlugError: If one cannot be loaded.
    """
    for key, kind in zip(NAMES, (BOX, CLASS)):
        for name in _values(key, args.get(key)):
            load_references(str(name), kind)


def _values(key: str, value: Any) -> list[Any]:
    """Return the values of a key, none for None; raise an error if one of them is empty."""
    if value is None:
        return []
    if isinstance(value, str) and key != WEIGHTS:
        words = [word.strip() for word in value.split(",")]
        if not all(words):
            raise LossPlugError(f"{key}={value} lacks a value before or after a comma; write {key}=one,other.")
        return words
    if not isinstance(value, (list, tuple)):
        return [value]
    is_one = key == WEIGHTS and not any(isinstance(v, (list, tuple, Mapping)) for v in value)
    return [value] if is_one else list(value)


def _name(
    selection: Selection, keys: Mapping[str, Any], lists: Mapping[str, Sequence[Any]], recipe: Mapping[str, Any]
) -> str:
    """Return the values that vary or differ from the recipe, names first; the box loss where none does."""

    def is_shown(key: str) -> bool:
        return len(lists[key]) > 1 or (bool(recipe) and key in keys and keys[key] != recipe.get(key))

    names = dict(zip(NAMES, (selection.box.name, selection.cls.name)))
    words = [_short(name, lists[key]) for key, name in names.items() if is_shown(key)]
    words += [f"{key}={value}" for key, value in keys.items() if key not in names and is_shown(key)]
    return " ".join(words) or _short(selection.box.name, [])


def _short(name: str, others: Sequence[Any]) -> str:
    """Return a user-defined loss without its folder, unless another one would have the same name."""
    short = short_name(name)
    return short if sum(short_name(str(other)) == short for other in others) < 2 else name


def short_name(name: str) -> str:
    """Return ``file.py:function`` of ``path/to/file.py:function``, in mixtures too; other names as they are.

    >>> short_name("own/losses.py:mine"), short_name("ciou+own/losses.py:mine")
    ('losses.py:mine', 'ciou+losses.py:mine')
    """
    return "+".join(re.sub(r"[^(\s]*[/\\](?=[^/\\]+\.py:)", "", part) for part in parts_of(name))

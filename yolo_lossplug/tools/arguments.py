# SPDX-License-Identifier: AGPL-3.0-or-later
"""Arguments of the commands: a recipe given as cfg=, the command line over it, and what several commands check."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Optional

from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import COMMON, given_keys, keys
from yolo_lossplug.selection.own import names_reference
from yolo_lossplug.tools.arms import NAMES, Arm, load_user_losses
from yolo_lossplug.ultralytics_hook.console import read_cfg, say, training_keys


class Arguments(NamedTuple):
    """Arguments of a command, merged as `yolo` merges them.

    Attributes:
        values: The keys of the file given as cfg= that the command takes, and the command line's over them.
        recipe: All keys of the file; empty without one.
        file: The file as the user has named it; None without one.
        unused: Training keys of the file that the command does not take.
    """

    values: dict[str, Any]
    recipe: dict[str, Any]
    file: Any
    unused: tuple[str, ...]

    def say_unused(self, chosen: Sequence[Arm] = ()) -> None:
        """Log the keys of the file without effect: those that the command does not take, or no loss here has."""
        used = {key for arm in chosen for key in arm.keys}
        of_no_loss = [key for key in given_keys(self.recipe) if chosen and key not in used]
        unused = list(dict.fromkeys((*self.unused, *of_no_loss)))
        if unused:
            say(f"not used from {self.file}: {', '.join(unused)}")


def merge(args: Mapping[str, Any], accepted: Collection[str]) -> Arguments:
    """Return the arguments of a command with those of the file that cfg= names.

    A key of the command line is checked by the command. A training key of the file that the command does not take is
    left out, so that one recipe serves training and all commands; a key that nobody knows stays, and is refused.
    User-defined losses are loaded where the command takes losses; elsewhere, a key of the file that nobody knows is
    taken for an option of one.

    Raises:
        LossPlugError: If the file cannot be read, or a user-defined loss not be loaded.
    """
    typed = dict(args)
    file = typed.pop("cfg", None)
    content = {} if file is None else read_cfg(file)
    unused = set(content).intersection(_known(content, typed, accepted)).difference(accepted)
    kept = {key: value for key, value in content.items() if key not in unused}
    return Arguments({**kept, **typed}, content, file, tuple(key for key in content if key in unused - typed.keys()))


def _known(content: Mapping[str, Any], typed: Mapping[str, Any], accepted: Collection[str]) -> Collection[str]:
    """Return the keys that are known to a training, all of those of a file whose losses are not loaded."""
    takes_losses = not {*NAMES}.isdisjoint(accepted)
    if takes_losses:
        load_user_losses({**content, **typed})
    return training_keys() if takes_losses or not names_reference(content) else content


def command_line(command: str, args: Mapping[str, Any]) -> str:
    """Return a command with its arguments, to paste into a shell."""
    values = {key: ",".join(map(str, v)) if isinstance(v, (list, tuple)) else v for key, v in args.items()}
    return " ".join([f"lossplug {command}", *(shlex.quote(f"{key}={value}") for key, value in values.items())])


def split_list(value: Any) -> list[Any]:
    """Return the values of a key that takes several: words between commas, or the elements of a list.

    >>> split_list("640, 960"), split_list([640]), split_list(640)
    (['640', '960'], [640], [640])
    """
    if isinstance(value, str):
        return [word.strip() for word in value.split(",")]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def whole_number(key: str, value: Any, least: int, most: Optional[int] = None) -> int:
    """Return the value of a key as a whole number.

    Raises:
        LossPlugError: If it is not a whole number, or too small or too large.
    """
    text = "" if isinstance(value, bool) else str(value).strip()
    if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
        limits = f", at least {least}" if most is None else f" from {least} to {most}"
        raise LossPlugError(f"{key}={value} must be a whole number{limits}.")
    return int(text)


def loss_keys(*others: str) -> frozenset[str]:
    """Return the keys of a command that shows losses: names, options, and some others."""
    return frozenset((*keys(), *others)) - COMMON | {*NAMES}


def refuse_task(args: Mapping[str, Any], *others: str) -> None:
    """Raise an error for a task that is neither one with horizontal boxes nor one of some others."""
    accepted = ("detect", "segment", "pose", *others)
    if args.get("task") not in (None, *accepted):
        raise LossPlugError(f"task={args['task']} cannot be used here; remove it, or give {', '.join(accepted)}.")


def refuse_keys_of_training(args: Mapping[str, Any], *others: str) -> None:
    """Raise an error for a key of ours that changes a training run, but no loss of a single box, and some others."""
    without_effect = {*COMMON.difference(NAMES), *others}
    for key, value in given_keys(args).items():
        if key in without_effect:
            raise LossPlugError(f"{key}={value} has no effect here, only in training; remove it.")

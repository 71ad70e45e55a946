# SPDX-License-Identifier: AGPL-3.0-or-later
"""Our keys in the configuration of Ultralytics: known everywhere, checked before data or model are loaded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolo_lossplug.registry import BOX, CLASS, REGISTRY, LossPlugError, Spec
from yolo_lossplug.selection.keys import COMMON, NAMES, NUMBERS, given_keys, instead_of, keys, refuse_none
from yolo_lossplug.selection.names import suggest
from yolo_lossplug.selection.own import load_own
from yolo_lossplug.selection.select import refuse_unknown_names, select

TRAINING = "train"
FOREIGN_FAMILIES = {"rtdetr": "RT-DETR", "-world": "YOLO-World", "yoloe": "YOLOE"}
"""What Ultralytics looks for in a file name, and the family it takes the model for."""


def register_own(custom: dict[str, Any], *bases: dict[str, Any]) -> None:
    """Load the user's own losses that the arguments name, so that their options are keys when keys are checked.

    Args:
        custom: What the user gave.
        *bases: Configurations that should know the keys.

    Raises:
        LossPlugError: If one cannot be loaded.
    """
    if (custom.get("mode") or TRAINING) == TRAINING and not custom.get("resume"):
        refuse_unknown_names(custom)  # first, or the host would complain about an option of a loss that nobody knows
    for key, kind in (("loss", BOX), ("cls_loss", CLASS)):
        name = custom.get(key)
        if isinstance(name, str) and ":" in name:
            spec = load_own(name.strip(), kind)
            for base in bases:
                for parameter in spec.parameters.values():
                    base.setdefault(parameter.key, parameter.unset)


def know(custom: dict[str, Any], base: dict[str, Any]) -> None:
    """Let a configuration know those of our keys that are given, as that of a predictor that is asked again."""
    for key, value in keys().items():
        if key in custom:
            base.setdefault(key, value)


def check_given(base: dict[str, Any], custom: dict[str, Any]) -> None:
    """Check what the user gave on the command line, before the model is built or downloaded.

    Args:
        base: The defaults.
        custom: What the user gave.

    Raises:
        LossPlugError: If a value is wrong, or has no effect in this mode or on this model.
    """
    given = given_keys(custom)
    if not given:
        return
    mode = str(custom.get("mode") or base.get("mode"))
    if mode != TRAINING:
        refuse_keys_of_training(mode, given)
        return
    if custom.get("resume"):
        return  # the checkpoint decides; the trainer says so
    task, family = guess_model(custom)
    if family:
        key, value = next((key, custom[key]) for key in custom if key in given)
        raise LossPlugError(
            f"{key}={value} cannot be used with model={custom['model']}: {family} has a loss of its own."
        )
    selection = select({**base, **custom, "task": task})
    if selection.loss_engine == "triton":
        from yolo_lossplug.ultralytics_hook.engines.choice import why_no_kernels

        why = why_no_kernels(selection.loss_engine, custom.get("device", base.get("device")))
        if why:
            raise LossPlugError(why)


def refuse_unknown(given: dict[str, Any]) -> None:
    """Check that Ultralytics or we know every key, as `yolo` does; losses of the user's own are loaded.

    Raises:
        LossPlugError: If a key is unknown.
    """
    from ultralytics.utils import DEFAULT_CFG_DICT

    register_own(given)
    known = [*DEFAULT_CFG_DICT, *keys()]
    for key, value in given.items():
        if key not in known:
            raise LossPlugError(f"{key}={value} is unknown.{instead_of(key, value) or suggest(key, known)}")


def refuse_keys_of_training(mode: str, given: dict[str, Any]) -> None:
    """Check what the user gave to another mode than training.

    Raises:
        LossPlugError: If a key of ours is among it.
    """
    ours = given_keys(given)
    for key, value in given.items():
        if key not in ours:
            continue
        if key == "nms_iou" and mode in ("export", "benchmark"):
            raise LossPlugError(
                f"nms_iou={value} has no effect with mode={mode}: an exported model brings a suppression of its own, "
                f"or none. Remove it."
            )
        if key != "nms_iou":
            raise LossPlugError(f"{key}={value} has no effect with mode={mode}: it is a key of training. Remove it.")


def check_merged(cfg: dict[str, Any]) -> None:
    """Check merged arguments, if they are those of a training run.

    Raises:
        LossPlugError: If a value is wrong or has no effect.
    """
    if (cfg.get("mode") or TRAINING) == TRAINING and not cfg.get("resume"):
        select(cfg)


def guess_model(custom: dict[str, Any]) -> tuple[str, str]:
    """Return the task, and the family if it is one with another criterion, as far as arguments and file name tell."""
    from ultralytics.cfg import TASK2MODEL

    model = custom.get("model")
    stem = Path(model).stem.lower() if isinstance(model, (str, Path)) else ""
    family = next((name for part, name in FOREIGN_FAMILIES.items() if part in stem), "")
    suffixes = {Path(name).stem.partition("-")[2]: task for task, name in TASK2MODEL.items()}
    if isinstance(model, (str, Path)) and Path(model).suffix == ".pt" and Path(model).is_file():
        suffixes = {}  # the checkpoint knows its task, whatever its name
    guessed = next((task for suffix, task in suffixes.items() if suffix and stem.endswith(f"-{suffix}")), "detect")
    return custom.get("task") or guessed, family


def add_keys(defaults: dict[str, Any], namespace: Any) -> None:
    """Add our keys to Ultralytics' defaults, in place: other modules hold the same objects."""
    for key, value in keys().items():
        defaults.setdefault(key, value)
        if not hasattr(namespace, key):
            setattr(namespace, key, value)


def settle_space(tuner: Any) -> None:
    """Give the keys that a tuner varies the values they start from: it cannot vary what is not given.

    Args:
        tuner: A new tuner of Ultralytics.

    Raises:
        LossPlugError: If a key has no effect with the losses that are chosen, or takes a name.
    """
    args, unset = vars(tuner.args), keys()
    parameters = {**REGISTRY.parameters(), **NUMBERS}
    for key in tuner.space:
        if key in COMMON and key not in NUMBERS:
            raise LossPlugError(f"{key} cannot be tuned: it is not a number. Train once with each value instead.")
        if key in parameters and args.get(key) == unset[key]:
            args[key] = parameters[key].default
    select(args)


def key_adder(defaults: dict[str, Any], namespace: Any) -> Any:
    """Return an observer that adds the keys of a loss registered later."""

    def add(spec: Spec) -> None:
        add_keys(defaults, namespace)

    return add


def remove_keys(defaults: dict[str, Any], namespace: Any) -> None:
    """Take our keys out of Ultralytics' defaults."""
    for key in keys():
        defaults.pop(key, None)
        vars(namespace).pop(key, None)


def point_to_ours(base: dict[str, Any], custom: dict[str, Any]) -> None:
    """Name the key of ours for a key of older YOLOs that this release has dropped, or has never had.

    Args:
        base: Keys that Ultralytics knows.
        custom: What the user gave.

    Raises:
        LossPlugError: If Ultralytics would refuse the key.
    """
    for key, value in custom.items():
        hint = "" if key in base else instead_of(key, value)
        if not hint:
            continue
        if not _is_dropped(key):
            raise LossPlugError(f"{key}={value} is unknown.{hint}.")
        if value and (custom.get("mode") or TRAINING) == TRAINING:
            from yolo_lossplug.ultralytics_hook.console import warn_once

            warn_once(f"{key}={value} has no effect in this release of Ultralytics.{hint}.")


def _is_dropped(key: str) -> bool:
    """Return whether Ultralytics drops a key with a warning, as it does with keys of its past."""
    from ultralytics import cfg

    from yolo_lossplug.ultralytics_hook.console import quiet

    handle = getattr(cfg, "_handle_deprecation", dict)
    with quiet():
        return key not in handle({key: 0.0})


def refuse_typed_none(lines: Sequence[str]) -> None:
    """Raise an error for `loss=none` on the command line, which would train stock without a word.

    Args:
        lines: Command lines; the words of this process if there is none.

    Raises:
        LossPlugError: If a name is typed as none, unless all are: programs, as Ultralytics' tuner, give every key.
    """
    words = " ".join(lines).split() or sys.argv[1:]
    pairs = dict(word.lstrip("-").split("=", 1) for word in words if "=" in word)
    if not NAMES.keys() <= pairs.keys():
        for key, value in pairs.items():
            refuse_none(key, None if value.lower() == "none" else value)

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Our keys in the configuration of Ultralytics: known everywhere, checked before data or model are loaded.

Imported while Ultralytics is, and so this module imports nothing of it before a function is called.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any, Callable

from yolo_lossplug.registry import BOX, CLASS, REGISTRY, LossPlugError
from yolo_lossplug.selection.keys import CLAIMED, COMMON, MIX, given_keys, instead_of, keys
from yolo_lossplug.selection.names import suggest
from yolo_lossplug.selection.own import load_references, names_reference
from yolo_lossplug.selection.regions import ANNOTATED, IGNORE
from yolo_lossplug.selection.select import Selection, refuse_unknown_names, select
from yolo_lossplug.ultralytics_hook import typed
from yolo_lossplug.ultralytics_hook.family import guess_model, refuse_per_class, with_guessed_task
from yolo_lossplug.ultralytics_hook.patching import Undo
from yolo_lossplug.ultralytics_hook.run.making import is_making, is_settled
from yolo_lossplug.ultralytics_hook.unknown import ALLOWED, point_to_ours

TRAINING = "train"
USED = {"val": ("nms_iou", IGNORE, ANNOTATED), "predict": ("nms_iou",), "track": ("nms_iou",)}
"""Keys of ours that have an effect in other modes."""


def register_own(custom: dict[str, Any]) -> None:
    """Load the user-defined losses that the arguments of a training name, so that the key check knows their options."""
    if (custom.get("mode") or TRAINING) != TRAINING:
        return  # no other mode has a use for them
    if not custom.get("resume"):
        refuse_unknown_names(custom)  # first, or the host would complain about an option of a loss that nobody knows
    for key, kind in (("loss", BOX), ("cls_loss", CLASS)):
        name = custom.get(key)
        if key not in CLAIMED and isinstance(name, str) and ":" in name:
            load_references(name, kind)


def check_given(base: dict[str, Any], custom: dict[str, Any]) -> None:
    """Check what the user gave on the command line, before the model is built or downloaded.

    Raises:
        LossPlugError: If a value is wrong, or has no effect in this mode or on this model.
    """
    if custom.get("resume") or not given_keys(custom):  # of a resumed run the checkpoint decides; the trainer says so
        return
    task, family = guess_model(custom)
    refuse_per_class(custom, family)
    selection = select({**base, **custom, "task": task})
    _refuse_unfit_release(selection)
    if selection.loss_engine == "triton":
        from yolo_lossplug.ultralytics_hook.engines.choice import why_no_kernels

        if why := why_no_kernels(selection.loss_engine, custom.get("device", base.get("device"))):
            raise LossPlugError(why)


def refuse_unknown_keys(given: dict[str, Any]) -> None:
    """Check that Ultralytics or we know every key, as `yolo` does; user-defined losses are loaded.

    Raises:
        LossPlugError: If a key is unknown.
    """
    from ultralytics.utils import DEFAULT_CFG_DICT

    register_own(given)
    known = [*DEFAULT_CFG_DICT, *keys()]
    for key, value in given.items():
        if key not in known:
            raise LossPlugError(f"{key}={value} is unknown.{instead_of(key, value) or suggest(key, known)}")


def refuse_training_keys(mode: str, given: dict[str, Any]) -> None:
    """Check what the user gave to another mode than training.

    Raises:
        LossPlugError: If keys of ours without effect in this mode are among it; it names all of them.
    """
    if not (useless := keys_without_effect(mode, given)):
        return
    many, n_training = len(useless) > 1, len(useless.keys() - {"nms_iou"})
    why = [f"{'they are keys' if n_training > 1 else 'it is a key'} of training"] if n_training else []
    why += ["an exported model has its own NMS, or none"] if "nms_iou" in useless else []
    raise LossPlugError(
        f"{_listed(useless)} {'have' if many else 'has'} no effect with mode={mode}: {', and '.join(why)}. "
        f"Remove {'them' if many else 'it'}."
    )


def keys_without_effect(mode: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return those keys of ours, with their values, that have no effect in another mode than training."""
    ours, used = given_keys(given), USED.get(mode, ())
    return {key: ours[key] for key in given if key in ours and key not in used}


def drop_keys_of_file(mode: str, base: Collection[str], custom: dict[str, Any]) -> None:
    """Leave out, in place, keys without effect that come from the file that `cfg=` names, and say so.

    Such a file is that of a training, `args.yaml`; what is typed is refused, since it is meant. If it names a
    user-defined loss, what nobody knows are options of it: it is not loaded.
    """
    words = typed.words()
    if "cfg" not in words:
        return
    useless = keys_without_effect(mode, custom)
    if names_reference(custom):
        known = {*base, *keys(), *ALLOWED}
        useless.update({key: value for key, value in custom.items() if key not in known})
    if dropped := {key: custom.pop(key) for key in useless if key not in words}:
        from yolo_lossplug.ultralytics_hook.console import say

        say(f"ignored from cfg=: mode={mode} does not use training keys ({_listed(dropped)}).")


def _listed(given: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in given.items())


def check_merged(cfg: dict[str, Any]) -> None:
    """Check merged arguments, if they are those of a training run.

    Raises:
        LossPlugError: If a value is wrong or has no effect.
    """
    if (cfg.get("mode") or TRAINING) == TRAINING and not cfg.get("resume"):
        _refuse_unfit_release(select(with_guessed_task(cfg)))


def _refuse_unfit_release(selection: Selection) -> None:
    """Raise an error for a key that this release of Ultralytics has no use for."""
    if selection.tal_min_side is not None:
        from yolo_lossplug.ultralytics_hook.min_side import refuse_min_side

        refuse_min_side(selection)


def add_keys(defaults: dict[str, Any]) -> Undo:
    """Add our keys to Ultralytics' defaults, in place, and return the undo.

    Options of user-defined losses are known where they are given, and not among the defaults: the host hands these on,
    unset, to processes that have not loaded the loss. A key that Ultralytics has itself, as a fork may, keeps its
    meaning, and is no key of ours.
    """
    CLAIMED.update({*COMMON, MIX.key} & defaults.keys())
    options = REGISTRY.parameters().keys() & defaults.keys()
    REGISTRY.reserve(defaults)
    if CLAIMED or options:
        say_claimed(options)

    ours = {key for spec in REGISTRY if not spec.is_user_defined for key in spec.parameters}
    foreign = REGISTRY.parameters().keys() - ours
    added = {key: value for key, value in keys().items() if key not in foreign}
    holders = defaults, vars(sys.modules["ultralytics.utils"].DEFAULT_CFG)
    for holder in holders:
        holder.update({**added, **holder})

    def undo() -> None:
        REGISTRY.reserve(())
        for holder in holders:
            for key in added:
                holder.pop(key, None)
        CLAIMED.clear()

    return undo


def say_claimed(options: Collection[str]) -> None:
    """Say which keys this Ultralytics has itself, options of losses among them, which are left out with them."""
    names = ", ".join(sorted({*CLAIMED, *options}))
    sys.modules["ultralytics.utils"].LOGGER.warning(
        f"LossPlug: this Ultralytics has keys of its own named {names}; they keep its meaning, and those of "
        f"yolo-lossplug are not available. `lossplug doctor` says more."
    )


def without_keys(stock: dict[str, Any]) -> dict[str, Any]:
    """Return defaults without our keys."""
    return {key: value for key, value in stock.items() if key not in keys()}


# Wrappers around functions of the host.


def check_dict_alignment(
    stock: Callable[..., None], base: dict[str, Any], custom: dict[str, Any], *args: Any, **kwargs: Any
) -> None:
    """Check what was typed, names before values, as soon as the command line has read it."""
    mode = str(custom.get("mode") or base.get("mode")) if TRAINING in base else None  # names of modes: typed
    if mode not in (None, TRAINING):
        drop_keys_of_file(mode, base, custom)
        refuse_training_keys(mode, custom)
    register_own(custom)
    point_to_ours(base, custom)
    stock({**keys(), **base}, custom, *args, **kwargs)
    if mode == TRAINING:
        check_given(base, custom)


def check_cfg(stock: Callable[..., None], cfg: dict[str, Any], *args: Any, **kwargs: Any) -> None:
    """Check a configuration; that of a trainer is checked where it is settled."""
    stock(cfg, *args, **kwargs)
    if not is_making() and not is_settled(cfg):
        check_merged(cfg)


def in_mode(stock: Callable[..., Any], mode: str, model: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Run another mode than training, with those keys of ours that matter there."""
    refuse_training_keys(mode, kwargs)
    from yolo_lossplug.ultralytics_hook import nms  # which imports Ultralytics: see the first line of this module

    nms.check_overlap(model, mode, kwargs)
    return stock(model, *args, **kwargs)


def check_multi_trainer(stock: Callable[..., None], trainer: Any, *args: Any, **kwargs: Any) -> None:
    """Make what trains on several datasets, and check what all its runs train with."""
    stock(trainer, *args, **kwargs)
    register_own(trainer.args)
    check_merged(trainer.args)

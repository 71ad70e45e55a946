# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a trainer does with our keys: checks them, records them, shows them, and makes sure that they run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import ultralytics
from ultralytics.utils import LOGGER, RANK

import yolo_lossplug
from yolo_lossplug.registry import ROTATED, LossPlugError
from yolo_lossplug.selection.keys import (
    CLASSIFY,
    NAMES,
    REPORT,
    STOCK_BOX,
    STOCK_CLASS,
    STOCK_ROTATED,
    given_keys,
    keys,
)
from yolo_lossplug.selection.select import Selection, class_weights, select
from yolo_lossplug.ultralytics_hook import compatibility, patches, report
from yolo_lossplug.ultralytics_hook.console import PREFIX
from yolo_lossplug.ultralytics_hook.criterion import arguments, class_names, is_plugged, leaves, plug, self_test
from yolo_lossplug.ultralytics_hook.engines import choice
from yolo_lossplug.ultralytics_hook.run import memory

FOREIGN = (
    ("ultralytics.models.rtdetr", "RT-DETR matches queries to objects and has no box loss of this kind"),
    ("ultralytics.models.yolo.world", "YOLO-World trains on text prompts"),
    ("ultralytics.models.yolo.yoloe", "YOLOE trains on prompts"),
)
"""Modules of trainers whose criterion is another one, and why."""


def settle(args: Any) -> Any:
    """Write the resolved choice into a trainer's arguments, and take our keys out of those of a stock run.

    Args:
        args: Merged arguments of a trainer, or those of the checkpoint that it resumes.

    Returns:
        The arguments.

    Raises:
        LossPlugError: If the choice is wrong.
    """
    values = vars(args)
    if values.get("resume"):
        return args  # those of the checkpoint come next
    selection = select(values)
    for key in keys():
        values.pop(key, None)
    values.update(selection.resolved())
    return args


def check(trainer: Any, overrides: dict[str, Any]) -> None:
    """Check what a new trainer trains with, before it loads anything.

    Args:
        trainer: A trainer whose arguments are final.
        overrides: What the user gave.

    Raises:
        LossPlugError: If it cannot be used with this trainer.
    """
    selection = select(vars(trainer.args))
    if selection.is_active:
        refuse_foreign_trainer(type(trainer), given_keys(overrides or {}) or selection.given)
    why = choice.why_no_kernels(selection.loss_engine, trainer.args.device)
    if why and not trainer.args.resume:
        raise LossPlugError(why)
    if why:  # a run that began elsewhere
        LOGGER.warning(f"{PREFIX}{why} This run goes on with loss_engine={choice.AUTO}.")
        trainer.args.loss_engine = choice.AUTO
    if trainer.args.resume:
        _warn_of_ignored(overrides, selection)
        for key in keys().keys() - selection.resolved().keys():
            vars(trainer.args).pop(key, None)


def refuse_foreign_trainer(trainer: type, given: Iterable[str]) -> None:
    """Raise an error if a trainer's criterion has no place for our losses.

    Raises:
        LossPlugError: If it has none.
    """
    for cls in trainer.__mro__:
        for module, reason in FOREIGN:
            if cls.__module__ == module or cls.__module__.startswith(f"{module}."):
                raise LossPlugError(
                    f"{', '.join(sorted(given))} cannot be used with {trainer.__name__}: {reason}. Remove it."
                )


_selections: WeakKeyDictionary[Any, Selection] = WeakKeyDictionary()


def selection_of(trainer: Any) -> Selection:
    """Return what a trainer trains with; it was settled when the trainer was made."""
    return _selections.get(trainer) or select(vars(trainer.args))


def banner(selection: Selection, engine_name: str) -> str:
    """Return the line that says what runs."""
    cls = f"class {selection.cls}"
    if selection.cls_smoothing:
        cls += f" smoothing={selection.cls_smoothing}"
    if selection.cls_weights:
        cls += f" weights={selection.cls_weights}"
    parts = [cls]
    if selection.task != CLASSIFY:
        overlap = STOCK_ROTATED if selection.box.kind == ROTATED else selection.tal_iou
        numbers = f"topk={selection.tal_topk}, alpha={selection.tal_alpha}, beta={selection.tal_beta}, iou={overlap}"
        parts = [f"box {selection.box}", cls, f"assigner tal({numbers})"]
        if selection.nms_iou != NAMES["nms_iou"]:
            parts.append(f"nms {selection.nms_iou}")
        if selection.report:
            parts.append(f"report {report.FILE}")
    return " · ".join([*parts, f"engine {engine_name}", f"ultralytics {ultralytics.__version__}"])


def engine_name(selection: Selection, model: Any) -> str:
    """Return the engine that a model's criterion runs, and why if it is not the fast one."""
    if selection.task == CLASSIFY:
        return choice.REFERENCE
    return choice.description(selection.loss_engine, model.model[-1], next(model.parameters()).device)


def announce(trainer: Any) -> None:
    """Callback before training: reach a model class of the user's own, and print the banner on the first rank."""
    selection = selection_of(trainer)
    if not selection.is_active:
        return
    for model in (_unwrap(trainer.model), getattr(trainer.ema, "ema", None)):
        if model is not None and not hasattr(model, "args"):  # the trainer of classify does not hand them on
            model.args = trainer.args
    if yolo_lossplug.is_enabled():
        patches.wrap_model_class(type(_unwrap(trainer.model)))
    if "nc" in trainer.data:  # a wrong name or number is reported before the first batch
        class_weights(selection, trainer.data["nc"], class_names(_unwrap(trainer.model)))
    if RANK in {-1, 0}:
        warn_of_release(ultralytics.__version__)
        LOGGER.info(f"{PREFIX}{banner(selection, engine_name(selection, _unwrap(trainer.model)))}")


TOLERANCE = 1e-4
_warned: set[str] = set()


def warn_of_release(version: str) -> None:
    """Say once that a release is newer than those that were tested, if what we rely on computes what it should.

    Raises:
        LossPlugError: If it does not.
    """
    if version in _warned or not compatibility.is_untested(version):
        return
    error, newest = self_test(), ".".join(map(str, compatibility.TESTED))
    if not error < TOLERANCE:
        raise LossPlugError(
            f"ultralytics {version} computes another box loss than yolo-lossplug expects (off by {error:.0e}): a loss "
            f"of ours would not be what it says. Install ultralytics=={newest}, or a newer yolo-lossplug."
        )
    _warned.add(version)
    LOGGER.warning(
        f"{PREFIX}ultralytics {version} is newer than {newest}, the newest release that yolo-lossplug was tested with. "
        f"What it relies on is there, and computes what it should."
    )


def guard(trainer: Any) -> None:
    """Callback after a batch and after an epoch: stop a run that does not train, or validate, with what was asked for.

    Raises:
        LossPlugError: If the criterion of the model, or of its moving average, is another one.
    """
    selection = selection_of(trainer)
    if not selection.is_active:
        return
    averaged = getattr(trainer.ema, "ema", None)
    for role, model in (("training", trainer.model), ("validation", averaged)):
        criterion = getattr(_unwrap(model), "criterion", None)
        if criterion is None and role == "validation":
            continue  # the moving average makes its criterion at the first validation
        if not is_plugged(criterion, selection):
            found = ", ".join(sorted({describe(leaf) for leaf in leaves(criterion)})) or "no box loss"
            box = "" if selection.task == CLASSIFY else f"loss={selection.box.name} "
            raise LossPlugError(
                f"{box}cls_loss={selection.cls.name} was requested, but {role} runs "
                f"{type(criterion).__name__} with {found}. The run is stopped. Something has replaced the criterion "
                f"of the model, or made it by hand: remove that, or the keys of the run."
            )


def describe(leaf: Any) -> str:
    """Return what a criterion runs as its box loss."""
    return f"box loss {leaf.bbox_loss.loss}" if hasattr(leaf.bbox_loss, "loss") else type(leaf.bbox_loss).__name__


CALLBACKS = (
    ("on_pretrain_routine_end", memory.check),
    ("on_pretrain_routine_end", announce),
    ("on_train_epoch_start", memory.count_epoch),
    ("on_train_epoch_start", report.start_epoch),
    ("on_train_batch_end", guard),
    ("on_train_batch_end", memory.commit),
    ("on_train_epoch_end", report.end_epoch),
    ("on_fit_epoch_end", guard),
    ("on_fit_epoch_end", report.hide),
    ("teardown", memory.end),
    ("teardown", report.end),
)
FIRST = (("on_fit_epoch_end", report.show), ("on_train_end", report.draw))
"""Callbacks that go before those of the loggers."""


def join(trainer: Any) -> None:
    """Give a trainer our callbacks, once, and its run a memory."""
    selection = _selections[trainer] = select(vars(trainer.args))
    if selection.is_active:
        memory.begin(trainer)
        patches.wrap_own_save_model(trainer)
    report.begin(trainer, selection.report)
    for event, callback in (*CALLBACKS, *FIRST):
        callbacks = trainer.callbacks.setdefault(event, [])
        if callback in callbacks:  # of the run before, whose loggers may be fewer
            callbacks.remove(callback)
        callbacks.insert(0 if (event, callback) in FIRST else len(callbacks), callback)


WRAPPERS = ("module", "_orig_mod", "student_model")
"""Attributes under which a model holds the one that is trained."""


def models_with_criterion(model: Any) -> list[Any]:
    """Return a model, and the student inside it if it distils, where either holds a criterion."""
    candidates = (model, getattr(model, "student_model", None))
    return [m for m in candidates if m is not None and "criterion" in vars(m)]


def init_criterion(stock: Any, model: Any) -> Any:
    """Return the criterion that a model makes, with our losses in it."""
    args = arguments(model)
    return plug(stock(model), select(args), memory.state_of(args), class_names(model), report.collector_of(args))


def _unwrap(model: Any) -> Any:
    """Return the model inside a distributed or compiled one, or one that it is distilled into."""
    while model is not None and "criterion" not in vars(model):
        inner = next((m for name in WRAPPERS if (m := getattr(model, name, None)) is not None), None)
        if inner is None:
            break
        model = inner
    return model


def _warn_of_ignored(overrides: dict[str, Any], selection: Selection) -> None:
    resolved = {"loss": STOCK_BOX, "cls_loss": STOCK_CLASS, REPORT: False, **selection.resolved()}
    for key, value in given_keys(overrides or {}).items():
        if value != resolved.get(key):
            LOGGER.warning(
                f"{PREFIX}{key}={value} is ignored: a resumed run goes on with {key}={resolved.get(key)}. "
                f"Start a new run to change it."
            )

# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a trainer does with our keys: checks them, records them, shows them, and makes sure that they run."""

from __future__ import annotations

import functools
from typing import Any, Callable

import ultralytics
from ultralytics.utils import RANK

import yolo_lossplug
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import REPORT, STOCK_BOX, STOCK_CLASS, given_keys, keys
from yolo_lossplug.selection.regions import by_index
from yolo_lossplug.selection.select import Selection, class_weights, select
from yolo_lossplug.ultralytics_hook import compatibility, nms, patching
from yolo_lossplug.ultralytics_hook.console import bold, say, warn
from yolo_lossplug.ultralytics_hook.criterion import arguments, class_names, plug
from yolo_lossplug.ultralytics_hook.engines import choice
from yolo_lossplug.ultralytics_hook.family import prompted_trainer, refuse_per_class, refuse_visual_prompts, with_task
from yolo_lossplug.ultralytics_hook.members import box_loss_error
from yolo_lossplug.ultralytics_hook.min_side import refuse_min_side
from yolo_lossplug.ultralytics_hook.regions import share
from yolo_lossplug.ultralytics_hook.run import finite, making, memory, report, runs
from yolo_lossplug.ultralytics_hook.running import TOLERANCE, banner, mismatches, running_first


def get_cfg(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Merge the arguments of a trainer, with the resolved choice, or without our keys for a stock run.

    Raises:
        LossPlugError: If the choice is wrong.
    """
    merged = stock(*args, **kwargs)
    values = vars(merged)
    if not values.get("resume"):  # or those of the checkpoint come next
        selection = making.selected(values, is_final=True)
        for key in keys():
            values.pop(key, None)
        values.update(selection.resolved())
    return merged


def check_resume(stock: Callable[..., None], trainer: Any, overrides: dict[str, Any]) -> None:
    """Resume a run, if that was asked for, and check what the trainer trains with, before it loads anything."""
    ours = keys()  # the host would say that it ignores them, and not what the run goes on with, as we do
    stock(trainer, overrides and {key: value for key, value in overrides.items() if key not in ours})
    check_trainer(trainer, overrides)


def check_trainer(trainer: Any, overrides: dict[str, Any]) -> None:
    """Check what a new trainer, whose arguments are final, trains with.

    Raises:
        LossPlugError: If it cannot be used with this trainer.
    """
    selection = making.selected(vars(trainer.args))
    if selection.is_active:
        refuse_visual_prompts(type(trainer), given_keys(overrides or {}) or selection.given)
        refuse_per_class(vars(trainer.args), prompted_trainer(type(trainer)))
        refuse_min_side(selection)
    why = choice.why_no_kernels(selection.loss_engine, trainer.args.device)
    if why and not trainer.args.resume:
        raise LossPlugError(why)
    if why:  # a run that began elsewhere
        warn(f"{why} This run goes on with loss_engine={choice.AUTO}.")
        trainer.args.loss_engine = choice.AUTO
        selection = making.selected(vars(trainer.args), is_final=True)
    if trainer.args.resume:
        _warn_of_ignored(overrides, selection)
        for key in keys().keys() - selection.resolved().keys():
            vars(trainer.args).pop(key, None)


def announce(trainer: Any) -> None:
    """Callback before training: reach a user-defined model class, and print the banner on the first rank."""
    run = runs.of(trainer)
    selection = run.selection
    if not selection.is_active:
        if run.rules and RANK in {-1, 0}:
            say(share.silence_in_words(run.rules, trainer.train_loader.dataset))
        return
    model = unwrapped(trainer.model)
    for module in (model, getattr(trainer.ema, "ema", None)):
        if module is not None and not hasattr(module, "args"):  # the trainer of classify does not hand them on
            module.args = trainer.args
    wrap_model_class(type(model))
    nms.check_training(model, selection.nms_iou, vars(trainer.args))
    if RANK in {-1, 0}:
        warn_of_release(ultralytics.__version__)
        # One that is there already is that of a resumed run; else the first batch makes one like this.
        criterion = getattr(model, "criterion", None) or model.init_criterion()
        parts = [banner(selection, criterion, bold)]
        parts += [bold(share.silence_in_words(run.rules, trainer.train_loader.dataset))] if run.rules else []
        say(" · ".join(parts))


def wrap_model_class(cls: type) -> None:
    """Wrap `init_criterion` where a model class that somebody has written outside Ultralytics overrides it."""
    for owner in cls.__mro__ if yolo_lossplug.is_enabled() else ():
        if "init_criterion" in vars(owner) and not patching.is_ours(vars(owner)["init_criterion"]):
            patching.apply_change(patching.around("trainer.init_criterion"), owner, "init_criterion")


_warned: set[str] = set()


def warn_of_release(version: str) -> None:
    """Say once that a release is newer than those that were tested, if what we rely on computes what it should.

    Raises:
        LossPlugError: If it does not.
    """
    if version in _warned or compatibility.version_numbers(version) <= compatibility.TESTED:
        return
    error, newest = box_loss_error(), ".".join(map(str, compatibility.TESTED))
    if not error < TOLERANCE:
        raise LossPlugError(
            f"ultralytics {version} computes another box loss than yolo-lossplug expects (off by {error:.0e}): a loss "
            f"of ours would not be what it says. Install ultralytics=={newest}, or a newer yolo-lossplug."
        )
    _warned.add(version)
    warn(
        f"ultralytics {version} is newer than {newest}, the newest release that yolo-lossplug was tested with. "
        f"What it relies on is there, and computes what it should."
    )


def guard(trainer: Any) -> None:
    """Callback after a batch and after an epoch: stop a run that does not train, or validate, with what was asked for.

    Raises:
        LossPlugError: If the criterion of the model, or of its moving average, is another one.
    """
    selection = runs.of(trainer).selection
    if not selection.is_active:
        return
    for role, model in (("training", trainer.model), ("validation", getattr(trainer.ema, "ema", None))):
        if (criterion := getattr(unwrapped(model), "criterion", None)) is None and role == "validation":
            continue  # the moving average makes its criterion at the first validation
        if wrong := mismatches(criterion, selection, role):
            raise LossPlugError(
                f"{'; '.join(dict.fromkeys(wrong))}. The run is stopped. A callback, trainer or patch changed the "
                f"criterion ({type(criterion).__name__}). Remove it, or remove the yolo-lossplug keys."
            )


def check_memory(trainer: Any) -> None:
    """Callback before training: what the losses remember is that of the checkpoint, or they start anew."""
    if (run := runs.of(trainer)).selection.is_active:
        memory.check_epoch(run.state, trainer)


def start_epoch(trainer: Any) -> None:
    """Callback at the start of an epoch, which may be one that is begun again."""
    run = runs.of(trainer)
    run.state.epoch, run.state.epochs = trainer.epoch, trainer.epochs
    run.terms.start()


def end_batch(trainer: Any) -> None:
    """Callback after a batch, on every rank: commit the state, and look for NaN, which a GPU tells after the epoch."""
    run = runs.of(trainer)
    if run.selection.is_active and not run.terms.is_done and trainer.loss_items is not None:
        items = finite.flat_terms(trainer.loss_items)
        run.terms.add(items)
        if items.device.type == "cpu":  # elsewhere the host would have to wait
            warn_of_nan(trainer)
    run.state.commit()


def warn_of_nan(trainer: Any) -> None:
    """Callback after an epoch, before the host looks whether it can recover."""
    run = runs.of(trainer)
    if not run.selection.is_active or run.terms.is_done or not run.terms.earliest()[1]:
        return
    actual = running_first(unwrapped(trainer.model).criterion) or {"cls_loss": run.selection.cls}
    finite.tell(run.terms, trainer.epoch, list(trainer.loss_names), actual)


CALLBACKS = (
    ("on_pretrain_routine_end", check_memory),
    ("on_pretrain_routine_end", announce),
    ("on_train_epoch_start", start_epoch),
    ("on_train_epoch_start", report.clear_counts),
    ("on_train_batch_end", guard),
    ("on_train_batch_end", end_batch),
    ("on_train_epoch_end", report.write_tables),
    ("on_train_epoch_end", warn_of_nan),
    ("on_fit_epoch_end", guard),
    ("on_fit_epoch_end", report.hide_values),
    ("teardown", runs.end),
)
FIRST = (("on_fit_epoch_end", report.show_values), ("on_train_end", report.draw_report))
"""Callbacks that go before those of the loggers."""


def make(stock: Callable[..., None], trainer: Any, *args: Any, **kwargs: Any) -> None:
    """Make a trainer, with a run and our callbacks."""
    with making.making(type(trainer)):
        stock(trainer, *args, **kwargs)
        check_classes(trainer)
        join(trainer)


def check_classes(trainer: Any) -> None:
    """Check class weights against the classes of the data of a new trainer, before its model is built.

    Raises:
        LossPlugError: If there are more or fewer, or a name is that of no class.
    """
    if isinstance(data := getattr(trainer, "data", None), dict) and "nc" in data:
        class_weights(making.selected(vars(trainer.args)), data["nc"], by_index(data.get("names")))


def join(trainer: Any) -> None:
    """Give a trainer a run, and our callbacks, once."""
    run = runs.begin(trainer)
    if run.selection.is_active or run.rules:
        keep_criterion_out(trainer)
    for event, callback in (*CALLBACKS, *FIRST):
        callbacks = trainer.callbacks.setdefault(event, [])
        if callback in callbacks:  # of the run before, whose loggers may be fewer
            callbacks.remove(callback)
        callbacks.insert(0 if (event, callback) in FIRST else len(callbacks), callback)


def init_criterion(stock: Callable[..., Any], model: Any) -> Any:
    """Return the criterion that a model makes, with our losses in it."""
    args = with_task(arguments(model), type(model))
    if not given_keys(args):
        return stock(model)
    run, names = runs.find(args), class_names(model)
    if run is None:  # by hand, or after training
        return plug(stock(model), select(args), names=names)
    is_settled = run.selection.resolved() == given_keys(args)  # a callback may have changed the arguments: see `guard`
    return plug(stock(model), run.selection if is_settled else select(args), run.state, names, run.collector)


def save_model(stock: Callable[..., Any], trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """Write a checkpoint without the criterion in it, and beside it what the losses remember."""
    ema = trainer.ema.ema
    models = [m for m in (ema, getattr(ema, "student_model", None)) if m is not None and holds_criterion(m)]
    criteria = [model.criterion for model in models]
    for model in models:
        del model.criterion
    try:
        saved = stock(trainer, *args, **kwargs)
    finally:
        for model, criterion in zip(models, criteria):
            model.criterion = criterion
    run = runs.of(trainer)
    memory.save_state(run.state, run.selection, trainer)
    return saved


def keep_criterion_out(trainer: Any) -> None:
    """Keep the criterion out of what a user-defined trainer class writes in place of the host's checkpoints."""
    own = type(trainer).save_model
    if not patching.is_ours(own):
        trainer.save_model = functools.partial(save_model, own, trainer)


def holds_criterion(model: Any) -> bool:
    """Return whether a model itself holds a criterion; that of RT-DETR is a module, and so a part of the model."""
    return any("criterion" in held for held in (vars(model), vars(model).get("_modules", {})))


def unwrapped(model: Any) -> Any:
    """Return the model inside a distributed or compiled one, or one that it is distilled into."""
    while model is not None and not holds_criterion(model):
        holders = ("module", "_orig_mod", "student_model")
        if (inner := next((m for name in holders if (m := getattr(model, name, None)) is not None), None)) is None:
            break
        model = inner
    return model


def _warn_of_ignored(overrides: dict[str, Any], selection: Selection) -> None:
    resolved = {"loss": STOCK_BOX, "cls_loss": STOCK_CLASS, REPORT: False, **selection.resolved()}
    ignored = {key: value for key, value in given_keys(overrides or {}).items() if value != resolved.get(key)}
    if ignored:
        asked = ", ".join(f"{key}={value}" for key, value in ignored.items())
        kept = ", ".join(f"{key}={resolved.get(key)}" for key in ignored)
        warn(
            f"{asked} {'are' if len(ignored) > 1 else 'is'} ignored: a resumed run goes on with {kept}. "
            f"Start a new run to change {'them' if len(ignored) > 1 else 'it'}."
        )

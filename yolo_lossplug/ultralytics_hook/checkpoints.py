# SPDX-License-Identifier: AGPL-3.0-or-later
"""Checkpoints hold nothing of ours: the criterion is kept out of them, and what losses remember is saved beside."""

from __future__ import annotations

import functools
from typing import Any, Callable

from yolo_lossplug.ultralytics_hook import patching
from yolo_lossplug.ultralytics_hook.run import memory, runs


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
        inner = next((m for name in holders if (m := getattr(model, name, None)) is not None), None)
        if inner is None:
            break
        model = inner
    return model

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which run a model belongs to, and what its losses remember: in training, in a checkpoint's folder, after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from ultralytics.utils import LOGGER

from yolo_lossplug.state import State
from yolo_lossplug.ultralytics_hook.console import PREFIX

FILE = "lossplug.pt"

_states: dict[str, State] = {}


def state_of(args: dict[str, Any]) -> Optional[State]:
    """Return the state of the run with these arguments, None if they are those of no run that is under way.

    The trained model and its moving average have copies of the same arguments, and so the same folder.
    """
    return _states.get(str(args.get("save_dir")))


def begin(trainer: Any) -> None:
    """Make the state of a new trainer's run, or restore it, before any model makes a criterion."""
    state = _states[str(trainer.args.save_dir)] = State()
    file = Path(trainer.save_dir) / "weights" / FILE
    if trainer.resume and file.is_file():
        state.load(file)


def check(trainer: Any) -> None:
    """Callback before training: a state that is not that of the checkpoint is no state of this run."""
    state = state_of(vars(trainer.args))
    if state is None:
        return
    if state.tensors and state.epoch != trainer.start_epoch:
        LOGGER.warning(
            f"{PREFIX}{FILE} holds what the losses knew after epoch {state.epoch}, and this run goes "
            f"on after epoch {trainer.start_epoch}; they start anew."
        )
        state.tensors.clear()
    state.epoch, state.epochs = trainer.start_epoch, trainer.epochs


def count_epoch(trainer: Any) -> None:
    """Callback at the start of an epoch."""
    state = state_of(vars(trainer.args))
    if state is not None:
        state.epoch, state.epochs = trainer.epoch, trainer.epochs


def commit(trainer: Any) -> None:
    """Callback after a batch, on every rank."""
    state = state_of(vars(trainer.args))
    if state is not None:
        state.commit()


def save(trainer: Any) -> None:
    """Write the state beside a checkpoint that has just been written."""
    state = state_of(vars(trainer.args))
    if state is not None:
        done = state.epoch
        state.epoch = trainer.epoch + 1
        state.save(Path(trainer.save_dir) / "weights" / FILE)
        state.epoch = done


def end(trainer: Any) -> None:
    """Callback when a trainer is done, or has failed."""
    _states.pop(str(getattr(trainer.args, "save_dir", None)), None)

# SPDX-License-Identifier: AGPL-3.0-or-later
"""State of the losses of a run: saved beside its checkpoints, and restored on resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import torch

from yolo_lossplug.registry import CLASS, ROTATED
from yolo_lossplug.selection.loss import Loss
from yolo_lossplug.selection.select import Selection
from yolo_lossplug.state import State
from yolo_lossplug.ultralytics_hook.console import warn

FILE = "lossplug.pt"


def restore_state(state: State, selection: Selection, trainer: Any) -> None:
    """Restore the state of a resumed run from beside the checkpoint that is resumed.

    What cannot be used is told about, and the losses start with a new state.
    """
    losses = stateful(selection)
    shapes = shapes_of(losses)
    if not trainer.resume or not losses or shapes == {}:
        return
    places = (Path(str(trainer.args.resume)).parent, Path(trainer.save_dir) / "weights")
    if (file := next((folder / FILE for folder in places if (folder / FILE).is_file()), None)) is None:
        warn(
            f"{FILE} is missing beside the checkpoint: the state of the losses is lost, and they start with a "
            f"new one. Copy it along with last.pt."
        )
        return
    try:
        state.load(file, [loss.name for loss in losses], shapes)
    except ValueError as error:
        warn(
            f"{file} cannot be used: {error}. The losses start with a new state; copy the file that belongs to the "
            f"checkpoint."
        )


def stateful(selection: Selection) -> list[Loss]:
    """Return those losses of a run that may have state."""
    return [loss for loss in (selection.box, selection.cls) if loss.state is not None]


@torch.no_grad()
def shapes_of(losses: list[Loss]) -> Optional[dict[str, torch.Size]]:
    """Return what losses keep, by key below the part of a criterion; None if a user-defined one does not say."""
    state = State()
    for loss in losses:
        empty = torch.zeros(1, 1, 1) if loss.kind == CLASS else torch.zeros(0, 5 if loss.kind == ROTATED else 4)
        try:
            loss.within(state.scoped("trial"))(empty, empty.clone())
        except Exception:  # of a user-defined loss, which wants more
            return None
    return {key.partition(".")[2]: tensor.shape for key, tensor in state.tensors.items()}


def check_epoch(state: State, trainer: Any) -> None:
    """Check before training that a state is that of the checkpoint; otherwise warn, and start with a new state."""
    if state.tensors and state.epoch != trainer.start_epoch:
        warn(
            f"{FILE} holds the state of the losses after epoch {state.epoch}, but this run continues "
            f"after epoch {trainer.start_epoch}; they start with a new state. "
            f"Copy the file that belongs to the checkpoint."
        )
        state.tensors.clear()
    state.epoch, state.epochs = trainer.start_epoch, trainer.epochs


def save_state(state: State, selection: Selection, trainer: Any) -> None:
    """Write a state beside a checkpoint that has just been written; without one, remove that of an earlier run."""
    done = state.epoch
    state.epoch = trainer.epoch + 1
    state.save(Path(trainer.save_dir) / "weights" / FILE, [loss.name for loss in stateful(selection)])
    state.epoch = done

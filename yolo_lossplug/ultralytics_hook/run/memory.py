# SPDX-License-Identifier: AGPL-3.0-or-later
"""State of the losses of a run: saved beside its checkpoints, and restored on resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolo_lossplug.state import State
from yolo_lossplug.ultralytics_hook.console import warn

FILE = "lossplug.pt"


def restore_state(state: State, trainer: Any) -> None:
    """Restore the state of a resumed run from beside the checkpoint that is resumed."""
    if trainer.resume:
        for folder in dict.fromkeys((Path(str(trainer.args.resume)).parent, Path(trainer.save_dir) / "weights")):
            if (folder / FILE).is_file():
                state.load(folder / FILE)
                return


def check_state(state: State, trainer: Any, keeps_state: bool) -> None:
    """Check before training that a state is that of the checkpoint; otherwise warn, and start with a new state.

    Args:
        state: Restored state, empty if there was none.
        trainer: The trainer.
        keeps_state: Whether any loss of the run has state.
    """
    if state.tensors and state.epoch != trainer.start_epoch:
        warn(
            f"{FILE} holds the state of the losses after epoch {state.epoch}, but this run continues "
            f"after epoch {trainer.start_epoch}; they start with a new state. "
            f"Copy the file that belongs to the checkpoint."
        )
        state.tensors.clear()
    elif trainer.resume and keeps_state and not state.tensors:
        warn(
            f"{FILE} is missing beside the checkpoint: the state of the losses is lost, and they start with a "
            f"new one. Copy it along with last.pt."
        )
    state.epoch, state.epochs = trainer.start_epoch, trainer.epochs


def save_state(state: State, trainer: Any) -> None:
    """Write a state beside a checkpoint that has just been written."""
    done = state.epoch
    state.epoch = trainer.epoch + 1
    state.save(Path(trainer.save_dir) / "weights" / FILE)
    state.epoch = done

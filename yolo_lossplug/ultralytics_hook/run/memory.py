# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the losses of a run remember: saved beside its checkpoints, and restored on resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER

from yolo_lossplug.state import State
from yolo_lossplug.ultralytics_hook.console import PREFIX

FILE = "lossplug.pt"


def restore(state: State, trainer: Any) -> None:
    """Restore what the run that a trainer resumes has remembered, from beside the checkpoint that it resumes."""
    if trainer.resume:
        for folder in dict.fromkeys((Path(str(trainer.args.resume)).parent, Path(trainer.save_dir) / "weights")):
            if (folder / FILE).is_file():
                state.load(folder / FILE)
                return


def check(state: State, trainer: Any, keeps_state: bool) -> None:
    """Check before training that a state is that of the checkpoint; otherwise the losses start anew, and that is said.

    Args:
        state: What was restored, if anything was.
        trainer: The trainer.
        keeps_state: Whether any loss of the run remembers something.
    """
    if state.tensors and state.epoch != trainer.start_epoch:
        LOGGER.warning(
            f"{PREFIX}{FILE} holds what the losses knew after epoch {state.epoch}, and this run goes "
            f"on after epoch {trainer.start_epoch}; they start anew."
        )
        state.tensors.clear()
    elif trainer.resume and keeps_state and not state.tensors:
        LOGGER.warning(
            f"{PREFIX}{FILE} is missing beside the checkpoint: what the losses have learnt about the data so far is "
            f"lost, and they start anew. Copy it along with last.pt."
        )
    state.epoch, state.epochs = trainer.start_epoch, trainer.epochs


def save(state: State, trainer: Any) -> None:
    """Write a state beside a checkpoint that has just been written."""
    done = state.epoch
    state.epoch = trainer.epoch + 1
    state.save(Path(trainer.save_dir) / "weights" / FILE)
    state.epoch = done

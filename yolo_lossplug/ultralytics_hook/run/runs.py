# SPDX-License-Identifier: AGPL-3.0-or-later
"""One `Run` per training. Its models look it up by the folder of the run, which is in their arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from yolo_lossplug.selection.regions import Rules
from yolo_lossplug.selection.select import Selection, select
from yolo_lossplug.state import State
from yolo_lossplug.ultralytics_hook.family import with_task
from yolo_lossplug.ultralytics_hook.run import memory
from yolo_lossplug.ultralytics_hook.run.finite import NanTracker
from yolo_lossplug.ultralytics_hook.run.making import RUNS, selected
from yolo_lossplug.ultralytics_hook.run.report import FILE, Collector


@dataclass
class Run:
    """What belongs to one training.

    Attributes:
        selection: Selected losses; selected once, when its trainer has merged its arguments.
        rules: What of its data is not taught, None where everything is.
        state: State of its losses, shared by the trained model, its EMA, and all branches.
        collector: Collector of its assignment report, None for a run without report.
        terms: Records which terms of its loss were NaN or infinite first.
    """

    selection: Selection
    rules: Optional[Rules] = None
    state: State = field(default_factory=State)
    collector: Optional[Collector] = None
    terms: NanTracker = field(default_factory=NanTracker)


def begin(trainer: Any) -> Run:
    """Register the run of a new trainer, before any model makes a criterion.

    The trained model and its EMA have copies of the same arguments, and so the same folder.
    """
    args = vars(trainer.args)
    from yolo_lossplug.ultralytics_hook.regions.data import rules_of_trainer  # not above: it needs the whole package

    run = trainer.lossplug = Run(selected(args), rules_of_trainer(trainer))
    if run.selection.is_active:
        memory.restore_state(run.state, run.selection, trainer)
    if run.selection.report:
        run.collector = Collector(Path(trainer.save_dir) / FILE, bool(trainer.resume))
    RUNS[str(args.get("save_dir"))] = run
    return run


def of(trainer: Any) -> Run:
    """Return the run of a trainer."""
    run = getattr(trainer, "lossplug", None)
    return Run(select(with_task(vars(trainer.args), type(trainer)))) if run is None else run


def find(args: Mapping[str, Any]) -> Optional[Run]:
    """Return the run that a model with these arguments belongs to, None if none is under way."""
    return RUNS.get(str(args.get("save_dir")))


def end(trainer: Any) -> None:
    """Callback when a trainer is done, or has failed."""
    RUNS.pop(str(getattr(trainer.args, "save_dir", None)), None)

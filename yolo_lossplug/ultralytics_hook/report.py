# SPDX-License-Identifier: AGPL-3.0-or-later
"""The report of the assignment: how many anchors gts get, by size and epoch, as a table and as a plot.

Counts are added after each call of an assigner in training, on its device, and read once per epoch.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ultralytics.utils import RANK

from yolo_lossplug.selection.select import Selection
from yolo_lossplug.ultralytics_hook.run import runs
from yolo_lossplug.ultralytics_hook.run.counts import SIZES

PLOT = "lossplug_report.png"
ONLY_BRANCH = "main"
"""The branch of a criterion that has no others, left out of the names that loggers see."""


def start_epoch(trainer: Any) -> None:
    """Callback at the start of an epoch, which may be a restarted one."""
    collector = runs.of(trainer).collector
    if collector is not None:
        collector.clear()


def end_epoch(trainer: Any) -> None:
    """Callback when the batches of an epoch are done, on every rank; rank 0 writes the table."""
    collector = runs.of(trainer).collector
    if collector is None:
        return
    counts = collector.counted()
    if RANK not in {-1, 0}:
        return
    collector.add(trainer.epoch + 1, counts)
    collector.write()
    collector.shown = {
        f"lossplug/{key}" if branch == ONLY_BRANCH else f"lossplug/{branch}/{key}": value
        for branch, values in counts.items()
        for key, value in values.items()
        if value is not None
    }


def show(trainer: Any) -> None:
    """Callback before those of the loggers, which log the metrics of an epoch."""
    collector = runs.of(trainer).collector
    if collector is not None and isinstance(trainer.metrics, dict):
        trainer.metrics.update(collector.shown)


def hide(trainer: Any) -> None:
    """Callback after those of the loggers: our metrics stay out of results, checkpoints and the last validation."""
    collector = runs.of(trainer).collector
    if collector is not None:
        for key in collector.shown:
            trainer.metrics.pop(key, None)
        collector.shown = {}


def draw(trainer: Any) -> None:
    """Callback after training, on the first rank, before those of the loggers, which log plots."""
    collector = runs.of(trainer).collector
    if collector is not None and collector.rows and trainer.args.plots:
        file = collector.file.with_name(PLOT)
        plot(collector.rows, file, _heading(Path(trainer.save_dir).name, runs.of(trainer).selection))
        trainer.on_plot(file)


def _heading(run: str, selection: Selection) -> str:
    """Return what a report is of: the run, its losses, and the floor of its sides if one is chosen."""
    floor = "" if selection.tal_min_side is None else f" · tal_min_side={selection.tal_min_side:g}"
    return f"{run}: box {selection.box} · class {selection.cls}{floor}"


PERCENT = "%"
LINES = (
    (
        0,
        "Objects without any anchor",
        PERCENT,
        (*((f"unassigned_share_{size}", size) for size in SIZES), ("unassigned_share", "all")),
    ),
    (1, "Anchors per object, by its size", "anchors", tuple((f"positives_per_object_{size}", size) for size in SIZES)),
    (2, "Overlap with the object", "mean IoU", (("mean_iou", ""),)),
    (3, "Anchors that several objects select", PERCENT, (("conflict_share", ""),)),
)
"""Panels of a branch: column, title, unit, and the columns of the table with their labels."""


def plot(rows: list[dict[str, str]], file: Path, heading: str = "") -> None:
    """Draw a table, one line of panels for each branch.

    Args:
        rows: The table.
        file: A PNG.
        heading: Title of the whole picture.
    """
    from matplotlib.ticker import MaxNLocator

    from yolo_lossplug import charts  # matplotlib is not imported before the end of a training

    branches = list(dict.fromkeys(row["branch"] for row in rows))
    figure, axes = charts.figure(len(branches), len(LINES), 4, 3.4)
    for branch, panels in zip(branches, axes):
        branch_rows = [row for row in rows if row["branch"] == branch]
        epochs = [int(row["epoch"]) for row in branch_rows]
        for column, title, unit, lines in LINES:
            panel, scale = panels[column], 100 if unit == PERCENT else 1
            for (key, label), style in zip(lines, charts.styles()):
                values = [scale * float(row[key] or "nan") for row in branch_rows]
                if all(math.isnan(value) for value in values):
                    continue
                panel.plot(epochs, values, label=label, markevery=max(1, len(epochs) // 20), **style)
            panel.set_title(title if branch == ONLY_BRANCH else f"{title} · {branch}", fontsize=10)
            panel.set_ylabel(unit)
            panel.set_ylim(0, 1.1 * scale * _max_value(branch_rows, [key for key, _ in lines]))
            panel.set_xlabel("epoch")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            panel.grid(alpha=0.3)
        for panel in panels[:2]:
            panel.legend(fontsize=8, frameon=False)
    figure.suptitle(heading, fontsize=11)
    charts.save(figure, file)


def _max_value(rows: list[dict[str, str]], keys: list[str]) -> float:
    """Return the maximum of the positive finite values in some columns, 1 if there is none."""
    values = [float(row[key]) for row in rows for key in keys if row[key]]
    return max((value for value in values if 0 < value < float("inf")), default=1.0)

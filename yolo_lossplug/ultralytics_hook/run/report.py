# SPDX-License-Identifier: AGPL-3.0-or-later
"""The report of the assignment: how many anchors gts get, by size and epoch, as a table and as a plot.

Counts are added after each call of an assigner in training, on its device, and read once per epoch.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Optional

import torch
from ultralytics.utils import RANK

from yolo_lossplug.boxes import SIZES
from yolo_lossplug.state import reduce
from yolo_lossplug.ultralytics_hook.attached import ATTRIBUTE
from yolo_lossplug.ultralytics_hook.counts import COLUMNS, Meter, column_values

FILE = "lossplug_report.csv"
HEADER = ("epoch", "branch", *COLUMNS)
CLASS_FILE = "lossplug_report_classes.csv"
CLASS_HEADER = ("epoch", "branch", "class", "name", "objects", "unassigned_share")
PLOT = "lossplug_report.png"
ONLY_BRANCH = "main"
"""The branch of a criterion that has no others, left out of the names that loggers see."""


class Collector:
    """Assignment report of one run.

    Args:
        file: The table.
        is_resumed: Whether an existing table belongs to this run.

    Attributes:
        rows: The lines of the table.
        class_rows: The lines of the table of classes.
        shown: Values of the last epoch for the loggers.
    """

    def __init__(self, file: Path, is_resumed: bool) -> None:
        self.file, self.class_file = file, file.with_name(CLASS_FILE)
        self.meters: dict[str, Meter] = {}
        self.names: Mapping[int, str] = {}
        self.rows = _read(file, HEADER) if is_resumed and file.is_file() else []
        self.class_rows = _read(self.class_file, CLASS_HEADER) if is_resumed and self.class_file.is_file() else []
        self.shown: dict[str, float] = {}
        self.by_class: dict[str, list[list[float]]] = {}

    def meter(
        self, branch: str, device: torch.device, n_classes: int = 0, names: Optional[Mapping[int, str]] = None
    ) -> Meter:
        """Return the meter of a branch, the same for every criterion of the branch."""
        if branch not in self.meters:
            self.meters[branch] = Meter(device, n_classes)
        self.names = names or self.names
        return self.meters[branch]

    def clear(self) -> None:
        """Reset the counts at the end of an epoch, or after an interrupted one."""
        for part in chain.from_iterable(meter.parts for meter in self.meters.values()):
            part.zero_()

    def counted(self) -> dict[str, dict[str, Optional[float]]]:
        """Return the counts of all ranks together, by branch; call it on every rank. Those of classes are kept."""
        counts: dict[str, dict[str, Optional[float]]] = {}
        for branch, meter in sorted(self.meters.items()):
            if not meter.is_used:
                continue
            flat = reduce(torch.cat([part.flatten() for part in meter.parts]))
            parts = zip(flat.split([part.numel() for part in meter.parts]), meter.parts)
            sums, claims, self.by_class[branch], silenced = (part.view_as(like).tolist() for part, like in parts)
            counts[branch] = column_values(sums, claims if meter.has_claims else None, silenced)
        return counts

    def add(self, epoch: int, counted: dict[str, dict[str, Optional[float]]]) -> None:
        """Add the rows of an epoch, and drop later ones, which a resumed run repeats."""
        self.rows = [row for row in self.rows if int(row["epoch"]) < epoch]
        self.class_rows = [row for row in self.class_rows if int(row["epoch"]) < epoch]
        for branch, values in counted.items():
            texts = {key: _text(key, value) for key, value in values.items()}
            self.rows.append({"epoch": str(epoch), "branch": branch, **texts})
            for i, (objects, unassigned) in enumerate(self.by_class.get(branch, [])):
                if objects:
                    name, share = self.names.get(i, str(i)), f"{unassigned / objects:.6g}"
                    cells = map(str, (epoch, branch, i, name, f"{objects:.0f}", share))
                    self.class_rows.append(dict(zip(CLASS_HEADER, cells)))

    def write(self) -> None:
        """Write the tables, each atomically."""
        from yolo_lossplug import charts

        charts.save_table(self.rows, self.file, HEADER)
        if self.class_rows:
            charts.save_table(self.class_rows, self.class_file, CLASS_HEADER)


def _text(key: str, value: Optional[float]) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if key.startswith("objects") or key == "conflicts" else f"{value:.6g}"


def _read(file: Path, header: Sequence[str]) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as source:
        rows = [{key: row.get(key) or "" for key in header} for row in csv.DictReader(source)]
    return [row for row in rows if row["epoch"].isdigit()]


def collector_of(trainer: Any) -> Optional[Collector]:
    """Return the collector of a trainer's run, None for a run without report."""
    return getattr(getattr(trainer, ATTRIBUTE, None), "collector", None)


def clear_counts(trainer: Any) -> None:
    """Callback at the start of an epoch, which may be a restarted one."""
    if (collector := collector_of(trainer)) is not None:
        collector.clear()


def write_tables(trainer: Any) -> None:
    """Callback when the batches of an epoch are done, on every rank; rank 0 writes the table."""
    if (collector := collector_of(trainer)) is None:
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


def show_values(trainer: Any) -> None:
    """Callback before those of the loggers, which log the metrics of an epoch."""
    if (collector := collector_of(trainer)) is not None and isinstance(trainer.metrics, dict):
        trainer.metrics.update(collector.shown)


def hide_values(trainer: Any) -> None:
    """Callback after those of the loggers: our metrics stay out of results, checkpoints and the last validation."""
    if (collector := collector_of(trainer)) is not None:
        for key in collector.shown:
            trainer.metrics.pop(key, None)
        collector.shown = {}


def draw_report(trainer: Any) -> None:
    """Callback after training, on the first rank, before those of the loggers, which log plots."""
    if (collector := collector_of(trainer)) is not None and collector.rows and trainer.args.plots:
        file = collector.file.with_name(PLOT)
        selection = trainer.lossplug.selection
        floor = "" if selection.tal_min_side is None else f" · tal_min_side={selection.tal_min_side:g}"
        losses = f"box {selection.box} · class {selection.cls}{floor}"
        plot(collector.rows, file, f"{Path(trainer.save_dir).name}: {losses}")
        trainer.on_plot(file)


PERCENT = "%"
UNASSIGNED = (*((f"unassigned_share_{size}", size) for size in SIZES), ("unassigned_share", "all"))
PANELS = (
    ("Objects without any anchor", PERCENT, UNASSIGNED),
    ("Anchors per object, by its size", "anchors", tuple((f"positives_per_object_{size}", size) for size in SIZES)),
    ("Overlap with the object", "mean IoU", (("mean_iou", ""),)),
    ("Anchors that several objects select", PERCENT, (("conflict_share", ""),)),
)
"""Panels of a branch: title, unit, and the columns of the table with their labels."""


def plot(rows: list[dict[str, str]], file: Path, heading: str = "") -> None:
    """Draw a table as PNG, one line of panels for each branch."""
    from yolo_lossplug import charts  # matplotlib is not imported before the end of a training

    branches = list(dict.fromkeys(row["branch"] for row in rows))
    figure, axes = charts.figure(len(branches), len(PANELS), 4, 3.4)
    for branch, panels in zip(branches, axes):
        branch_rows = [row for row in rows if row["branch"] == branch]
        for panel, (title, unit, lines) in zip(panels, PANELS):
            _plot_panel(panel, branch_rows, unit, lines)
            panel.set_title(title if branch == ONLY_BRANCH else f"{title} · {branch}", fontsize=10)
        for panel in panels[:2]:
            panel.legend(fontsize=8, frameon=False)
    figure.suptitle(heading, fontsize=11)
    charts.save(figure, file)


def _plot_panel(panel: Any, rows: list[dict[str, str]], unit: str, lines: Sequence[tuple[str, str]]) -> None:
    from matplotlib.ticker import MaxNLocator

    from yolo_lossplug import charts

    epochs, scale, shown = [int(row["epoch"]) for row in rows], 100 if unit == PERCENT else 1, [0.0]
    for (key, label), style in zip(lines, charts.styles()):
        values = [scale * float(row[key] or "nan") for row in rows]
        shown += values
        if not all(map(math.isnan, values)):
            panel.plot(epochs, values, label=label, markevery=max(1, len(epochs) // 20), **style)
    panel.set_ylabel(unit)
    panel.set_ylim(0, 1.1 * (max(filter(math.isfinite, shown)) or scale))
    panel.set_xlabel("epoch")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panel.grid(alpha=0.3)

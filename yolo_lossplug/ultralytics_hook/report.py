# SPDX-License-Identifier: AGPL-3.0-or-later
"""The report of the assignment: which objects get how many anchors, epoch after epoch, as a table and as a plot.

Everything is counted where an assigner has just been asked in training, on its device, and read once an epoch.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor, nn
from ultralytics.utils import RANK
from ultralytics.utils.metrics import probiou

from yolo_lossplug.boxes import Pair
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import REPORT
from yolo_lossplug.state import reduce
from yolo_lossplug.ultralytics_hook.run.counts import COLUMNS, SIZES, no_sums, summary, tally

FILE, PLOT = "lossplug_report.csv", "lossplug_report.png"
METER = "lossplug_meter"
"""Attribute of an assigner that is watched."""
HEADER = ("epoch", "branch", *COLUMNS)
ONLY_BRANCH = "main"
"""The branch of a criterion that has no others, which loggers need not be told."""


class Meter:
    """What one branch of a run's criterion has counted since the epoch began.

    The trained model and its moving average share one, and only the trained one adds to it.

    Args:
        device: Where it counts.

    Attributes:
        sums: The sums (sizes, sums) of `statistics.tally`.
        is_used: Whether the branch was asked at all.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums, self.is_used = no_sums(device), False

    def __deepcopy__(self, memo: dict[int, Any]) -> Meter:
        return self  # a copy of a criterion, as that of the moving average, belongs to the same run

    def add(self, objects: Tensor, mask: Tensor, place: Tensor, is_positive: Tensor, found: Tensor) -> None:
        """Count what was assigned, if this is training.

        Args:
            objects: Boxes (b, n, 4), x1 y1 x2 y2 in pixels, or (b, n, 5), x y w h and an angle.
            mask: Which of them are objects (b, n, 1).
            place: Object (P,) of each anchor among the places of all images.
            is_positive: Whether an anchor has an object (P,).
            found: Boxes (P, 4 or 5) that the anchors predict.
        """
        if not torch.is_grad_enabled():
            return
        self.is_used = True
        boxes = objects.flatten(0, 1).float()
        if not len(boxes):
            return
        with torch.no_grad():
            sides = boxes[:, 2:4] if boxes.shape[1] == 5 else boxes[:, 2:] - boxes[:, :2]
            overlap = _overlap(found.float(), boxes[place])
            self.sums += tally(sides[:, 0] * sides[:, 1], mask.flatten().bool(), place, is_positive, overlap)


class Collector:
    """What one run reports.

    Args:
        file: The table.
        is_resumed: Whether the table that is there is that of this run.

    Attributes:
        rows: The lines of the table.
        shown: What the loggers are shown of the last epoch.
    """

    def __init__(self, file: Path, is_resumed: bool) -> None:
        self.file = file
        self.meters: dict[str, Meter] = {}
        self.rows = _read(file) if is_resumed and file.is_file() else []
        self.shown: dict[str, float] = {}

    def meter(self, branch: str, device: torch.device) -> Meter:
        """Return the meter of a branch, however often its criterion is made."""
        if branch not in self.meters:
            self.meters[branch] = Meter(device)
        return self.meters[branch]

    def clear(self) -> None:
        """Forget what was counted in an epoch that was broken off, or is over."""
        for meter in self.meters.values():
            meter.sums.zero_()

    def counted(self) -> dict[str, dict[str, Optional[float]]]:
        """Return what all ranks together have counted, by branch; to be asked on every rank."""
        used = {branch: meter.sums for branch, meter in sorted(self.meters.items()) if meter.is_used}
        if not used:
            return {}
        sums = reduce(torch.stack(list(used.values()))).tolist()
        return {branch: summary(rows) for branch, rows in zip(used, sums)}

    def add(self, epoch: int, found: dict[str, dict[str, Optional[float]]]) -> None:
        """Add the rows of an epoch, and drop those of a run that went further before it was resumed."""
        self.rows = [row for row in self.rows if int(row["epoch"]) < epoch]
        for branch, values in found.items():
            texts = {key: "" if value is None else f"{value:.6g}" for key, value in values.items()}
            counts = {key: f"{value:.0f}" for key, value in values.items() if value is not None and _is_count(key)}
            self.rows.append({"epoch": str(epoch), "branch": branch, **texts, **counts})

    def write(self) -> None:
        """Write the table; it is complete or as it was."""
        from yolo_lossplug import charts

        charts.save_table(self.rows, self.file, HEADER)


_collectors: dict[str, Collector] = {}


def collector_of(args: dict[str, Any]) -> Optional[Collector]:
    """Return the collector of the run with these arguments, None if it reports nothing."""
    return _collectors.get(str(args.get("save_dir")))


def watch(assigner: Any, meter: Optional[Meter]) -> None:
    """Count what an assigner assigns; without a meter nothing is counted.

    The fast engine assigns without asking the assigner, or asks it where no gradient is: it adds to the meter itself.

    Raises:
        LossPlugError: If it is no module, and cannot be watched.
    """
    if not isinstance(assigner, nn.Module):
        raise LossPlugError(f"{REPORT} cannot be used with {type(assigner).__name__}, which is no module; remove it.")
    setattr(assigner, METER, meter)
    if _note not in assigner._forward_hooks.values():
        assigner.register_forward_hook(_note)


def meter_of(assigner: Any) -> Optional[Meter]:
    """Return the meter of an assigner, None if nothing is counted."""
    return getattr(assigner, METER, None)


def _note(assigner: Any, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
    """Count what an assigner of the host has answered; its own `forward` knows no gradient, what is around it does."""
    meter = meter_of(assigner)
    if meter is None:
        return
    found, objects, mask = inputs[1].flatten(0, 1), inputs[4], inputs[5]
    first = torch.arange(len(objects), device=objects.device).unsqueeze(1) * objects.shape[1]
    place, is_positive = (outputs[4].long() + first).flatten(), outputs[3].flatten().bool()
    if found.device.type == "cpu":  # a GPU would have to be waited for, and takes no time for the other anchors
        index = is_positive.nonzero().squeeze(1)
        place, is_positive, found = place[index], is_positive[index], found[index]
    meter.add(objects, mask, place, is_positive, found)


def _overlap(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the IoU (P,) of boxes, of rotated ones the host's ProbIoU."""
    return Pair(found, wanted).iou if wanted.shape[1] == 4 else probiou(found, wanted).view(-1)


def begin(trainer: Any, is_wanted: bool) -> None:
    """Make the collector of a new trainer's run, before any model makes a criterion."""
    end(trainer)
    if is_wanted:
        collector = Collector(Path(trainer.save_dir) / FILE, bool(trainer.resume))
        _collectors[str(trainer.args.save_dir)] = collector


def start_epoch(trainer: Any) -> None:
    """Callback at the start of an epoch, which may be one that is begun again."""
    collector = collector_of(vars(trainer.args))
    if collector is not None:
        collector.clear()


def end_epoch(trainer: Any) -> None:
    """Callback when the batches of an epoch are done, on every rank: the first writes the table."""
    collector = collector_of(vars(trainer.args))
    if collector is None:
        return
    found = collector.counted()
    if RANK not in {-1, 0}:
        return
    collector.add(trainer.epoch + 1, found)
    collector.write()
    collector.shown = {
        f"lossplug/{key}" if branch == ONLY_BRANCH else f"lossplug/{branch}/{key}": value
        for branch, values in found.items()
        for key, value in values.items()
        if value is not None
    }


def show(trainer: Any) -> None:
    """Callback before those of the loggers, which log the metrics of an epoch."""
    collector = collector_of(vars(trainer.args))
    if collector is not None and isinstance(trainer.metrics, dict):
        trainer.metrics.update(collector.shown)


def hide(trainer: Any) -> None:
    """Callback after those of the loggers: results, checkpoints and the last validation know nothing of ours."""
    collector = collector_of(vars(trainer.args))
    if collector is not None:
        for key in collector.shown:
            trainer.metrics.pop(key, None)
        collector.shown = {}


def draw(trainer: Any) -> None:
    """Callback after training, on the first rank, before those of the loggers, which log plots."""
    collector = collector_of(vars(trainer.args))
    if collector is not None and collector.rows and trainer.args.plots:
        file = collector.file.with_name(PLOT)
        plot(collector.rows, file)
        trainer.on_plot(file)


def end(trainer: Any) -> None:
    """Callback when a trainer is done, or has failed."""
    _collectors.pop(str(getattr(trainer.args, "save_dir", None)), None)


LINES = (
    (0, "Objects without any anchor", "share", (("unassigned_share", ""),)),
    (1, "Anchors per object, by its size", "anchors", tuple((f"positives_per_object_{size}", size) for size in SIZES)),
    (2, "Overlap with the object", "mean IoU", (("mean_iou", ""),)),
)
"""Panels of a branch: column, title, unit, and the columns of the table with their labels."""


def plot(rows: list[dict[str, str]], file: Path) -> None:
    """Draw a table, one line of panels for each branch.

    Args:
        rows: The table.
        file: A PNG.
    """
    from matplotlib.ticker import MaxNLocator

    from yolo_lossplug import charts  # matplotlib is not imported before the end of a training

    branches = list(dict.fromkeys(row["branch"] for row in rows))
    figure, axes = charts.figure(len(branches), len(LINES), 4, 3.4)
    for branch, panels in zip(branches, axes):
        own = [row for row in rows if row["branch"] == branch]
        epochs = [int(row["epoch"]) for row in own]
        for column, title, unit, lines in LINES:
            panel = panels[column]
            for (key, label), style in zip(lines, charts.styles()):
                values = [float(row[key] or "nan") for row in own]
                if all(math.isnan(value) for value in values):
                    continue
                panel.plot(epochs, values, label=label, markevery=max(1, len(epochs) // 20), **style)
            panel.set_title(title if branch == ONLY_BRANCH else f"{title} · {branch}", fontsize=10)
            panel.set_ylabel(unit)
            panel.set_ylim(0, 1.1 * _largest(own, [key for key, _ in lines]))
            panel.set_xlabel("epoch")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            panel.grid(alpha=0.3)
        panels[1].legend(fontsize=8, frameon=False)
    charts.save(figure, file)


def _largest(rows: list[dict[str, str]], keys: list[str]) -> float:
    """Return the largest of some values above 0 of a table, 1 if there is none."""
    values = [float(row[key]) for row in rows for key in keys if row[key]]
    return max((value for value in values if 0 < value < float("inf")), default=1.0)


def _is_count(key: str) -> bool:
    return key.startswith("objects")


def _read(file: Path) -> list[dict[str, str]]:
    """Return the lines of a table, as far as they are lines of it."""
    with file.open(newline="", encoding="utf-8") as source:
        rows = [{key: row.get(key) or "" for key in HEADER} for row in csv.DictReader(source)]
    return [row for row in rows if row["epoch"].isdigit()]

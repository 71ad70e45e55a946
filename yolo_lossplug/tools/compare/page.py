# SPDX-License-Identifier: AGPL-3.0-or-later
"""report.html of a comparison: the verdict first, then what it rests on."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from PIL import Image

from yolo_lossplug.tools.compare.significance import BETTER, MAX_SEEDS, MIN_SEEDS, WORSE
from yolo_lossplug.tools.compare.tables import Table, signed
from yolo_lossplug.tools.compare.verdict import Effect
from yolo_lossplug.tools.report import Report as Page

NO_VERDICT, DETECTABLE = "no verdict", "detectable"
NAME = "report.html"
FOREST, CURVES = "forest.png", "curves.png"
CAPTION = "Seed by seed, with the interval that decides"
POWER_NOTE = (
    "Detectable: the true difference that these seeds show four times in five (power 0.8). Seeds needed: how many "
    "would show the observed difference as often."
)
JPEG_QUALITY = 85


@dataclass(frozen=True)
class Report:
    """What report.html shows, beside the pictures in the folder.

    Attributes:
        baseline: Name of the arm that the others are compared with.
        metric: Name of the metric that decides, as it is shown.
        verdicts: The conclusion in one sentence, and others to add to it.
        states: How many runs have finished.
        effects: Paired differences of that metric.
        tables: All other tables, in order.
        notes: Paragraphs on noise and power.
        failed: Arm, seed and reason of each failed run.
        command: The command that makes the comparison.
        foot: Versions, hardware, the date.
        pictures: Arm, seed and file of the images in which each arm and the baseline differ.
    """

    baseline: str
    metric: str
    verdicts: Sequence[str]
    states: str
    effects: Sequence[Effect] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    failed: Sequence[tuple[str, int, Optional[str]]] = ()
    command: str = ""
    foot: Sequence[str] = ()
    pictures: Sequence[tuple[str, int, Path]] = ()


def write(report: Report, directory: Path) -> Path:
    """Write report.html of the comparison in a folder, with its pictures inside, and return the file."""
    page = Page("Comparison of losses", report.states, report.command)
    for sentence in report.verdicts:
        page.verdict(sentence)
    _add_differences(page, report, directory)
    _add_tables(page, report.tables)
    _add_noise(page, report.notes)
    _add_curves(page, directory)
    _add_where(page, report)
    _add_failed(page, report.failed)
    for line in report.foot:
        page.foot(line)
    return page.write(directory / NAME)


def conclusions(effects: Sequence[Any], baseline: str, metric: str) -> list[str]:
    """Return what the differences say, the decided ones first: a sentence for each verdict.

    Args:
        effects: Paired differences; those without a mean are left out.
        baseline: Name of the arm that the others are compared with.
        metric: Name of the metric that decides, as it is shown.
    """
    shown = [effect for effect in effects if effect.mean is not None]
    decided = [
        f"`{effect.arm}` is {effect.verdict} than `{baseline}` in {metric}: {effect.mean:+.4f} ({effect.low:+.4f} to "
        f"{effect.high:+.4f}, {effect.seeds} seeds)."
        for effect in sorted(shown, key=lambda effect: -effect.mean)
        if effect.verdict in (BETTER, WORSE)
    ]
    tested = [effect for effect in shown if effect.level is not None and effect.verdict not in (BETTER, WORSE)]
    rest = [f"Within noise, which does not prove equality: {_names(tested)}."] if tested else []
    untested = [effect for effect in shown if effect.level is None]
    few = [f"No verdict, which takes at least {MIN_SEEDS} common seeds: {_names(untested)}."] if untested else []
    return [*decided, *rest, *few]


def _names(effects: Sequence[Any]) -> str:
    return ", ".join(f"`{effect.arm}`" for effect in effects)


def _add_differences(page: Page, report: Report, directory: Path) -> None:
    effects = [effect for effect in report.effects if effect.mean is not None]
    if not effects:
        return
    page.section(f"Difference of {report.metric} from `{report.baseline}`")
    if (directory / FOREST).is_file():
        words = "; ".join(f"{effect.arm} {signed(effect.mean)}, {effect.verdict}" for effect in effects)
        page.picture(directory / FOREST, f"Forest plot of the differences: {words}")
    columns = _columns(effects)
    page.table(["loss", *columns], [[f"`{e.arm}`", *row] for e, *row in zip(effects, *columns.values())], CAPTION)
    if DETECTABLE in columns:
        page.text(POWER_NOTE)


def _columns(effects: Sequence[Effect]) -> dict[str, list[Any]]:
    """Return the columns of the table of differences; level and power where there are intervals."""
    columns: dict[str, list[Any]] = {
        "difference": [signed(effect.mean) for effect in effects],
        "from": [signed(effect.low) for effect in effects],
        "to": [signed(effect.high) for effect in effects],
        "level": [None if effect.level is None else f"{100 * effect.level:.3g} %" for effect in effects],
        "seeds": [effect.seeds for effect in effects],
        "verdict": [effect.verdict if effect.level is not None else NO_VERDICT for effect in effects],
        DETECTABLE: [effect.smallest for effect in effects],
        "seeds needed": [_needed(effect) for effect in effects],
    }
    return {name: cells for name, cells in columns.items() if any(cell is not None for cell in cells)}


def _needed(effect: Effect) -> Optional[str]:
    """Return the number of seeds that show the observed difference."""
    if effect.smallest is None:
        return None
    return f"more than {MAX_SEEDS}" if effect.needed is None else str(effect.needed)


def _add_tables(page: Page, tables: Sequence[Table]) -> None:
    heading = None
    for table in tables:
        if table.heading != heading:
            page.section(table.heading)
        heading = table.heading
        page.table(table.header, table.rows, table.caption)
        if table.note:
            page.text(table.note)


def _add_noise(page: Page, notes: Sequence[str]) -> None:
    if notes:
        page.section("Noise and power")
    for note in notes:
        page.text(note)


def _add_curves(page: Page, directory: Path) -> None:
    """Add the learning curves, if they are in the folder."""
    if (directory / CURVES).is_file():
        page.section("Learning curves")
        alt = "Metrics by epoch, and their paired differences from the first loss"
        caption = "Mean over the seeds; a band is one standard deviation. The first epochs may lie below the axis."
        page.picture(directory / CURVES, alt, caption)


def _add_where(page: Page, report: Report) -> None:
    """Add the images in which each arm and the baseline differ, as far as they are drawn."""
    drawn = [(arm, seed, file) for arm, seed, file in report.pictures if file.is_file()]
    if drawn:
        page.section("Where they differ")
    for arm, seed, file in drawn:
        alt = f"Images of seed {seed} in which {report.baseline} and {arm} differ most, side by side"
        caption = (
            f"`{report.baseline}` and `{arm}`, seed {seed}: the validation images in which they differ most, each loss "
            "at the score of its best F1, matched at IoU 0.5."
        )
        page.picture(as_jpeg(file), alt, caption)


def as_jpeg(file: Path) -> bytes:
    """Return a picture of photographs as JPEG, which is a tenth of the PNG."""
    data = io.BytesIO()
    with Image.open(file) as picture:
        picture.convert("RGB").save(data, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return data.getvalue()


def _add_failed(page: Page, failed: Sequence[tuple[str, int, Optional[str]]]) -> None:
    if failed:
        page.section("Failed runs")
        page.table(["loss", "seed", "reason"], [[f"`{arm}`", seed, reason or ""] for arm, seed, reason in failed])

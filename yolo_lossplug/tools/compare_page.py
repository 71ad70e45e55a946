# SPDX-License-Identifier: AGPL-3.0-or-later
"""report.html of a comparison: the verdict first, then what it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from yolo_lossplug.tools.compare_tables import Table, signed
from yolo_lossplug.tools.page import Page
from yolo_lossplug.tools.significance import BETTER, WORSE

NAME = "report.html"
FOREST, CURVES, WHERE = "forest.png", "curves.png", "where_they_differ.png"
CAPTION = "Seed by seed, with the interval that decides"
NOTHING_LEARNT = "All metrics are 0: nothing has been learnt yet, and nothing can be compared. Train longer."


@dataclass(frozen=True)
class Report:
    """What report.html shows, beside the pictures in the folder.

    Attributes:
        baseline: Name of the arm that the others are compared with.
        metric: Name of the metric that decides, as it is shown.
        verdicts: The conclusion in one sentence, and others to add to it.
        states: How many runs have finished.
        effects: Paired differences of that metric: ``arm``, ``mean``, ``low``, ``high``, ``seeds``, ``verdict``.
        tables: All other tables, in order.
        notes: Paragraphs on noise and power.
        failed: Arm, seed and reason of each failed run.
        command: The command that makes the comparison.
        foot: Versions, hardware, the date.
    """

    baseline: str
    metric: str
    verdicts: Sequence[str]
    states: str
    effects: Sequence[Any] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    failed: Sequence[tuple[str, int, Optional[str]]] = ()
    command: str = ""
    foot: Sequence[str] = ()


def write(report: Report, directory: Path) -> Path:
    """Write report.html of the comparison in a folder, with its pictures inside, and return the file."""
    page = Page("Comparison of losses", report.states, report.command)
    for sentence in report.verdicts:
        page.verdict(sentence)
    _add_differences(page, report, directory)
    _add_tables(page, report.tables)
    _add_noise(page, report.notes)
    _add_pictures(page, directory)
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
    undecided = ", ".join(f"`{effect.arm}`" for effect in shown if effect.verdict not in (BETTER, WORSE))
    rest = f"Within noise, which does not prove equality: {undecided}." if undecided else ""
    return [*decided, *filter(None, [rest])]


def _add_differences(page: Page, report: Report, directory: Path) -> None:
    effects = [effect for effect in report.effects if effect.mean is not None]
    if not effects:
        return
    page.section(f"Difference of {report.metric} from `{report.baseline}`")
    if (directory / FOREST).is_file():
        words = "; ".join(f"{effect.arm} {signed(effect.mean)}, {effect.verdict}" for effect in effects)
        page.picture(directory / FOREST, f"Forest plot of the differences: {words}")
    header = ["loss", "difference", "from", "to", "seeds", "verdict"]
    page.table(header, [_row(effect) for effect in effects], CAPTION)


def _row(effect: Any) -> list[Any]:
    numbers = (signed(value) for value in (effect.mean, effect.low, effect.high))
    return [f"`{effect.arm}`", *numbers, effect.seeds, effect.verdict]


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


def _add_pictures(page: Page, directory: Path) -> None:
    """Add the learning curves and the images where losses differ, as far as they are in the folder."""
    if (directory / CURVES).is_file():
        page.section("Learning curves")
        alt = "Metrics by epoch, and their paired differences from the first loss"
        caption = "Mean over the seeds; a band is one standard deviation. The first epochs may lie below the axis."
        page.picture(directory / CURVES, alt, caption)
    if (directory / WHERE).is_file():
        page.section("Where they differ")
        page.picture(directory / WHERE, "Images on which the losses disagree most, side by side")


def _add_failed(page: Page, failed: Sequence[tuple[str, int, Optional[str]]]) -> None:
    if failed:
        page.section("Failed runs")
        page.table(["loss", "seed", "reason"], [[f"`{arm}`", seed, reason or ""] for arm, seed, reason in failed])

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tables of report.html, made from the rows of summary.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple, Optional

METRICS, TEST, AP = "metrics/", "test/", "AP_"
SIZES = ("AP_small", "AP_medium", "AP_large")
SECONDS = "seconds"
Rows = Sequence[Mapping[str, Any]]
Label = Callable[[str], str]
SPREAD_NOTE = "Mean ± deviation over the seeds"


class Table(NamedTuple):
    """A table.

    Attributes:
        heading: Heading of its section; tables in a row with the same heading share one.
        header: The head of each column.
        rows: The cells.
        caption: What it shows.
        note: A paragraph below it.
    """

    heading: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    note: str = ""


def tables(rows: Rows, metric: str, label: Label, losses_note: str = "") -> list[Table]:
    """Return the tables of all that finished runs have measured, but the differences of the metric that decides.

    Args:
        rows: One for every loss and measure, as `summary.summarise` returns them; those of the baseline first.
        metric: Full name of the metric that decides.
        label: Turns a measure's name into the one that is shown.
        losses_note: What a reader has to know of the values of losses.
    """
    names = list(dict.fromkeys(row["measure"] for row in rows))
    averages = [name for name in names if name.startswith(METRICS)]
    sizes = [name for name in SIZES if name in names]
    classes = [name for name in names if name.startswith(AP) and name not in SIZES]
    of_test = [name for name in names if name.startswith(TEST)]
    losses = [name for name in names if name not in (*averages, *sizes, *classes, *of_test, SECONDS)]
    best = "Of the best checkpoint: mean ± deviation over the seeds"
    made = [
        _means("Metrics", rows, [*averages, *(name for name in names if name == SECONDS)], label, best),
        _others(rows, [name for name in (*averages, *sizes) if name != metric], label),
        _by_arm("Average precision by size", "size", rows, sizes, label),
        _by_arm("Average precision by class", "class", rows, classes, label),
        _by_arm("Test split", "metric", rows, of_test, label),
        _means("Losses after the last epoch", rows, losses, label, SPREAD_NOTE)._replace(note=losses_note),
    ]
    return [table for table in made if table.rows and len(table.header) > 1]


def spread(row: Optional[Mapping[str, Any]], digits: int = 4) -> Optional[str]:
    """Return mean ± deviation of a row, None without any.

    >>> spread({"mean": 0.5, "sd": 0.125}, 2)
    '0.50 ± 0.12'
    """
    if row is None or row["mean"] is None:
        return None
    deviation = "" if row["sd"] is None else f" ± {row['sd']:.{digits}f}"
    return f"{row['mean']:.{digits}f}{deviation}"


def signed(value: Optional[float]) -> Optional[str]:
    """Return a difference with its sign; None for None."""
    return None if value is None else f"{value:+.4f}"


def _arms(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["loss"] for row in rows))


def _cells(rows: Rows) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(row["loss"], row["measure"]): row for row in rows}


def _means(heading: str, rows: Rows, names: Sequence[str], label: Label, caption: str) -> Table:
    """Return a table with a row for every arm."""
    cells = _cells(rows)
    lines = [
        [f"`{arm}`", *(spread(cells.get((arm, name)), 1 if name == SECONDS else 4) for name in names)]
        for arm in _arms(rows)
    ]
    return Table(heading, ["loss", *map(label, names)], lines, caption)


def _others(rows: Rows, names: Sequence[str], label: Label) -> Table:
    """Return the differences of the metrics that do not decide, a row for every metric and arm."""
    shown = [row for name in names for row in rows if row["measure"] == name and row["difference"] is not None]
    lines = [
        [label(row["measure"]), f"`{row['loss']}`", *(signed(row[key]) for key in ("difference", "low", "high"))]
        for row in shown
    ]
    caption = f"Difference from `{rows[0]['loss']}`, with 95 % intervals" if rows else ""
    note = "Each interval is for itself: of twenty such differences one looks real by chance. They carry no verdict."
    return Table("Metrics", ["metric", "loss", "difference", "from", "to"], lines, caption, note)


def _by_arm(heading: str, kind: str, rows: Rows, names: Sequence[str], label: Label) -> Table:
    """Return a table with a row for every metric and a column for every arm."""
    cells, arms = _cells(rows), _arms(rows)
    lines = [[label(name).removeprefix(AP), *(spread(cells.get((arm, name))) for arm in arms)] for name in names]
    return Table(heading, [kind, *(f"`{arm}`" for arm in arms)], lines, SPREAD_NOTE)

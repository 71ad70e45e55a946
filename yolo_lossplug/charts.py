# SPDX-License-Identifier: AGPL-3.0-or-later
"""One look for all plots: lines that grey print keeps apart, labels that are never clipped."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_lossplug.files import write_bytes, write_text
from yolo_lossplug.terminal import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours and five that the colour-blind tell apart as well, in an order in which neighbours differ in
# lightness, which grey print keeps.
COLOURS = (
    *("#000000", "#e69f00", "#0072b2", "#56b4e9", "#8400cd", "#cc79a7"),
    *("#882255", "#8c8cff", "#332288", "#d55e00", "#661100", "#009e73"),
)
NUMBER = re.compile(r"[+-]?[\d.]+(e[+-]?\d+)?")
DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "*")


def styles() -> Iterable[dict[str, Any]]:
    """Yield keyword arguments of `Axes.plot` for one line after another; 12 have 12 colours, and 120 differ."""
    triples = zip(cycle(COLOURS), cycle(DASHES), cycle(MARKERS))
    return ({"color": colour, "linestyle": dash, "marker": marker, "markersize": 4} for colour, dash, marker in triples)


def figure(rows: int, columns: int, width: float = 4.5, height: float = 3.2) -> tuple[Figure, Any]:
    """Return a figure without any window system, and its axes (rows, columns); sizes are inches of one of these."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here, so that tables can be written without it
    from matplotlib.figure import Figure

    made = Figure(figsize=(columns * width, rows * height), layout="constrained")
    FigureCanvasAgg(made)
    return made, made.subplots(rows, columns, squeeze=False)


def legend_below(made: Figure, axes: Any, columns: int = 3) -> None:
    """Put the legend of one axes below the whole figure, where it hides no line."""
    handles, labels = axes.get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=min(columns, max(1, len(labels))), frameon=False)


def legend_columns(names: Sequence[str], width: int) -> int:
    """Return the number of columns of a legend at most a number of characters wide, with rows of like length."""
    most = max(1, min(6, len(names), width // (max(len(name) for name in names) + 10)))
    rows_needed = -(-len(names) // most)
    return -(-len(names) // rows_needed)


def save(made: Figure, file: Path) -> Path:
    """Write a figure as PNG and return the file. Text is text: what users have named holds no formulas."""
    from matplotlib.text import Text

    picture = io.BytesIO()
    texts: list[Any] = made.findobj(Text)
    for text in texts:
        text.set_text(printable(text.get_text()))
        text.set_parse_math("$" not in text.get_text())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph ")  # for each character that the font lacks, which is drawn as a box
        made.savefig(picture, dpi=150)
    return write_bytes(file, picture.getvalue())


def save_table(rows: Sequence[dict[str, Any]], file: Path, columns: Sequence[str] = ()) -> Path:
    """Write rows as CSV and return the file, which is complete or as it was; its folder is made.

    The columns are those of the rows if no names are given, and what a row lacks stays empty.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns or dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows({name: _as_text(value) for name, value in row.items()} for row in rows)
    return write_text(file, text.getvalue())


def _as_text(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula."""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    return value if NUMBER.fullmatch(value) else f"'{value}"


def read_table(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with file.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))

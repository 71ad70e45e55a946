# SPDX-License-Identifier: AGPL-3.0-or-later
"""Text that fits the terminal: long lines go on below their own column, tables are aligned."""

from __future__ import annotations

import re
import shutil
import textwrap
import unicodedata
from collections.abc import Sequence

MIN_WIDTH = 40
"""Narrower terminals get lines of this width."""
MIN_COLUMN = 10
"""An explanation with less room goes on below its entry."""
COLUMN = re.compile(r"^(\s*(?:[^\s].*?)?\s{2,})(?=\S)")
"""An entry and the gap before its explanation."""


def width() -> int:
    """Return the columns of the terminal, 80 where none is known."""
    return max(MIN_WIDTH, shutil.get_terminal_size((80, 24)).columns)


def fit(text: str, columns: int = 0) -> str:
    """Return a text whose long lines go on below their second column, or below their indent.

    Args:
        text: Lines; a gap of two spaces or more sets an entry apart from its explanation. Words stay whole.
        columns: Width; that of the terminal if not given.

    >>> print(fit("  loss=NAME   one of the box losses", 24))
      loss=NAME   one of the
                  box losses
    """
    return "\n".join(_fit_line(line, columns or width()) for line in text.split("\n"))


def _fit_line(line: str, columns: int) -> str:
    if cells(line) <= columns:
        return line
    margin = len(line) - len(line.lstrip())
    entry = COLUMN.match(line)
    start = entry.end() if entry else margin
    has_room = columns - start >= MIN_COLUMN
    cut, indent = (start, start) if has_room else (margin, margin + 4)
    wrapped = textwrap.wrap(line[cut:], columns - indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join([line[:cut] + wrapped[0], *(" " * indent + part for part in wrapped[1:])])


def cells(text: str) -> int:
    """Return how many columns a text takes: wide characters take two, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def table(rows: Sequence[Sequence[str]], gap: int = 2) -> list[str]:
    r"""Return rows as aligned lines: the first column to the left, the others to the right unless they hold words.

    Args:
        rows: The head and the rows, all of one length.
        gap: Spaces between columns.

    >>> print("\n".join(table([["loss", "seeds"], ["ciou", "3"], ["focal-eiou", "10"]])))
    loss        seeds
    ciou            3
    focal-eiou     10
    """
    columns = list(zip(*rows))
    widths = [max(map(cells, column)) for column in columns]
    right = [i > 0 and all(_is_number(cell) for cell in column[1:]) for i, column in enumerate(columns)]
    return [(" " * gap).join(_padded(*cell) for cell in zip(row, widths, right)).rstrip() for row in rows]


def _is_number(cell: str) -> bool:
    return not cell.strip() or bool(re.match(r"^[+−-]?[\d.,]", cell.strip()))


def _padded(cell: str, size: int, is_right: bool) -> str:
    space = " " * (size - cells(cell))
    return space + cell if is_right else cell + space

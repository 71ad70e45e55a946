# SPDX-License-Identifier: AGPL-3.0-or-later
"""Text that fits the terminal: long lines go on below their own column, tables are aligned."""

from __future__ import annotations

import re
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence

MIN_WIDTH = 40
"""Narrower terminals get lines of this width."""
NAME_WIDTH = 24
"""Characters of a name in the first column of a table."""
COLUMN = re.compile(r"^(\s*(?:[^\s].*?)?\s{2,})(?=\S)")
"""An entry and the gap before its explanation."""
LABEL = re.compile(r"\s*\w+: ")
"""Begins a line of its own, as ``Note: ``; what does not fit into it is indented."""
CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
WORD = re.compile(r"\S*[\[(][-\d.∞]+, [-\d.∞]+[\])]\S*|\S+")
"""What is not broken: an interval such as ``[0, ∞)``, or whatever has no space in it."""


def width() -> int:
    """Return the columns of the terminal, 80 where none is known."""
    return max(MIN_WIDTH, shutil.get_terminal_size((80, 24)).columns)


def fit(text: str, columns: int = 0) -> str:
    """Return a text whose long lines go on below their second column, or a little to the right of their indent.

    Args:
        text: Lines; a gap of two spaces or more sets an entry apart from its explanation. Words stay whole.
        columns: Width; that of the terminal if not given.

    >>> print(fit("  loss=NAME   one of the box losses", 24))
      loss=NAME   one of the
                  box losses
    """
    return "\n".join(_fit_line(line, columns or width()) for line in text.split("\n"))


def fit_error(text: str) -> str:
    """Return an error as it is printed: fitted to a terminal, and one line in a log that is searched."""
    return fit(text) if sys.stderr.isatty() else text


def _fit_line(line: str, columns: int) -> str:
    """Return a line with breaks between words, so that each part is as long as it may be."""
    if size(line) <= columns:
        return line
    margin, entry = len(line) - len(line.lstrip()), COLUMN.match(line)
    start = entry.end() if entry else margin
    is_item = start == margin > 0 or LABEL.match(line)
    has_room = columns - start >= 10 and not is_item  # an explanation with less goes on below its entry
    cut, indent = (start, start) if has_room else (margin, margin + 4)
    first, *words = WORD.findall(line[cut:])
    parts = [line[:cut] + first]
    for word in words:
        longer = f"{parts[-1]} {word}"
        if size(longer) <= columns:
            parts[-1] = longer
        else:
            parts.append(" " * indent + word)
    return "\n".join(parts)


def size(text: str) -> int:
    """Return how long a line is: columns of a terminal, or else bytes, which is what `awk` counts in some locales."""
    return cells(text) if sys.stdout.isatty() else len(text.encode())


def printable(text: str) -> str:
    r"""Return a text without colours and other control characters, but for ends of lines and tabs.

    >>> printable("\x1b[31mred\x1b[0m")
    'red'
    """
    return CONTROL.sub("", text)


def cells(text: str) -> int:
    """Return how many columns a text takes: wide characters take two, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def table(rows: Sequence[Sequence[str]], columns: int = 0, words_right: bool = False) -> list[str]:
    r"""Return rows as aligned lines: the first column to the left, the others to the right unless they hold words.

    Columns that do not fit go on below, after an empty line, beside the first column again.

    Args:
        rows: The head and the rows, all of one length.
        columns: Width; that of the terminal if not given.
        words_right: Whether columns with words stand to the right, too.

    >>> print("\n".join(table([["loss", "seeds"], ["ciou", "3"], ["focal-eiou", "10"]])))
    loss        seeds
    ciou            3
    focal-eiou     10
    """
    first, *others = zip(*rows)
    padded = [_aligned(first), *(_aligned(other, words_right or all(map(_is_number, other[1:]))) for other in others)]
    lines: list[str] = []
    for block in _blocks([cells(column[0]) for column in padded], columns or width()):
        lines += [""] if lines else []
        lines += ["  ".join(cell).rstrip() for cell in zip(*(padded[i] for i in block))]
    return lines


def short_names(names: Sequence[str]) -> list[str]:
    """Return names of at most `NAME_WIDTH` characters: cut at the end, or at the beginning where ends differ.

    >>> short_names(["cls_weights={'bicycle': 1}", "cls_weights={'bicycle': 2}"])
    ["…_weights={'bicycle': 1}", "…_weights={'bicycle': 2}"]
    """
    starts = [name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 1]}…" for name in names]
    ends = [name if len(name) <= NAME_WIDTH else f"…{name[1 - NAME_WIDTH :]}" for name in names]
    return max(starts, ends, key=lambda cut: len({*cut}))


def _aligned(column: Sequence[str], is_right: bool = False) -> list[str]:
    widest = max(map(cells, column))
    spaces = [" " * (widest - cells(cell)) for cell in column]
    return [space + cell if is_right else cell + space for cell, space in zip(column, spaces)]


def _blocks(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Yield the columns that are printed side by side: the first, and as many others as there is room for."""
    block, used = [0], widths[0]
    for i, wide in enumerate(widths[1:], 1):
        if used + 2 + wide > room and len(block) > 1:
            yield block
            block, used = [0], widths[0]
        block.append(i)
        used += 2 + wide
    yield block


def _is_number(cell: str) -> bool:
    return not cell.strip(" -–") or bool(re.match(r"^[+−-]?[\d.,]", cell.strip()))

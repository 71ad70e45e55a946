# SPDX-License-Identifier: AGPL-3.0-or-later
"""Reports as one HTML file that needs nothing else: pictures, style and script are inside, and nothing is fetched."""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, Optional, Union

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'"
NUMBER = re.compile(r"[+\-−]?\d[\d,]*\.?\d*(e[+-]?\d+)?(?=\s*(±|%|px|GB|MB|s|ms|min|h|×)|$)")
"""Text that is a number, alone or before a unit."""
SIGNATURES = ((b"\x89PNG\r\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"<svg", "image/svg+xml"))
CSS_DPI = 96
EMPTY = "–"


class Page:
    """A report that grows from top to bottom, and is written as one HTML file.

    All text is escaped; what is between backticks is shown as code. The same calls give the same bytes.

    Args:
        title: Heading of the page, and name of the window.
        subtitle: A line below it.
        command: The command that makes the report again, shown at the end with a button that copies it.

    Example:
        >>> page = Page("Comparison", command="lossplug compare ...")
        >>> page.verdict("`eiou` is better than `ciou`.")
        >>> page.section("Differences")
        >>> page.table(["loss", "difference"], [["eiou", 0.0123]])
        >>> file = page.write("report.html")  # doctest: +SKIP
    """

    def __init__(self, title: str, subtitle: str = "", command: str = "") -> None:
        self._title, self._subtitle, self._command = title, subtitle, command
        self._verdicts: list[str] = []
        self._sections: list[tuple[str, list[str]]] = [("", [])]
        self._foot: list[str] = []
        self._tables = 0

    def verdict(self, sentence: str) -> None:
        """Add a sentence to the conclusion, which comes first and is the most prominent."""
        self._verdicts.append(sentence)

    def section(self, heading: str) -> None:
        """Begin a section, which holds all that follows."""
        self._sections.append((heading, []))

    def text(self, paragraph: str) -> None:
        """Add a paragraph."""
        self._add(f"<p>{inline(paragraph)}</p>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> None:
        """Add a table that is sorted by a click on a head of it, and scrolls on its own where it is too wide.

        Args:
            header: The head of each column.
            rows: Numbers, text, or None where there is nothing; each as long as the header. Floats of one column get
                the same number of decimals, and columns of numbers are aligned to the right.
            caption: What the table shows.

        Raises:
            ValueError: If a row is longer or shorter than the header.
        """
        if any(len(row) != len(header) for row in rows):
            raise ValueError(f"all rows of a table need {len(header)} cells, as its header has")
        self._tables += 1
        self._add(_table(header, rows, caption, f"t{self._tables}"))

    def picture(self, picture: Union[str, Path, bytes], alt: str, caption: str = "") -> None:
        """Add a picture, as wide as its resolution asks for or the page allows; a click enlarges it.

        Args:
            picture: A PNG, JPEG or SVG file, or what is in one.
            alt: What it shows, for those who do not see it.
            caption: A line below it.

        Raises:
            ValueError: If it is of another kind.
        """
        data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        image = f'<img src="{data_uri(data)}" alt="{escape(alt)}"{_size(data)} loading="lazy" decoding="async">'
        below = f"<figcaption>{inline(caption)}</figcaption>" if caption else ""
        self._add(f'<figure><button class="zoom" aria-label="Enlarge: {escape(alt)}">{image}</button>{below}</figure>')

    def code(self, text: str) -> None:
        """Add text to copy as it is, such as a command."""
        self._add(_code(text))

    def foot(self, line: str) -> None:
        """Add a line to the foot of the page: versions, the date, hardware."""
        self._foot.append(line)

    def html(self) -> str:
        """Return the whole page."""
        title, style, script = escape(self._title.replace("`", "")), _asset("page.css"), _asset("page.js")
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{self._body()}\n"
            f"<script>\n{script}</script>\n</body>\n</html>\n"
        )

    def write(self, file: Union[str, Path]) -> Path:
        """Write the page and return the file, which is complete or as it was."""
        target = Path(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(target.name + ".tmp")
        unfinished.write_bytes(self.html().encode("utf-8"))
        unfinished.replace(target)
        return target

    def _add(self, html: str) -> None:
        self._sections[-1][1].append(html)

    def _body(self) -> str:
        subtitle = f'<p class="subtitle">{inline(self._subtitle)}</p>' if self._subtitle else ""
        verdicts = "".join(f"<p>{inline(sentence)}</p>" for sentence in self._verdicts)
        verdict = f'<div class="verdict">{verdicts}</div>' if verdicts else ""
        parts = [f"<header><h1>{inline(self._title)}</h1>{subtitle}{verdict}</header>", self._contents()]
        parts += [_section(heading, blocks, number) for number, (heading, blocks) in enumerate(self._sections)]
        return "\n".join(["<main>", *filter(None, parts), "</main>", self._footer()])

    def _contents(self) -> str:
        """Return links to the sections, where there are enough to need them."""
        headings = [(number, heading) for number, (heading, _) in enumerate(self._sections) if heading]
        links = "".join(f'<li><a href="#s{number}">{inline(heading)}</a></li>' for number, heading in headings)
        return f'<nav aria-label="Sections"><ul>{links}</ul></nav>' if len(headings) > 2 else ""

    def _footer(self) -> str:
        command = f"<p>Made by</p>{_code(self._command)}" if self._command else ""
        lines = "".join(f"<p>{inline(line)}</p>" for line in self._foot)
        return f"<footer>{command}{lines}</footer>" if command or lines else ""


def inline(text: str) -> str:
    """Return text as HTML, with what is between backticks as code.

    >>> inline("`a<b` & c")
    '<code>a&lt;b</code> &amp; c'
    """
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def data_uri(data: bytes) -> str:
    """Return a picture as the address that holds it.

    Raises:
        ValueError: If it is neither PNG, JPEG nor SVG.
    """
    is_text = data.lstrip()[:5].lower() in (b"<?xml", b"<svg ", b"<!doc") and b"<svg" in data
    kind = next((kind for start, kind in SIGNATURES if data.startswith(start)), "image/svg+xml" if is_text else None)
    if kind is None:
        raise ValueError("a picture must be PNG, JPEG or SVG")
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def number_of(cell: Any) -> Optional[float]:
    """Return the number that a cell shows or begins with; None if there is none.

    >>> number_of("+0.012 ± 0.003"), number_of("−31 %"), number_of("3 of 4"), number_of(None)
    (0.012, -31.0, None, None)
    """
    if isinstance(cell, (int, float)):
        return float(cell) if math.isfinite(cell) else None
    match = NUMBER.match(cell) if isinstance(cell, str) else None
    return float(match.group().replace(",", "").replace("−", "-")) if match else None


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _section(heading: str, blocks: Sequence[str], number: int) -> str:
    head = f"<h2>{inline(heading)}</h2>" if heading else ""
    content = "\n".join(filter(None, [head, *blocks]))
    return f'<section id="s{number}">\n{content}\n</section>' if content else ""


def _code(text: str) -> str:
    return (
        f'<div class="code"><pre tabindex="0"><code>{escape(text)}</code></pre><button class="copy">Copy</button></div>'
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]], caption: str, name: str) -> str:
    columns = [[row[k] for row in rows] for k in range(len(header))]
    classes = [' class="number"' if _is_numeric(column) else "" for column in columns]
    digits = [_digits(column) for column in columns]
    heads = "".join(
        f'<th scope="col"{kind}><button>{inline(name)}</button></th>' for kind, name in zip(classes, header)
    )
    lines = [
        "".join(_cell(cell, kind, places, k == 0) for k, (cell, kind, places) in enumerate(zip(row, classes, digits)))
        for row in rows
    ]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    # Not a <caption>, which would scroll with a wide table.
    above = f'<p class="caption" id="{name}">{inline(caption)}</p>\n' if caption else ""
    label = f'aria-labelledby="{name}"' if caption else 'aria-label="Table"'
    return (
        f'{above}<div class="scroll" role="region" {label} tabindex="0"><table {label}>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _is_numeric(column: Sequence[Any]) -> bool:
    shown = [cell for cell in column if cell not in (None, "", EMPTY)]
    return bool(shown) and all(number_of(cell) is not None or isinstance(cell, float) for cell in shown)


def _digits(column: Sequence[Any]) -> str:
    """Return the format of the floats of a column: about 4 significant digits of the largest."""
    sizes = [abs(cell) for cell in column if isinstance(cell, float) and math.isfinite(cell)]
    largest = max(sizes, default=0.0)
    if 0 < largest < 0.001:
        return ".3g"
    return f".{min(4, max(0, 4 - math.ceil(math.log10(largest)))) if largest else 4}f"


def _cell(cell: Any, kind: str, places: str, is_first: bool) -> str:
    tag = 'th scope="row"' if is_first else "td"
    value = number_of(cell)
    key = "" if value is None else f' data-value="{value!r}"'
    return f"<{tag}{kind}{key}>{inline(_shown(cell, places))}</{tag[:2]}>"


def _shown(cell: Any, places: str) -> str:
    """Return what a cell shows."""
    if cell is None or cell == "":
        return EMPTY
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}" if abs(cell) >= 10_000 else str(cell)
    return format(cell, places) if isinstance(cell, float) else str(cell)


def _size(data: bytes) -> str:
    """Return the attributes of a PNG's size, in CSS pixels of its own resolution where it has one."""
    if not data.startswith(b"\x89PNG"):
        return ""
    width, height = struct.unpack(">II", data[16:24])
    scale = CSS_DPI / _dots_per_inch(data)
    return f' width="{width * scale:.0f}" height="{height * scale:.0f}"'


def _dots_per_inch(data: bytes) -> float:
    """Return the resolution of a PNG, 96 where it has none."""
    at = data.find(b"pHYs", 0, data.find(b"IDAT"))
    if at < 0:
        return CSS_DPI
    per_metre, _, unit = struct.unpack(">IIB", data[at + 4 : at + 13])
    return per_metre * 0.0254 if unit == 1 and per_metre else CSS_DPI

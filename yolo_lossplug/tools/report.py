# SPDX-License-Identifier: AGPL-3.0-or-later
"""Reports: the same words and numbers in a terminal, as Markdown, and as one HTML file that fetches nothing."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Optional, Union

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from yolo_lossplug import terminal
from yolo_lossplug.files import write_text

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'"
NUMBER = re.compile(r"[+\-−]?\d[\d,]*\.?\d*(e[+-]?\d+)?(?=\s*(±|%|px|GB|MB|s|ms|min|h|×)|$)")
"""Text that is a number, alone or before a unit."""
MATHS = re.compile(r"[+\-−]?[\d.,]+(e[+-]?\d+)?( ± [\d.]+)?( ?%)?")
"""Text that LaTeX shall set as a number."""
CODE = re.compile(r"`([^`]+)`")
MARKS = re.compile(r"[\\*<\[]|(?<!\w)_|_(?!\w)")
"""Characters that would be markup in Markdown."""
TYPES = {b"\x89PNG\r\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
CSS_DPI, JPEG_QUALITY = 96, 85
EMPTY = "–"
TEX = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
TEX.update((char, f"\\{char}") for char in "_%&#${}")


@dataclass(frozen=True)
class Text:
    """A paragraph, and whether a terminal shows it; what is between backticks is code."""

    text: str
    is_brief: bool = False
    kind: ClassVar[str] = "text"

    def terminal(self) -> str:
        """Return what a terminal shows."""
        return terminal.fit(_plain(self.text)) if self.is_brief else ""

    def markdown(self) -> str:
        """Return it as Markdown."""
        return _marked(self.text)


@dataclass(frozen=True)
class Code(Text):
    """Text to copy as it is, such as a command."""

    kind: ClassVar[str] = "code"

    def terminal(self) -> str:
        """Return what a terminal shows."""
        return self.text if self.is_brief else ""

    def markdown(self) -> str:
        """Return it as Markdown."""
        return f"```\n{self.text}\n```"


@dataclass(frozen=True)
class Picture:
    """A picture, which no terminal shows.

    Attributes:
        source: A PNG or JPEG file, or the content of one, which Markdown does not show.
        alt: What it shows, for those who do not see it.
        caption: A line below it.
        is_photo: Whether it is shown as JPEG, which is a tenth of the PNG of photographs.
    """

    source: Union[Path, bytes]
    alt: str
    caption: str = ""
    is_photo: bool = False
    kind: ClassVar[str] = "picture"

    @cached_property
    def data(self) -> bytes:
        """What a page shows."""
        data = self.source if isinstance(self.source, bytes) else self.source.read_bytes()
        if self.is_photo:
            made = io.BytesIO()
            with Image.open(io.BytesIO(data)) as picture:
                picture.convert("RGB").save(made, "JPEG", quality=JPEG_QUALITY, optimize=True)
            data = made.getvalue()
        return data

    @cached_property
    def uri(self) -> str:
        """The picture as the address that holds it."""
        kind = next((name for signature, name in TYPES.items() if self.data.startswith(signature)), None)
        if kind is None:
            raise ValueError("a picture must be PNG or JPEG")
        return f"data:{kind};base64,{base64.b64encode(self.data).decode('ascii')}"

    @property
    def size(self) -> Optional[tuple[int, int]]:
        """Width and height of a PNG, in CSS pixels of its own resolution where it has one."""
        if not self.uri.startswith("data:image/png"):
            return None
        with Image.open(io.BytesIO(self.data)) as picture:
            scale = CSS_DPI / picture.info.get("dpi", (CSS_DPI,))[0]
            return round(picture.width * scale), round(picture.height * scale)

    def terminal(self) -> str:
        """Return nothing, which is what a terminal shows."""
        return ""

    def markdown(self) -> str:
        """Return it as Markdown, empty for one without a file."""
        caption = f"\n\n{_marked(self.caption)}" if self.caption else ""
        return "" if isinstance(self.source, bytes) else f"![{_marked(self.alt)}]({self.source.name}){caption}"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        header: The head of each column.
        rows: Numbers, text, or None for nothing, one for each column; its floats get the same number of decimals.
        caption: What the table shows.
        columns: How many columns a terminal shows, from the first; 0 for no table there.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    columns: int = 0
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        if any(len(row) != len(self.header) for row in self.rows):
            raise ValueError(f"all rows of a table need {len(self.header)} cells, as its header has")

    @cached_property
    def cells(self) -> list[list[str]]:
        """What each cell shows."""
        formats = [_format_of(column) for column in zip(*self.rows)]
        return [[_shown(cell, spec) for cell, spec in zip(row, formats)] for row in self.rows]

    @cached_property
    def numeric(self) -> list[bool]:
        """Which columns hold nothing but numbers."""
        columns = ([row[k] for row in self.rows if row[k] not in (None, "", EMPTY)] for k in range(len(self.header)))
        return [bool(c) and all(isinstance(v, float) or number_of(v) is not None for v in c) for c in columns]

    def markdown(self) -> str:
        """Return the table as Markdown."""
        rows = [[_marked(cell).replace("|", "\\|") for cell in row] for row in (self.header, *self.cells)]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        rule = "|" + "|".join("---:" if is_number else "---" for is_number in self.numeric) + "|"
        caption = [_marked(self.caption), ""] if self.caption else []
        return "\n".join([*caption, lines[0], rule, *lines[1:]])

    def latex(self, about: Sequence[str] = ()) -> str:
        """Return the table for LaTeX's package booktabs, below some lines as comments."""
        kinds = "".join("r" if is_number else "l" for is_number in self.numeric)
        head, *lines = (" & ".join(map(_tex, row)) + r" \\" for row in (self.header, *self.cells))
        body = [rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", head, r"\midrule", *lines, r"\bottomrule"]
        return "\n".join([*(f"% {_plain(line)}" for line in about), *body, r"\end{tabular}", ""])

    def terminal(self) -> str:
        """Return what a terminal shows: the first of the columns, or nothing."""
        if not self.columns:
            return ""
        rows = [[_plain(cell) for cell in row[: self.columns]] for row in (self.header, *self.cells)]
        names = terminal.short_names([row[0] for row in rows])
        caption = [terminal.fit(_plain(self.caption))] if self.caption else []
        return "\n".join([*caption, *terminal.table([[name, *row[1:]] for name, row in zip(names, rows)])])


Block = Union[Text, Code, Picture, Table]


@dataclass
class Section:
    """A heading and what follows it."""

    heading: str = ""
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """The same words and numbers for all forms in which they are shown.

    Text is shown as it is, never as markup; what is between backticks is shown as code.

    Attributes:
        title: Heading of the page, and name of the window.
        subtitle: A line below it.
        command: The command that makes the report again.
        verdicts: The conclusion, the most prominent: first on a page, last in a terminal.
        sections: All else.
        footer: Versions, the date, hardware.
    """

    title: str
    subtitle: str = ""
    command: str = ""
    verdicts: Sequence[str] = ()
    sections: Sequence[Section] = ()
    footer: Sequence[str] = ()

    def terminal(self, with_verdict: bool = True) -> str:
        """Return what a terminal shows: the brief blocks, then the conclusion."""
        shown = [block.terminal() for section in self.sections for block in section.blocks]
        verdicts = (terminal.fit(_plain(sentence)) for sentence in (self.verdicts if with_verdict else ()))
        return "\n\n".join(filter(None, [*shown, "\n".join(verdicts)]))

    def markdown(self) -> str:
        """Return the report as Markdown, the conclusion first."""
        verdicts = (f"**{_marked(sentence)}**" for sentence in self.verdicts)
        parts = [f"# {_marked(self.title)}", *verdicts, _marked(self.subtitle)]
        for section in self.sections:
            parts += [f"## {_marked(section.heading)}"] if section.heading else []
            parts += [block.markdown() for block in section.blocks]
        parts += [f"Made by\n\n{Code(self.command).markdown()}"] if self.command else []
        return "\n\n".join(filter(None, [*parts, "  \n".join(map(_marked, self.footer))])) + "\n"

    def html(self) -> str:
        """Return the report as a page that needs no other file."""
        folder = Path(__file__).parent
        environment = Environment(
            loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
        )
        environment.filters.update(inline=inline, number=number_of)
        style, script = ((folder / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
        about = {"sections": [*enumerate(self.sections)], "policy": POLICY, "style": style, "script": script}
        return environment.get_template("report.html.jinja").render(about, report=self)

    def write(self, file: Path) -> Path:
        """Write the page and return the file, which is complete or as it was."""
        return write_text(file, self.html())


def inline(text: str) -> Markup:
    """Return text as HTML, with what is between backticks as code."""
    return Markup(CODE.sub(r"<code>\1</code>", str(escape(terminal.printable(text)))))


def number_of(cell: Any) -> Optional[float]:
    """Return the number that a cell shows or begins with; None if there is none.

    >>> number_of("+0.012 ± 0.003"), number_of("−31 %"), number_of("3 of 4"), number_of(None)
    (0.012, -31.0, None, None)
    """
    if isinstance(cell, (int, float)):
        return float(cell) if math.isfinite(cell) else None
    match = NUMBER.match(cell) if isinstance(cell, str) else None
    return float(match.group().replace(",", "").replace("−", "-")) if match else None


def _format_of(column: Sequence[Any]) -> str:
    """Return the format of the floats of a column: about 4 significant digits of the largest."""
    largest = max((abs(cell) for cell in column if isinstance(cell, float) and math.isfinite(cell)), default=0.0)
    decimals = min(4, max(0, 4 - math.ceil(math.log10(largest)))) if largest else 4
    return ".3g" if 0 < largest < 0.001 else f".{decimals}f"


def _shown(cell: Any, spec: str) -> str:
    """Return what a cell shows; floats in a format."""
    if cell is None or cell == "":
        return EMPTY
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}" if abs(cell) >= 10_000 else str(cell)
    return format(cell, spec) if isinstance(cell, float) else str(cell)


def _plain(text: str) -> str:
    """Return text on one line without the marks of code."""
    return " ".join(CODE.sub(r"\1", terminal.printable(text)).split())


def _marked(text: str) -> str:
    """Return text as Markdown: nothing but code is markup."""
    words = re.split(r"(`[^`]+`)", " ".join(terminal.printable(str(text)).split()))
    return "".join(word if word.startswith("`") else MARKS.sub(r"\\\g<0>", word) for word in words)


def _tex(text: str) -> str:
    """Return a cell as LaTeX prints it, numbers in its mathematical mode."""
    text = _plain(text)
    if MATHS.fullmatch(text):
        number = text.replace(" ± ", r" \pm ").replace("−", "-").replace("%", TEX["%"])
        return f"${number}$"
    return "--" if text == EMPTY else "".join(TEX.get(char, char) for char in text)

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Reports in one file: what is in them, and how a browser shows them."""

import base64
import functools
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from yolo_lossplug.tools.report import Code, Picture, Report, Section, Table, Text, number_of

HOSTILE = "<script>alert(\"x\")</script> & 'y' <img src=x onerror=alert(1)>"
ROWS = [["ciou", 0.25, None, "first"], ["eiou", -0.0123, 4, "b `code`"], ["x" * 60, 0.5, 12_000, "c"]]


def png(width=900, height=300, **more):
    data = io.BytesIO()
    Image.new("RGB", (width, height), "#0072b2").save(data, "PNG", **more)
    return data.getvalue()


def report():
    wide = Table(["class", *(f"loss number {k}" for k in range(14))], [[f"c{k}", *[0.1 * k] * 14] for k in range(3)])
    sections = [
        Section("", [Text("Before any section.")]),
        Section(
            "Differences",
            [
                Table(["loss", "difference", "seeds", "verdict"], ROWS, "Paired differences from `ciou`"),
                Picture(png(3000, 400), "a wide plot", "Wide"),
                Picture(png(40, 20), "a drawing"),
            ],
        ),
        Section("Classes", [wide]),
        Section("Code " + "long" * 40, [Code("lossplug inspect data=" + "a" * 300), Text("word" * 100)]),
    ]
    command = "lossplug compare " + " ".join(["loss=ciou,eiou"] * 20)
    verdicts, foot = ["`eiou` is better than `ciou`."], ["yolo-lossplug 0.1.0"]
    return Report("Which `loss`?", "8 runs of `yolov8n.yaml`", command, verdicts, sections, foot)


def of_blocks(*blocks):
    return Report("x", sections=[Section("", [*blocks])])


class Outline(HTMLParser):
    """Tags that are open at the end, and attributes of all."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, html):
        super().__init__()
        self.open, self.tags = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_text_is_never_markup():
    plain = Outline(report().html()).tags
    blocks = [Text(HOSTILE), Table([HOSTILE], [[HOSTILE]], HOSTILE), Picture(png(), HOSTILE, HOSTILE), Code(HOSTILE)]
    page = Report(HOSTILE, HOSTILE, HOSTILE, [HOSTILE], [Section(HOSTILE, blocks)], [HOSTILE])
    outline = Outline(page.html())
    assert outline.open == []
    assert sum(tag == "script" for tag, _ in outline.tags) == 1 == sum(tag == "img" for tag, _ in outline.tags)
    names = {name for _, attributes in (*outline.tags, *plain) for name in attributes}
    assert not [name for name in names if name.startswith("on")]
    image = next(attributes for tag, attributes in outline.tags if tag == "img")
    assert image["alt"] == HOSTILE


def test_a_page_needs_nothing_else_and_the_verdict_comes_first(tmp_path):
    html = report().html()
    for tag, attributes in Outline(html).tags:
        assert tag != "link"
        assert attributes.get("src", "data:").startswith("data:") and attributes.get("href", "#").startswith("#")
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert 'lang="en"' in html and 'name="viewport"' in html and "@media print" in html
    file = report().write(tmp_path / "new" / "report.html")
    before = file.read_bytes()
    assert report().write(file).read_bytes() == before
    assert [one.name for one in file.parent.iterdir()] == ["report.html"]
    page = Report("Title", verdicts=["The second is better."], sections=[Section("Differences", [Text("x")])])
    html = page.html()
    assert html.index("<h1>") < html.index("The second is better.") < html.index("<h2>")


def cells(header, rows):
    page = of_blocks(Table(header, rows))
    return re.findall(r"<t[dh](?: scope=\"\w+\")?(?: class=\"(\w+)\")?[^>]*>(.*?)</t[dh]>", page.html())


def test_cells():
    shown = cells(["a", "b", "c"], [["x", 0.5, 12_000], ["y", 0.123456, 7], ["z", None, None]])[3:]
    assert shown == [
        *[("", "x"), ("number", "0.5000"), ("number", "12,000")],
        *[("", "y"), ("number", "0.1235"), ("number", "7")],
        *[("", "z"), ("number", "–"), ("number", "–")],
    ]
    assert cells(["a"], [[123.456], [7.0]])[1:] == [("number", "123.5"), ("number", "7.0")]
    assert cells(["a"], [[0.00012345], [float("nan")]])[1:] == [("number", "0.000123"), ("number", "nan")]
    assert cells(["a", "b"], [["+0.012 ± 0.003", "3 of 4"]])[2:] == [("number", "+0.012 ± 0.003"), ("", "3 of 4")]
    assert cells(["a"], [[True], ["x"]])[1:] == [("", "yes"), ("", "x")]
    with pytest.raises(ValueError, match="need 2 cells"):
        cells(["a", "b"], [["x"]])


@pytest.mark.parametrize(
    ("cell", "number"),
    [("31 %", 31), ("12,000", 12000), ("−0.5", -0.5), ("1e-3", 1e-3), ("640 px", 640), ("8n", None), ("", None)],
)
def test_text_that_is_a_number(cell, number):
    assert number_of(cell) == number


def test_pictures():
    assert base64.b64decode(Picture(png(), "plot").uri.partition(",")[2]) == png()
    page = of_blocks(Picture(png(1500, 600, dpi=(150, 150)), "plot"), Picture(png(100, 50), "without resolution"))
    assert 'width="960" height="384"' in page.html() and 'width="100" height="50"' in page.html()
    with pytest.raises(ValueError, match="must be PNG or JPEG"):
        of_blocks(Picture(b"GIF89a", "animation")).html()


SORT = """
(() => {
  const table = document.querySelector("table");
  const column = (k) => [...table.tBodies[0].rows].map((row) => row.cells[k].textContent);
  const click = (k) => table.tHead.rows[0].cells[k].firstElementChild.click();
  const seen = [];
  for (const k of [1, 1, 2, 2, 0, 0]) {
    click(k);
    seen.push([column(k), table.tHead.rows[0].cells[k].getAttribute("aria-sort")]);
  }
  const sorted = table.querySelectorAll("[aria-sort]").length;
  return {seen, sorted};
})()
"""
KEYBOARD = """
(async () => {
  const button = document.querySelector("thead button");
  button.focus();
  document.querySelector(".zoom").click();
  const dialog = document.querySelector("dialog");
  const natural = dialog.querySelector("img").getBoundingClientRect().width;
  dialog.click();
  await new Promise((done) => setTimeout(done, 50));
  document.querySelector(".copy").click();
  await new Promise((done) => setTimeout(done, 50));
  return {focused: document.activeElement.tagName, natural, dialogs: document.querySelectorAll("dialog").length,
          copied: document.querySelector(".copy").textContent};
})()
"""
CONTRAST = """
(() => {
  const light = (text) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = text.match(/[\\d.]+/g).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const back = (node) => {
    if (!node) return "rgb(255, 255, 255)";
    const colour = getComputedStyle(node).backgroundColor;
    return /, 0\\)$/.test(colour) ? back(node.parentElement) : colour;
  };
  const ratios = [...document.querySelectorAll("h1,h2,p,a,td,th button,code,figcaption,.copy,footer p")].map((node) => {
    const [a, b] = [light(getComputedStyle(node).color), light(back(node))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  });
  return Math.min(...ratios);
})()
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory, measure):
    """What a browser shows of a report: at both widths, light and dark."""
    return functools.partial(measure, report().write(tmp_path_factory.mktemp("page") / "report.html"))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it(shown, width, dark):
    seen = shown(width, dark=dark, script=CONTRAST)
    assert seen["overflow"] == [] and seen["scroll_width"] <= seen["width"] <= width
    assert seen["errors"] == [] and seen["requests"] == []
    assert seen["pictures"] == [3000, 40]
    assert seen["title"] == "Which loss?"
    assert seen["result"] >= 4.5, "WCAG AA"


def test_tables_are_sorted_pictures_enlarged_and_commands_copied(shown):
    result = shown(1280, script=SORT)["result"]
    assert result["seen"] == [
        *([["0.5000", "0.2500", "-0.0123"], "descending"], [["-0.0123", "0.2500", "0.5000"], "ascending"]),
        *([["12,000", "4", "–"], "descending"], [["4", "12,000", "–"], "ascending"]),
        *([["ciou", "eiou", "x" * 60], "ascending"], [["x" * 60, "eiou", "ciou"], "descending"]),
    ]
    assert result["sorted"] == 1
    seen = shown(390, script=KEYBOARD)
    assert seen["result"] == {"focused": "BUTTON", "natural": 3000, "dialogs": 0, "copied": "Copied"}
    assert seen["errors"] == []

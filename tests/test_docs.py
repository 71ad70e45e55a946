# SPDX-License-Identifier: AGPL-3.0-or-later
"""The pages of the documentation: what they take from the code is up to date, and the site shows all of it."""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from html import unescape
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import ultralytics
import yaml

from tests.runs import ROOT
from tests.test_readme import blocks, facts, rows
from yolo_lossplug.catalogue import keys_markdown, options_markdown
from yolo_lossplug.registry import BOX, REGISTRY, ROTATED, spec_of
from yolo_lossplug.selection.keys import keys
from yolo_lossplug.selection.select import select
from yolo_lossplug.sparse import candidates

DOCS = ROOT / "docs"
EXAMPLES = {
    **{"own-loss": "own_loss.py", "compare": "tune.py"},
    **{"zh/own-loss": "own_loss.py", "zh/compare": "tune.py"},
}
"""What pages include, by the page."""
CHINESE = {name: name for name in ("index.md", "choose.md", "compare.md", "own-loss.md")} | {
    "losses.md": "losses/index.md"
}
"""Originals of the pages in docs/zh."""
SCROLLING = "div.md-sidebar"
"""What the theme keeps beside the page on a phone until it is asked for."""
CLIPPED = """
[...document.querySelectorAll("pre, code, math, table, img")].filter((node) => {
  const style = (one) => getComputedStyle(one).overflowX;
  const scrolls = /auto|scroll/;
  if (node.matches("pre > code") && node.scrollWidth > node.clientWidth + 1) return !scrolls.test(style(node));
  for (let one = node.parentElement; one && one !== document.body; one = one.parentElement) {
    if (scrolls.test(style(one))) return false;
    const out = node.getBoundingClientRect().right > one.getBoundingClientRect().right + 1;
    if (/hidden|clip/.test(style(one)) && out && node.getBoundingClientRect().width) return true;
  }
  return false;
}).map((node) => node.outerHTML.slice(0, 200))
"""
"""What is cut off, and cannot be scrolled to."""


OURS = [spec for spec in REGISTRY if not spec.is_user_defined]


def cells(table):
    return [[cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


@pytest.fixture
def made(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    return import_module


def test_pages_are_up_to_date(made):
    build = made("build")
    assert not build.stale(), "run python docs/build.py"
    for path, text in build.pages().items():
        assert (DOCS / path).is_file() and (DOCS / path).read_text(encoding="utf-8") == text, "run python docs/build.py"


@pytest.mark.slow
def test_verify_prints_what_the_page_shows():
    """Up to numbers, which differ between machines, and with them the lengths of lines."""
    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    words, shown = re.search(r"\$ lossplug (verify [^\n]*)\n(.*?)```", page, re.DOTALL).groups()
    if f"ultralytics {ultralytics.__version__}" not in shown:
        pytest.skip("another release of Ultralytics has other seams")
    command = [sys.executable, "-m", "yolo_lossplug", *words.split()]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.sub(r"\S*\d\S*", "#", printed).split() == re.sub(r"\S*\d\S*", "#", shown).split()


def test_tables_hold_every_key_with_its_default_and_losses():
    assert {row[0] for row in cells(keys_markdown()) + cells(options_markdown())} == set(keys())
    for key, default, *_ in cells(keys_markdown()):
        value = None if default == "none" else yaml.safe_load(default)
        other = {"cls_loss": "qfl"} if key == "loss" else {"loss": "iou"}  # a run without any key is a stock run
        assert select({**other, key: value}) == select(other), key
    page = (ROOT / "docs" / "keys.md").read_text(encoding="utf-8")
    assert "\n".join(f"| {' | '.join(row)} |" for row in candidates.candidate_rows()) in page
    rows = cells(options_markdown())
    assert len(rows) > 30
    for key, default, _, _, belongs in rows:
        for asked in belongs.replace("`", "").split(", "):
            kind, _, name = asked.partition("=")
            task = "obb" if name in REGISTRY.names(ROTATED) else "detect"
            resolved = select({kind: f"{name}iou" if name.endswith("-") else name, "task": task}).resolved()
            assert str(resolved[key]) == default, asked


def test_what_others_have_found_is_cited():
    """A sentence that appeals to the results of others links to them."""
    appeal = re.compile(r"\b(?:public|published) (?:comparison|run|result|experiment)s\b|\b(?:it is|well) known that\b")
    for page in (*DOCS.rglob("*.md"), ROOT / "README.md"):
        for paragraph in page.read_text(encoding="utf-8").split("\n\n"):
            assert not appeal.search(paragraph.replace("\n", " ")) or "](http" in paragraph, (page, paragraph)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, and the text of its pages by file."""
    if not find_spec("mkdocs"):
        pytest.skip("builds the documentation: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {file: file.read_text(encoding="utf-8") for file in folder.rglob("*.html")}
    return folder, {file: unescape(re.sub(r"<[^>]*>", "", page)) for file, page in pages.items()}


def test_pages_hold_their_examples(site):
    folder, pages = site
    assert len(pages) > 25 and not [file for file, text in pages.items() if re.search(r"--8 ?<", text)]
    for page, example in EXAMPLES.items():
        code = (ROOT / "examples" / example).read_text(encoding="utf-8").strip()
        assert code in pages[folder / page / "index.html"], page


@pytest.mark.parametrize(("page", "source"), CHINESE.items())
def test_the_chinese_pages_say_the_same(page, source):
    chinese, english = ((DOCS / name).read_text(encoding="utf-8") for name in (f"zh/{page}", source))
    assert blocks(chinese) == blocks(english)
    levels = [[line.split()[0] for line in text.splitlines() if line.startswith("#")] for text in (english, chinese)]
    assert levels[0] == levels[1]
    assert len(rows(chinese)) == len(rows(english))
    for mine, theirs in zip(rows(chinese), rows(english)):
        assert facts(mine)[0] == facts(theirs)[0] and mine.count("|") == theirs.count("|"), mine
    assert targets(chinese, f"zh/{page}") == targets(english, source)
    prose = [re.sub(r"```.*?```", "", text, flags=re.DOTALL) for text in (english, chinese)]
    assert set(re.findall(r"`[^`\n]+`", prose[0])) == set(re.findall(r"`[^`\n]+`", prose[1]))


def targets(text, name):
    found = []
    for target in re.findall(r"(?<!!)\[[^]]*\]\(([^)]+)\)", text):
        path = target if "://" in target else os.path.normpath(Path("docs", name).parent / target)
        parts = Path(path).parts
        is_translated = parts[:2] == ("docs", "zh")
        found.append(f"docs/{CHINESE[parts[2]]}" if is_translated else str(path))
    return sorted(found)


@pytest.mark.parametrize("spec", OURS, ids=lambda spec: spec.name)
def test_every_loss_has_its_formula_in_latex(spec):
    assert len(OURS) > 40
    assert spec.latex, f"give {spec.name} a latex="
    assert all(line.count("{") == line.count("}") for line in spec.latex), spec.name


def test_formulas_become_maths(made):
    for name in ("latex2mathml", "mkdocs"):
        pytest.importorskip(name, reason="builds the documentation: pip install '.[docs]'")
    formula, maths = made("hooks").formula, made("families").maths
    for spec in OURS:
        assert re.findall(r"```math\n(.*)\n```", maths(spec)) == list(spec.latex)
        shown = [formula(line) for line in spec.latex]
        assert all(markup.count("<math") == 1 and "\\" not in markup for markup in shown), spec.name
    spec = spec_of(BOX, "plain", lambda pred, target: (pred - target).abs().mean(-1), formula="mean |p − t| < ∞")
    assert made("families").maths(spec) == "```text\nmean |p − t| < ∞\n```"


def test_commands_and_names_of_pages_of_losses(made):
    families = made("families")
    found = families.families()
    assert len(found) > 20
    for specs in found.values():
        for spec in specs:
            words = dict(word.split("=", 1) for word in families.training(spec).split()[2:])
            keys_ = {name: yaml.safe_load(value) for name, value in words.items() if name not in ("model", "data")}
            task = "obb" if "-obb" in words["model"] else "classify" if "-cls" in words["model"] else "detect"
            assert select({**keys_, "task": task}).given == set(keys_), spec.name
    families = made("families")
    shown = [spec for specs in families.families().values() for spec in specs]
    assert len(shown) == len(set(map(id, shown))) == sum(not spec.is_user_defined for spec in REGISTRY)
    for title in families.GROUPS:
        first = [families.names(s) for s in families.families().values() if families.group(s[0]) == title]
        assert first == sorted(first), title
    advice = families.advice()
    known = {(families.group(spec), families.shown(spec)) for spec in REGISTRY}
    assert len(advice) > 40 and set(advice) <= known
    assert all(len(texts) == 2 and all(texts) for texts in advice.values())


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served, as a browser needs it: links to folders, and scripts."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site[0])))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("width", [1280, 390])
def test_pages_in_a_browser(site, address, width, measure):
    folder, pages = site
    for file in sorted(pages):
        name = file.relative_to(folder).as_posix()
        seen = measure(address + name.removesuffix("index.html"), width, script=CLIPPED)
        assert seen["scroll_width"] <= seen["width"], f"{name}: wider than {width} pixels"
        assert not [node for node in seen["overflow"] if not node.startswith(SCROLLING)], name
        assert not seen["result"], f"{name}: cut off"
        assert all(seen["pictures"]), f"{name}: a picture is missing"
        assert not seen["errors"], name
        assert all(request.startswith((address, "data:")) for request in seen["requests"]), name
        assert not re.search(r"--8 ?<|<!--|\$\$|\\(frac|text|left|begin)\b", pages[file]), name


BAD = """<!doctype html><meta name="viewport" content="width=device-width"><body><main>
<pre style="width: 90px; overflow: hidden"><code>yolo train model=yolov8n.pt loss=eiou</code></pre>
<div style="width: 90px; overflow: hidden"><table><tr><td style="min-width: 200px">wide</td></tr></table></div>
<pre style="width: 90px; overflow: auto"><code>yolo train model=yolov8n.pt loss=eiou</code></pre>
<div style="width: 3000px">far</div><img src="missing.svg"></main></body>"""


def test_a_browser_sees_what_is_wrong(tmp_path, measure):
    (tmp_path / "bad.html").write_text(BAD, encoding="utf-8")
    seen = measure(tmp_path / "bad.html", 390, script=CLIPPED)
    assert seen["scroll_width"] > seen["width"] and "div" in seen["overflow"]
    assert [node[:6] for node in seen["result"]] == ["<code>", "<table"]
    assert seen["pictures"] == [0] and seen["errors"]
    assert seen["requests"] == [(tmp_path / "missing.svg").as_uri()]


@pytest.mark.parametrize(
    ("typed", "shown"), [("focal obb", {"loss=focal-"}), ("ciou stock", set()), ("2110.13389", set())]
)
def test_the_table_of_losses_filters_as_one_types(address, typed, shown, measure):
    script = f"""
    (() => {{
      const input = document.querySelector(".losses input");
      const rows = () => [...document.querySelectorAll(".losses tbody tr")].filter((row) => row.offsetHeight);
      const before = rows().length;
      input.value = {typed!r};
      input.dispatchEvent(new Event("input"));
      const headings = [...document.querySelectorAll(".losses h3")].filter((one) => one.offsetHeight).length;
      return [before, headings, rows().map((row) => row.querySelector("code").textContent)];
    }})()
    """
    before, headings, names = measure(f"{address}losses/", 1280, script=script)["result"]
    assert before == sum(not spec.is_user_defined for spec in REGISTRY)
    assert set(names) >= shown and len(names) < before
    assert headings <= len(names)

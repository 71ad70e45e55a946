# SPDX-License-Identifier: AGPL-3.0-or-later
"""The pages of the documentation: tables that are generated, and a site in which everything is there."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from tests.runs import ROOT
from yolo_lossplug.catalogue import keys_markdown, options_markdown
from yolo_lossplug.registry import REGISTRY, ROTATED
from yolo_lossplug.selection.keys import keys
from yolo_lossplug.selection.select import select
from yolo_lossplug.sparse import candidates

EXAMPLES = {"own-loss": "own_loss.py", "compare": "tune.py"}
"""What pages include, by the page."""


def cells(table):
    """Return the rows of a Markdown table, without its head."""
    return [[cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


def test_tables_hold_every_key():
    assert {row[0] for row in cells(keys_markdown()) + cells(options_markdown())} == set(keys())


def test_defaults_are_what_a_run_takes():
    for key, default, *_ in cells(keys_markdown()):
        value = None if default == "none" else yaml.safe_load(default)
        other = {"cls_loss": "qfl"} if key == "loss" else {"loss": "iou"}  # a run without any key is a stock run
        assert select({**other, key: value}) == select(other), key


def test_the_table_of_candidates_is_that_of_the_function():
    page = (ROOT / "docs" / "keys.md").read_text(encoding="utf-8")
    assert "\n".join(f"| {' | '.join(row)} |" for row in candidates.rows()) in page


def test_options_are_those_of_the_losses_they_belong_to():
    rows = cells(options_markdown())
    assert len(rows) > 30
    for key, default, _, _, belongs in rows:
        for asked in belongs.replace("`", "").split(", "):
            kind, _, name = asked.partition("=")
            task = "obb" if name in REGISTRY.names(ROTATED) else "detect"
            resolved = select({kind: f"{name}iou" if name.endswith("-") else name, "task": task}).resolved()
            assert str(resolved[key]) == default, asked


class Page(HTMLParser):
    """What is on a page of the site: its text, its anchors, and the addresses that it refers to."""

    def __init__(self, source):
        super().__init__()
        self.text, self.anchors, self.addresses, self.comments = "", set(), set(), []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        self.addresses |= {found[name] for name in ("href", "src") if found.get(name)}

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        self.comments.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Pages of the site by file, and the folder."""
    if not find_spec("mkdocs"):
        pytest.skip("builds the documentation: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, {file: Page(file.read_text(encoding="utf-8")) for file in folder.rglob("*.html")}


@pytest.mark.slow
def test_pages_hold_their_examples(site):
    folder, pages = site
    for page, example in EXAMPLES.items():
        code = (ROOT / "examples" / example).read_text(encoding="utf-8").strip()
        assert code in pages[folder / page / "index.html"].text, page


@pytest.mark.slow
def test_everything_is_generated_and_included(site):
    folder, pages = site
    assert len(pages) > 25
    for file, page in pages.items():
        assert not re.search(r"--8 ?<", page.text), file
        assert not [comment for comment in page.comments if "generated" in comment], file
    assert "wiou_momentum" in pages[folder / "keys" / "index.html"].text
    assert "1 − IoU + ρ²/c² + sg(α)·v" in pages[folder / "losses" / "index.html"].text


@pytest.mark.slow
def test_links_of_the_site_lead_somewhere(site):
    folder, pages = site
    for file, page in pages.items():
        for address in page.addresses:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            path = unquote(parts.path)
            target = folder / path.lstrip("/") if path.startswith("/") else (file.parent / path).resolve()
            target = target / "index.html" if target.is_dir() and path else target if path else file
            assert target.is_file(), f"{file.relative_to(folder)}: {address}"
            anchor = unquote(parts.fragment)
            assert not anchor or target not in pages or anchor in pages[target].anchors, f"{file}: {address}"

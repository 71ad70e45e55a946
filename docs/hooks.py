# SPDX-License-Identifier: AGPL-3.0-or-later
"""What mkdocs adds to the pages when it builds the site: pictures of losses, formulas as MathML, and navigation."""

import html
import re
import tempfile
from pathlib import Path

import panels
from families import GROUPS
from latex2mathml.converter import convert
from mkdocs.structure.files import File

DOCS = Path(__file__).parent
WORK = tempfile.TemporaryDirectory()
RESULTS = re.compile(r"\]\(\.\./(benchmarks/[^)]+\.md)")
"""Links to results, which are outside of docs."""
CURVES = re.compile(r"^Draw it with `lossplug curves (.+)`\.$", re.MULTILINE)
"""What pictures are put below, with the arguments of the command."""
SPACED = re.compile(r"<mi>(ln|max|min|arctan)</mi>")
"""Functions, which get no space without being operators."""
DRAWN = {}
"""Markdown of the pictures by page and arguments."""


def on_config(config):
    """Add the pages of families to the navigation, beside those of their groups that are written by hand."""
    losses = next(entry["All losses"] for entry in config.nav if isinstance(entry, dict) and "All losses" in entry)
    for title in GROUPS:
        made = sorted(file.relative_to(DOCS).as_posix() for file in (DOCS / "losses" / title.lower()).glob("*.md"))
        losses += [{title: made}] if made else []
    fence = {"name": "math", "class": "formula", "format": formula}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def formula(source, *_, **__):
    """Return an equation as MathML, which a browser needs no script for."""
    space = '<mo form="prefix" lspace="0.17em" rspace="0.17em">\\1</mo>'
    return f'<div class="formula">{SPACED.sub(space, convert(source, display="block"))}</div>'


def on_files(files, config):
    """Draw what pages have commands for, and add the results that they link to."""
    folder = Path(WORK.name)
    for page in list(files.documentation_pages()):
        for path in RESULTS.findall(page.content_string):
            files.append(File.generated(config, path, abs_src_path=str(DOCS.parent / path)))
        for number, found in enumerate(CURVES.finditer(page.content_string)):
            stem = folder / f"{page.src_uri.removesuffix('.md')}-{number}"
            DRAWN[page.src_uri, found[1]], drawn = pictured(found[1], stem)
            for file in drawn:
                files.append(File.generated(config, file.relative_to(folder).as_posix(), abs_src_path=str(file)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Put pictures below the commands that draw them, and let links to results lead to what was added."""
    markdown = RESULTS.sub(r"](\1", markdown)
    return CURVES.sub(lambda found: f"{found[0]}\n\n{DRAWN[page.file.src_uri, found[1]]}", markdown)


def on_post_page(output, page, config):
    """Name the language of translated pages, for hyphenation, fonts and screen readers."""
    return output.replace('<html lang="en"', '<html lang="zh"', 1) if page.file.src_uri.startswith("zh/") else output


def pictured(arguments, stem):
    """Return Markdown of what `lossplug curves` draws, side by side, and the files, whose names begin with a stem."""
    args = dict(word.split("=", 1) for word in arguments.split())
    sizes = [int(side) for side in args.pop("size", "").split(",") if side]
    files, title, legend = panels.draw(args, stem, sizes)
    panel = [f"[![{title or 'Loss'}, panel {k}]({file.name})]({file.name})" for k, file in enumerate(files, 1)]
    caption = [f"{title[:1].upper()}{title[1:]}."] if title else []
    entry = '<li><img src="{1}" alt="" width="48" height="15">{0}</li>'
    names = f'<ul class="legend">{"".join(entry.format(html.escape(name), uri) for name, uri in legend)}</ul>'
    shown = [" ".join([*caption, "Click a picture to enlarge it."]), '<div class="panels" markdown>', *panel, "</div>"]
    return "\n\n".join([*shown, names]), files

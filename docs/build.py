# SPDX-License-Identifier: AGPL-3.0-or-later
"""Write what pages take from the code: a page for every family of losses, and tables. Run `python docs/build.py`.

The pages are committed, so that the repository reads without a build; a test compares them with what this file makes.
Tables are made by the functions behind `lossplug list` and `lossplug COMMAND --help`. Pictures are drawn by
`docs/hooks.py` when mkdocs builds the site.
"""

import importlib
import re
from pathlib import Path

from families import GROUPS, families, family_page, group, key, task

from yolo_lossplug import cli
from yolo_lossplug.catalogue import keys_markdown, markdown_table, options_markdown, shown
from yolo_lossplug.registry import OVERLAP, REGISTRY, ROTATED, ROTATED_MODIFIER
from yolo_lossplug.ultralytics_hook.patches import PATCHES

DOCS = Path(__file__).parent
HEADS = {"en": "key | task | prefixes | formula | paper", "zh": "参数 | 任务 | 前缀 | 公式 | 论文"}
TITLES = {
    "en": dict(zip(GROUPS, GROUPS)),
    "zh": dict(zip(GROUPS, ("水平框", "前缀", "混合", "旋转框", "分类", "classify 任务"))),
}
PLACEHOLDERS = {"en": "Filter by name, key, task, formula, year", "zh": "按名称、参数、任务、公式、年份筛选"}


def losses(lang):
    """Return the tables of all losses, one for each group, with links to their pages, in what a script filters."""
    root, rows = "../losses/" if lang == "zh" else "", {title: {} for title in GROUPS}
    for path, specs in families().items():
        for spec in specs:
            anchor = "" if len(specs) == 1 else f"#{shown(spec)}"
            rows[group(spec)][spec.name] = _cells(spec, root + path.removeprefix("losses/") + anchor)
    parts = [f'<div class="losses" data-filter="{PLACEHOLDERS[lang]}" markdown>']
    for title, named in rows.items():
        cells = [cells for _, cells in sorted(named.items())]
        parts += [f"### {TITLES[lang][title]}", markdown_table(HEADS[lang], cells).rstrip()] if cells else []
    return "\n\n".join([*parts, "</div>"])


def _cells(spec, page):
    first = spec.paper.families[0] if spec.paper and spec.paper.authors else ""
    paper = f"[{first} {spec.year}]({spec.paper.address})" if spec.paper else ""
    return f"[`{key(spec)}={shown(spec)}`]({page})", task(spec), prefixes(spec), spec.formula, paper


def prefixes(spec):
    """Return the mark of losses that take all prefixes, or the prefixes that a rotated one takes."""
    taken = (s for s in REGISTRY if s.kind == ROTATED_MODIFIER and (not s.bases or spec.name in s.bases))
    return ", ".join(f"`{shown(s)}`" for s in taken) if spec.kind == ROTATED else "∘" if spec.kind == OVERLAP else ""


def patches(lang):
    """Return the table of changes to the host."""
    return markdown_table(
        "changed | why there", ([f"`{patch.module}.{patch.attribute}`", patch.reason] for patch in PATCHES)
    )


def commands(lang):
    """Return the help of every command."""
    texts = {"list": cli.LIST_HELP, "explain": cli.EXPLAIN_HELP, "doctor": cli.DOCTOR_HELP}
    texts |= {name: importlib.import_module(tool).HELP for name, tool in cli.TOOLS.items()}
    return "\n\n".join(f"## lossplug {name}\n\n```text\n{text.rstrip()}\n```" for name, text in texts.items())


def verdicts(lang, name):
    """Return the verdicts of a stored comparison, which its summary begins with, and a link to it."""
    file = f"benchmarks/results/problems/{name}.md"
    found = re.findall(r"^\*\*(.*)\*\*$", (DOCS.parent / file).read_text(encoding="utf-8"), re.MULTILINE)
    return "\n".join([*(f"- {sentence}" for sentence in found), "", f"[All numbers](../{file})"])


MAKERS = {
    "losses": losses,
    "keys": lambda lang: keys_markdown(),
    "options": lambda lang: options_markdown(),
    "patches": patches,
    "commands": commands,
    "verdicts": verdicts,
}
"""Functions of the language, and of an argument where the page gives one, by the name that a page asks for."""
BLOCK = re.compile(rf"(<!-- generated: ({'|'.join(MAKERS)})(?: (\w+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text, lang):
    """Return a page with what it takes from the code between its comments."""

    def replaced(found):
        head, name, argument, end = found.groups()
        return f"{head}\n{MAKERS[name](lang, *filter(None, [argument])).strip()}\n\n{end}"

    return BLOCK.sub(replaced, text)


def pages():
    """Return every page that is made here, or has a part that is, as text by path below docs."""
    found = {path: family_page(specs) for path, specs in families().items()}
    for file in sorted(DOCS.rglob("*.md")):
        path = file.relative_to(DOCS).as_posix()
        text = file.read_text(encoding="utf-8")
        if BLOCK.search(text):
            found[path] = filled(text, "zh" if path.startswith("zh/") else "en")
    return found


def stale():
    """Return the pages of families that there no longer are."""
    folders = (DOCS / "losses" / title.lower() for title in GROUPS)
    return [
        file
        for folder in folders
        for file in folder.glob("*.md")
        if f"losses/{folder.name}/{file.name}" not in families()
    ]


if __name__ == "__main__":
    for file in stale():
        file.unlink()
    for path, text in pages().items():
        (DOCS / path).parent.mkdir(exist_ok=True)
        (DOCS / path).write_text(text, encoding="utf-8")

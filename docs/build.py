# SPDX-License-Identifier: AGPL-3.0-or-later
"""What mkdocs adds to the pages when it builds them: a page for every family of losses, tables, and pictures.

Pictures are made by the functions behind `lossplug curves`, and tables by those behind `lossplug list` and
`lossplug COMMAND --help`, so that no page can say anything else than the code.
"""

import importlib
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import measured
from families import GROUPS, SIZES, families, family_page, group, key, names, pictured, task
from mkdocs.structure.files import File

from yolo_lossplug import cli
from yolo_lossplug.catalogue import keys_markdown, options_markdown, shown, table
from yolo_lossplug.registry import OVERLAP, REGISTRY, ROTATED, ROTATED_MODIFIER
from yolo_lossplug.ultralytics_hook.patches import PATCHES

ROOT = Path(__file__).parent.parent
WORK = tempfile.TemporaryDirectory()
GENERATED = re.compile(r"<!-- generated: (\w+)(?: (\w+))? -->.*?<!-- end -->", re.DOTALL)
"""What a build replaces, by the name and, where it has one, the argument of its maker. Between the two comments stands
what a reader of the source gets."""
HEADS = {"en": "key | task | prefixes | formula | paper", "zh": "参数 | 任务 | 前缀 | 公式 | 论文"}
TITLES = {
    "en": dict(zip(GROUPS, GROUPS)),
    "zh": dict(zip(GROUPS, ("水平框", "前缀", "混合", "旋转框", "分类", "classify 任务"))),
}
MIXTURE = {"loss": "ciou,nwd,ciou+nwd"}
MADE = {}
"""What pages ask for and is made with the files, by name."""
PLACEHOLDERS = {"en": "Filter by name, key, task, formula, year", "zh": "按名称、参数、任务、公式、年份筛选"}


def on_config(config):
    """Add the pages of families to the navigation, beside those of their groups that are written by hand."""
    losses = next(entry["All losses"] for entry in config.nav if isinstance(entry, dict) and "All losses" in entry)
    by_hand = {title: pages for entry in losses if isinstance(entry, dict) for title, pages in entry.items()}
    made = {title: [*by_hand.get(title, []), *_entries(title)] for title in GROUPS}
    losses[:] = [entry for entry in losses if isinstance(entry, str)] + [{t: p} for t, p in made.items() if p]
    return config


def _entries(title):
    return [{names(specs): path} for path, specs in families().items() if group(specs[0]) == title]


def on_files(files, config):
    """Add the pages of families and all pictures."""
    folder = Path(WORK.name)
    MADE["mixture"], drawn = pictured(MIXTURE, folder / "losses" / "mixtures", SIZES)
    for path, specs in families().items():
        content, pictures = family_page(path, specs, folder)
        files.append(File.generated(config, path, content=content))
        drawn += pictures
    for file in drawn:
        files.append(File.generated(config, file.relative_to(folder).as_posix(), abs_src_path=str(file)))
    cost = ROOT / "benchmarks" / "results" / "cost.png"
    files.append(File.generated(config, "pictures/cost.png", abs_src_path=str(cost)))
    for name, path in measured.draw(*stored(), folder / "troubles").items():
        files.append(File.generated(config, f"pictures/{name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Put what is generated where pages ask for it."""
    return GENERATED.sub(lambda found: MAKERS[found[1]](language(page), *filter(None, [found[2]])), markdown)


def on_post_page(output, page, config):
    """Name the language of translated pages, for hyphenation, fonts and screen readers."""
    return output.replace('<html lang="en"', f'<html lang="{language(page)}"', 1)


def language(page):
    """Return the language of a page."""
    return "zh" if page.file.src_uri.startswith("zh/") else "en"


def losses(lang):
    """Return the tables of all losses, one for each group, with links to their pages, in what a script filters."""
    root = "../losses/" if lang == "zh" else ""
    pages = {
        (spec.kind, spec.name): root + path.removeprefix("losses/")
        for path, specs in families().items()
        for spec in specs
    }
    parts = [f'<div class="losses" data-filter="{PLACEHOLDERS[lang]}" markdown>']
    for title in GROUPS:
        rows = [_cells(spec, pages[spec.kind, spec.name]) for spec in _alphabetical(title)]
        parts += [f"### {TITLES[lang][title]} {{ #{title.lower()} }}", table(HEADS[lang], rows)] if rows else []
    return "\n\n".join([*parts, "</div>"])


def _alphabetical(title):
    ours = (spec for spec in REGISTRY if not spec.is_user_defined and group(spec) == title)
    return sorted(ours, key=lambda spec: spec.name)


def _cells(spec, page):
    anchor = "" if len(families()[_family(spec)]) == 1 else f"#{shown(spec)}"
    paper = (
        f"[{spec.paper.families[0] if spec.paper.authors else ''} {spec.year}]({spec.paper.address})"
        if spec.paper
        else ""
    )
    return f"[`{key(spec)}={shown(spec)}`]({page}{anchor})", task(spec), prefixes(spec), spec.formula, paper


def _family(spec):
    return next(path for path, specs in families().items() if spec in specs)


def prefixes(spec):
    """Return the mark of losses that take all prefixes, or the prefixes that a rotated one takes."""
    taken = (s for s in REGISTRY if s.kind == ROTATED_MODIFIER and (not s.bases or spec.name in s.bases))
    return ", ".join(f"`{shown(s)}`" for s in taken) if spec.kind == ROTATED else "∘" if spec.kind == OVERLAP else ""


def patches(lang):
    """Return the table of changes to the host."""
    return table("changed | why there", ([f"`{patch.module}.{patch.attribute}`", patch.reason] for patch in PATCHES))


@cache
def stored():
    """Return what the stored comparisons of troubles have in common, and the troubles."""
    return measured.read()


def verdicts(lang):
    """Return how often each verdict was reached, and the table of all."""
    troubles = stored()[1]
    return f'{measured.counted(troubles)}\n\n<div class="measured" markdown>\n\n{measured.summary(troubles)}\n</div>'


def trouble(lang, name):
    """Return what was measured of one trouble."""
    (found,) = (one for one in stored()[1] if one.name == name)
    return measured.section(found)


def commands(lang):
    """Return the help of every command."""
    texts = {name: importlib.import_module(cli.TOOLS[name]).HELP for name in cli.TOOLS}
    texts = {"list": cli.LIST_HELP, "explain": cli.EXPLAIN_HELP, "doctor": cli.DOCTOR_HELP, **texts}
    parts = [f"## lossplug {name}\n\n```text\n{text}\n```\n" for name, text in texts.items()]
    example = [sys.executable, "-m", "yolo_lossplug", "verify", "loss=focal-eiou", "cls_loss=qfl"]
    said = subprocess.run(example, capture_output=True, text=True, check=True).stdout
    parts.append(f"## What verify prints\n\n```text\n$ lossplug {' '.join(example[3:])}\n{said}```\n")
    return "\n".join(parts)


MAKERS = {
    "losses": losses,
    "keys": lambda lang: keys_markdown(),
    "options": lambda lang: options_markdown(),
    "mixture": lambda lang: MADE["mixture"],
    "patches": patches,
    "commands": commands,
    "verdicts": verdicts,
    "trouble": trouble,
    "made": lambda lang: measured.made(stored()[0]),
    "cost": lambda lang: "![Time and memory of a step against the number of objects](pictures/cost.png)",
}
"""Functions of the language by the name that a page asks for."""

# SPDX-License-Identifier: AGPL-3.0-or-later
"""What mkdocs adds to the pages when it builds them: a page for every family of losses, tables, and pictures.

Pictures are made by the functions behind `lossplug curves` and `lossplug simulate`, and tables by those behind
`lossplug list` and `lossplug COMMAND --help`, so that no page can say anything else than the code.
"""

import importlib
import re
import subprocess
import sys
import tempfile
from itertools import groupby
from pathlib import Path

from mkdocs.structure.files import File

from yolo_lossplug import catalogue, cli
from yolo_lossplug.registry import BOX, CLASS, MODIFIER, OVERLAP, REGISTRY, ROTATED, ROTATED_MODIFIER, SOFTMAX
from yolo_lossplug.tools import curves, simulate
from yolo_lossplug.tools.arms import arms
from yolo_lossplug.ultralytics_hook import console
from yolo_lossplug.ultralytics_hook.patches import PATCHES

ROOT = Path(__file__).parent.parent
WORK = tempfile.TemporaryDirectory()
CASES = 17_150
"""Of the simulation, fifty anchor points: enough for the order of the losses, in seconds."""
GENERATED = re.compile(r"<!-- generated: (\w+) -->.*?<!-- end -->", re.DOTALL)
"""What a build replaces. Between the two comments stands what a reader of the source gets."""
SIMULATED, KINDS = "iou,giou,diou,ciou,eiou,siou", "published,true"
SECTIONS = {
    BOX: "Box losses",
    OVERLAP: "Box losses",
    MODIFIER: "Prefixes",
    ROTATED: "Rotated boxes",
    ROTATED_MODIFIER: "Rotated boxes",
    CLASS: "Class losses",
    SOFTMAX: "Class losses of classify",
}


def on_config(config):
    """Add the pages of families to the navigation."""
    entries = [
        {title: [page(key) for key, _ in group]} for title, group in groupby(families(), lambda f: section(f[1]))
    ]
    losses = next(entry["Losses"] for entry in config.nav if isinstance(entry, dict) and "Losses" in entry)
    losses[1:] = entries
    return config


def on_files(files, config):
    """Add the pages of families and all pictures."""
    for key, specs in families():
        files.append(File.generated(config, page(key), content=family_page(key, specs)))
        files.append(File.generated(config, picture(key), abs_src_path=str(draw(key, specs))))
    folder = Path(WORK.name) / "simulate"
    with console.quiet():
        simulate.main(
            {"loss": SIMULATED, "gradients": KINDS, "cases": CASES, "project": str(folder.parent), "name": folder.name}
        )
    made = {name: folder / name for name in ("map.png", "simulate.gif")}
    made["cost.png"] = ROOT / "benchmarks" / "results" / "cost.png"
    for name, path in made.items():
        files.append(File.generated(config, f"pictures/{name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Put what is generated where pages ask for it."""
    return GENERATED.sub(lambda found: MAKERS[found[1]](), markdown)


def families():
    """Return the modules of losses, each with its specs, box losses first."""
    ours = [spec for spec in REGISTRY if not spec.is_user_defined]
    order = list(SECTIONS)
    groups = {}
    for spec in sorted(ours, key=lambda spec: (order.index(spec.kind), spec.name)):
        title = section([spec]).lower().replace(" ", "-")
        groups.setdefault((title, spec.function.__module__.rpartition(".")[2]), []).append(spec)
    found = [(f"{title}/{module}", specs) for (title, module), specs in groups.items()]
    return sorted(found, key=lambda family: list(SECTIONS.values()).index(section(family[1])))


def section(specs):
    """Return the heading that a family stands under."""
    return SECTIONS[specs[0].kind]


def page(key):
    """Return the path of a family's page."""
    return f"losses/{key.replace('_', '-')}.md"


def picture(key):
    """Return the path of a family's picture."""
    return f"losses/{key.replace('_', '-')}.png"


def title(specs):
    """Return the names of a family's losses."""
    return ", ".join(catalogue.shown(spec) for spec in specs)


def drawn(specs):
    """Return the arguments of `lossplug curves` for a family."""
    kind, names = specs[0].kind, [spec.name for spec in specs]
    if kind == MODIFIER:
        return {"loss": ",".join(["iou", *(f"{name}-iou" for name in names)])}
    if kind == ROTATED:
        rotated = [spec.name for spec in specs if spec.kind == ROTATED]
        return {"loss": ",".join(dict.fromkeys(["probiou", *rotated])), "task": "obb"}
    if kind == SOFTMAX:
        return {"cls_loss": ",".join(names), "task": "classify"}
    key, reference = ("cls_loss", "bce") if kind == CLASS else ("loss", "ciou")
    return {key: ",".join(dict.fromkeys([reference, *names]))}


def draw(key, specs):
    """Draw a family and return the file."""
    args = drawn(specs)
    make = curves.draw_class if "cls_loss" in args else curves.draw
    return make(arms(args, args.get("task")), Path(WORK.name) / picture(key))


def family_page(key, specs):
    """Return the page of a family: pictures, formulas, options, weaknesses, citations."""
    lines = [f"# {title(specs)}", ""]
    command = " ".join(["lossplug curves", *(f"{name}={value}" for name, value in drawn(specs).items())])
    lines += [f"![Losses and gradients]({Path(picture(key)).name})", "", f"`{command}`", ""]
    for spec in specs:
        lines += [f"## {catalogue.shown(spec)}", "", "```text", spec.formula, "```", ""]
        if spec.note:
            lines += [f"**Note.** {spec.note}", ""]
        if spec.parameters:
            lines += ["| key | default | range | meaning |", "|---|---|---|---|"]
            lines += [
                f"| `{p.key}` | {p.default} | {p.option.range} | {p.option.help} |" for p in spec.parameters.values()
            ]
            lines += [""]
        lines += [f"::: {spec.function.__module__}.{spec.function.__qualname__}"]
        lines += ["    options:", "      show_root_heading: false", "      show_root_toc_entry: false", ""]
    cited = catalogue.entries(specs)
    if cited:
        lines += ["## Citation", "", "```bibtex", *cited, "```", ""]
    return "\n".join(lines)


def losses():
    """Return the tables of all losses, with links to their pages."""
    pages = {(spec.kind, spec.name): page(key) for key, specs in families() for spec in specs}

    def link(spec, name):
        address = pages.get((spec.kind, spec.name), "").removeprefix("losses/")
        return f"[{name}]({address})" if address else name

    return catalogue.markdown(link)


def simulated():
    """Return the pictures of the simulation, with their command."""
    command = f"`lossplug simulate loss={SIMULATED} gradients={KINDS} cases={CASES}`"
    pictures = {"Error by position of the anchor": "map.png", "Boxes on their way": "simulate.gif"}
    return "\n\n".join([command, *(f"![{words}](../pictures/{name})" for words, name in pictures.items())])


def patches():
    """Return the table of changes to the host."""
    rows = [f"| `{patch.module}.{patch.attribute}` | {patch.reason} |" for patch in PATCHES]
    return "\n".join(["| changed | why there |", "|---|---|", *rows])


def commands():
    """Return the help of every command."""
    texts = {name: importlib.import_module(f"yolo_lossplug.tools.{name}").HELP for name in cli.TOOLS}
    texts = {"list": cli.LIST_HELP, "explain": cli.EXPLAIN_HELP, "doctor": cli.DOCTOR_HELP, **texts}
    parts = [f"## lossplug {name}\n\n```text\n{text}\n```\n" for name, text in texts.items()]
    example = [sys.executable, "-m", "yolo_lossplug", "verify", "loss=focal-eiou", "cls_loss=qfl"]
    said = subprocess.run(example, capture_output=True, text=True, check=True).stdout
    parts.append(f"## What verify prints\n\n```text\n$ lossplug {' '.join(example[3:])}\n{said}```\n")
    return "\n".join(parts)


MAKERS = {
    "losses": losses,
    "keys": catalogue.keys_markdown,
    "options": catalogue.options_markdown,
    "simulation": simulated,
    "patches": patches,
    "commands": commands,
    "cost": lambda: "![Time and memory of a step against the number of objects](pictures/cost.png)",
}
"""Functions by the name that a page asks for."""

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Pages of losses: one for each module of `yolo_lossplug/box_losses` and `class_losses`, made of what it declares."""

import inspect
from pathlib import Path

from yolo_lossplug.catalogue import markdown_table, shown, tasks_of
from yolo_lossplug.explain import bibtex_entries
from yolo_lossplug.registry import BOX, CLASS, MODIFIER, OVERLAP, REGISTRY, ROTATED, ROTATED_MODIFIER, SOFTMAX
from yolo_lossplug.selection.names import key_of

DOCS = Path(__file__).parent
GROUPS = {
    "Boxes": (BOX, OVERLAP),
    "Prefixes": (MODIFIER,),
    "Mixtures": (),  # a page written by hand
    "Rotated": (ROTATED, ROTATED_MODIFIER),
    "Class": (CLASS,),
    "Classify": (SOFTMAX,),
}
"""Kinds by the group that a reader sees."""
TASKS = {"Rotated": "obb", "Classify": "classify"}
"""Tasks of the groups that are not for all of the others."""
TRAIN = {
    "Rotated": "yolo train model=yolov8n-obb.pt data=dota8.yaml",
    "Classify": "yolo train model=yolov8n-cls.pt data=imagenet10",
}
STOCK_TRAIN = "yolo train model=yolov8n.pt data=coco128.yaml"
SIZES = "8,16,32,96"
"""Sides of targets in pixels, at which losses with a unit are drawn."""


def group(spec):
    """Return the group that a loss is shown in."""
    return next(title for title, kinds in GROUPS.items() if spec.kind in kinds)


def families():
    """Return path of the page and specs of every module of losses: groups in order, names in each by the alphabet."""
    ours = sorted((spec for spec in REGISTRY if not spec.is_user_defined), key=lambda spec: (spec.name, spec.kind))
    found = {}
    for title in GROUPS:
        for spec in ours:
            if group(spec) == title:
                module = spec.function.__module__.rpartition(".")[2].replace("_", "-")
                found.setdefault(f"losses/{title.lower()}/{module}.md", []).append(spec)
    return found


def names(specs):
    """Return the names of losses as they are written in keys."""
    return ", ".join(shown(spec) for spec in specs)


def key(spec):
    """Return the key that names a loss."""
    return key_of(spec.kind)


def task(spec):
    """Return the tasks that a loss is for."""
    return ", ".join(tasks_of(spec.kind))


def example(spec):
    """Return a name with which a loss is trained: itself, or a prefix with one of its bases."""
    if spec.kind not in (MODIFIER, ROTATED_MODIFIER):
        return spec.name
    stock = "ciou" if spec.kind == MODIFIER else "probiou"
    return f"{spec.name}-{stock if not spec.bases or stock in spec.bases else min(spec.bases)}"


def training(spec):
    """Return the command that trains with a loss and its defaults."""
    options = [f"{p.key}={p.default}" for p in spec.parameters.values() if p.default is not None]
    return " ".join([TRAIN.get(group(spec), STOCK_TRAIN), f"{key(spec)}={example(spec)}", *options])


def drawn(specs):
    """Return the arguments of `lossplug curves` for a family, the stock loss first."""
    kind = specs[0].kind
    if kind in (CLASS, SOFTMAX):
        args = {"cls_loss": ",".join(dict.fromkeys(["bce" if kind == CLASS else "ce", *(s.name for s in specs)]))}
    else:
        stock = "probiou" if group(specs[0]) == "Rotated" else "ciou"
        args = {"loss": ",".join(dict.fromkeys([stock, *map(example, specs)]))}
    name = TASKS.get(group(specs[0]))
    return {**args, "task": name} if name else args


def maths(spec):
    """Return the equations of a loss; its formula as text if it has none."""
    return "\n\n".join(f"```math\n{line}\n```" for line in spec.latex) or f"```text\n{spec.formula}\n```"


def words(spec):
    """Return what the docstring says, less the paper and examples: the range, and what is detached."""
    text = (inspect.getdoc(spec.function) or "").partition("\n>>> ")[0]
    cited = spec.paper.families[0] if spec.paper and spec.paper.families else "\n"
    paragraphs = (part for part in text.strip().split("\n\n") if not part.startswith(cited))
    return "\n\n".join(paragraphs).replace("*", "\\*").replace("_", "\\_")


def advice():
    """Return "use it when" and "not when" by group and name, from the tables of docs/losses/when.md."""
    found, title = {}, ""
    for line in (DOCS / "losses" / "when.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            title = line[3:]
        elif line.startswith("| `"):
            name, use, avoid = (cell.strip() for cell in line.strip("|").split(" | "))
            found[title, name.strip("` ")] = use, avoid
    return found


def family_page(specs):
    """Return the page of a family: equations, when to use it, options, commands that draw it, and citations."""
    parts = [f"# {names(specs)}", *(section(spec, len(specs) > 1) for spec in specs), curves(specs)]
    cited = bibtex_entries(specs)
    if cited:
        parts += ["## Citation", *(f"```bibtex\n{entry}\n```" for entry in cited)]
    return "\n\n".join(parts) + "\n"


def section(spec, is_titled):
    """Return what a page says of one loss."""
    advised = advice().get((group(spec), shown(spec)))
    sources = " · ".join([*([link(spec.paper)] if spec.paper else []), "[symbols](../index.md#symbols)"])
    parts = [f"## {shown(spec)}"] if is_titled else []
    parts += [maths(spec), f'<div class="paper" markdown>\n\n{sources}\n\n</div>', words(spec)]
    if advised:
        parts.append(
            f'<div class="when" markdown>\n\n**Use it when** {advised[0]}.\n\n**Not when** {advised[1]}.\n\n</div>'
        )
    if spec.note:
        parts.append(f"**Weakness and scope.** {spec.note}")
    parts += [f"```text\n{training(spec)}\n```", options(spec)]
    return "\n\n".join(part for part in parts if part)


def link(paper):
    """Return a paper as a link."""
    return f"[{paper.citation.rpartition(' ')[0] or paper.address}]({paper.address})"


def options(spec):
    """Return the table of a loss's options."""
    if not spec.parameters:
        return "It has no options."
    rows = ([f"`{p.key}`", str(p.default), p.option.range, p.option.help] for p in spec.parameters.values())
    return markdown_table("key | default | range | meaning", rows).rstrip()


def curves(specs):
    """Return the commands that draw a family; `docs/hooks.py` puts their pictures below them."""
    command = " ".join(["lossplug curves", *(f"{name}={value}" for name, value in drawn(specs).items())])
    parts = ["## Loss and gradient", f"Draw it with `{command}`."]
    if any("stride" in spec.context for spec in specs):
        parts += [
            "### By size of the object",
            "The loss has a unit, so the size of the object matters.",
            f"Draw it with `{command} size={SIZES}`.",
        ]
    return "\n\n".join(parts)

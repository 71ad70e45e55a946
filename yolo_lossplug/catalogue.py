# SPDX-License-Identifier: AGPL-3.0-or-later
"""Descriptions of losses and keys: what `lossplug list` prints, and the tables of the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import starmap
from typing import Any

from yolo_lossplug.box_losses.mixture import FORMULA
from yolo_lossplug.registry import BOX, CLASS, MODIFIER, OVERLAP, ROTATED, ROTATED_MODIFIER, SOFTMAX, Parameter, Spec
from yolo_lossplug.selection import keys
from yolo_lossplug.selection.names import PREFIXES, key_of
from yolo_lossplug.selection.third_party import registry

GROUPS = {
    **{"box": (BOX, OVERLAP), "prefix": (MODIFIER, ROTATED_MODIFIER), "obb": (ROTATED, ROTATED_MODIFIER)},
    **{"class": (CLASS,), "classify": (SOFTMAX,)},
}
"""Kinds of losses by the word that `lossplug list` takes for them."""
SECTIONS = (
    ("box: loss=NAME for detect, segment and pose; those with ∘ take prefixes", "loss=", (BOX, OVERLAP)),
    ("prefix: loss=PREFIX-NAME, also several, as in focal-inner-eiou", "loss= prefixes", (MODIFIER,)),
    ("obb: loss=NAME for task=obb; all take prefixes", "loss= for task=obb", (ROTATED,)),
    ("prefix, obb: loss=PREFIX-NAME for task=obb", "loss= prefixes for task=obb", (ROTATED_MODIFIER,)),
    ("class: cls_loss=NAME", "cls_loss=", (CLASS,)),
    ("classify: cls_loss=NAME for task=classify", "cls_loss= for task=classify", (SOFTMAX,)),
)
"""Headings of `lossplug list`, titles of its tables in Markdown, and the kinds of losses below them."""
FORMULA_COLUMN, MEANING_COLUMN = 16, 25
"""Columns of formulas, and of the meanings of keys that belong to no loss in particular, in `lossplug list`."""


def shown(spec: Spec) -> str:
    """Return a name as it is written before or after others."""
    return f"{spec.name}-" if spec.kind in PREFIXES.values() else spec.name


def belongs_to(key: str) -> list[str]:
    """Return how the losses that have an option are asked for."""
    return list(dict.fromkeys(f"{key_of(owner.kind)}={shown(owner)}" for owner in registry().owners(key)))


def with_range(p: Parameter) -> str:
    """Return an option with its default and range."""
    return f"{p.key}={p.default} in {p.option.range}"


def tasks_of(kind: str) -> list[str]:
    """Return the tasks of a kind of losses or of prefixes."""
    if kind == CLASS:
        return list(keys.TASKS)
    base = {OVERLAP: BOX, **{prefix: base for base, prefix in PREFIXES.items()}}.get(kind, kind)
    return [task for task, of_task in {**keys.TASKS, keys.CLASSIFY: SOFTMAX}.items() if of_task == base]


def common_keys() -> list[tuple[str, str, str, str]]:
    """Return key, default, values and meaning of every key that belongs to no loss in particular."""
    own = "file.py:function or package.module:function"
    nms = "overlap in the NMS of val, predict, track and of validation in training"
    names = {
        "loss": (f"name, prefix-name, {own}, or two of these: ciou+nwd", "box loss; probiou for task=obb"),
        "cls_loss": (f"name, {own}", "class loss; ce for task=classify"),
        "tal_iou": (", ".join(keys.ASSIGNER_OVERLAPS), "overlap inside the assigner, clamped at 0"),
        "nms_iou": (", ".join(keys.NMS_OVERLAPS), nms),
        "loss_engine": (", ".join(keys.ENGINES), "how the loss is computed; all engines compute the same loss"),
    }
    weights = "list of one number per class, or mapping from names to numbers"
    report = "write what the assigner does, by epoch, to lossplug_report.csv and a plot"
    regions = "class, list of classes, or mapping from classes to the classes that their boxes silence, or all"
    ignored = "classes whose boxes are regions: what is inside is neither object nor background"
    entries = "list with one list of classes for each entry of train:, or mapping from splits to such lists"
    annotated = "classes that each entry of the data annotates; the others are unknown there"
    numbers = {p.key: str(p.default).replace("None", "none") for p in keys.NUMBERS.values()}
    rows = [
        *((key, default, *names[key]) for key, default in keys.NAMES.items()),
        *((p.key, numbers[p.key], p.option.range, p.option.help) for p in keys.NUMBERS.values()),
        (keys.WEIGHTS, "none", weights, "weight of each class"),
        (keys.REPORT, "False", "True, False", report),
        (keys.IGNORE, "none", regions, ignored),
        (keys.ANNOTATED, "none", entries, annotated),
    ]
    return [row for row in rows if row[0] not in keys.CLAIMED]


def comments() -> dict[str, str]:
    """Return a line about every key, by key: default, values, meaning, and the losses that it belongs to."""
    common = {key: f"{default}: {meaning} ({values})" for key, default, values, meaning in common_keys()}
    options = {
        key: f"{p.default} in {p.option.range}: {p.option.help} ({', '.join(belongs_to(key) or ['loss=NAME+NAME'])})"
        for key, p in keys.numeric_keys().items()
        if key not in common
    }
    return {**common, **options}


def listing(groups: Sequence[str] = ()) -> str:
    """Return losses with formulas and options, those of some words of `GROUPS`; lines of any length.

    Without words it has all losses, and the keys that belong to no loss in particular.
    """
    sections = [
        [heading, *(line for spec in specs for line in _lines_of(spec))]
        for heading, _, kinds in SECTIONS
        if (specs := _of_kinds(kinds, groups))
    ]
    if not groups or {"box", "obb"} & {*groups}:
        mixture = _after_name(*FORMULA.split(": ")), _after_name("", f"{with_range(keys.MIX)}: {keys.MIX.option.help}")
        sections.append(["two losses: loss=NAME+NAME", *mixture])
    if not groups:
        rows = starmap(_line_of_key, common_keys())
        sections.append(["any loss: keys of no loss in particular", *rows])
    more = "lossplug explain NAME says what options mean, with papers and weaknesses; --json prints all."
    return "\n\n".join("\n".join(section) for section in [*sections, [more]])


def _of_kinds(kinds: Sequence[str], groups: Sequence[str]) -> list[Spec]:
    """Return the specs of some kinds by name, of those kinds that belong to one of the groups, if there are any."""
    wanted = {kind for group in groups or GROUPS for kind in GROUPS[group]}.intersection(kinds)
    return sorted((spec for spec in registry() if spec.kind in wanted), key=lambda spec: spec.name)


def _lines_of(spec: Spec) -> list[str]:
    """Return the lines of a loss: name and formula, and options with defaults and ranges."""
    options = (_after_name("", with_range(p)) for p in spec.parameters.values())
    return [_after_name(f"{shown(spec)}{_mark(spec)}", spec.formula), *options]


def _line_of_key(key: str, default: str, values: str, meaning: str) -> str:
    return f"  {f'{key}={default}':<{MEANING_COLUMN - 2}}{meaning} ({values})"


def _mark(spec: Spec) -> str:
    return " ∘" if spec.kind == OVERLAP else ""


def _after_name(name: str, text: str) -> str:
    return f"  {name:<{FORMULA_COLUMN - 2}}{text}"


def records(groups: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return losses for programs, in the order of `listing`; all, or those of some words of `GROUPS`."""
    return [_record(spec) for *_, kinds in SECTIONS for spec in _of_kinds(kinds, groups)]


def _record(spec: Spec) -> dict[str, Any]:
    key, is_prefix = key_of(spec.kind), spec.kind in PREFIXES.values()
    options = [
        {"key": p.key, "type": p.type.__name__, "default": p.default, "range": p.option.range, "meaning": p.option.help}
        for p in spec.parameters.values()
    ]
    published = ("title", "authors", "venue", "year", "address")
    return {
        "name": spec.name,
        "kind": "prefix" if is_prefix else "class" if key == key_of(CLASS) else "box",
        "key": key,
        "tasks": tasks_of(spec.kind),
        "aliases": list(spec.aliases),
        "formula": spec.formula,
        "options": options,
        "paper": spec.paper and {name: getattr(spec.paper, name) for name in published},
        "note": spec.note,
        "takes_prefixes": spec.kind in (OVERLAP, ROTATED),
    }


def markdown_table(head: str, rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table with the titles of `head`, which `` | `` separates; bars in cells are escaped."""
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    rule = "|---" * (head.count("|") + 1)
    return "".join([f"| {head} |\n{rule}|\n", *(f"| {line} |\n" for line in lines)])


def losses_markdown(groups: Sequence[str] = ()) -> str:
    """Return tables of losses, one for each key and task; all, or those of some words of `GROUPS`."""
    head = "name | formula | options = default in range | source | remark"
    sections = ((title, _of_kinds(kinds, groups)) for _, title, kinds in SECTIONS)
    return "\n".join(f"### {title}\n\n{markdown_table(head, map(_cells, specs))}" for title, specs in sections if specs)


def _cells(spec: Spec) -> tuple[str, str, str, str, str]:
    options = "<br>".join(f"`{p.key}` = {p.default} in {p.option.range}" for p in spec.parameters.values())
    source = f"[{spec.year}]({spec.paper.address})" if spec.paper else ""
    return f"`{shown(spec)}`{_mark(spec)}", spec.formula, options, source, spec.note


def keys_markdown() -> str:
    """Return the table of keys that belong to no loss in particular."""
    return markdown_table("key | default | values | meaning", ([f"`{key}`", *rest] for key, *rest in common_keys()))


def options_markdown() -> str:
    """Return the table of the losses' own keys."""
    numbers, rows = keys.numeric_keys(), []
    for key, owners in {keys.MIX.key: ["loss=ciou+nwd"], **{k: belongs_to(k) for k in registry().parameters()}}.items():
        p, names = numbers[key], ", ".join(f"`{owner}`" for owner in owners)
        rows.append([f"`{key}`", str(p.default), p.option.range, p.option.help, names])
    return markdown_table("key | default | range | meaning | belongs to", sorted(rows))

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Descriptions of losses and keys: explanations, citations, tables of `lossplug list` and of the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Callable, Optional

from yolo_lossplug.registry import BOX, CLASS, MODIFIER, OVERLAP, ROTATED, ROTATED_MODIFIER, SOFTMAX, Parameter, Spec

GROUPS = {
    "box": (BOX, OVERLAP),
    "prefix": (MODIFIER, ROTATED_MODIFIER),
    "obb": (ROTATED, ROTATED_MODIFIER),
    "class": (CLASS,),
    "classify": (SOFTMAX,),
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
NAME_WIDTH, KEY_WIDTH = 16, 25
"""Columns of formulas, and of what keys of no loss in particular mean, in `lossplug list`."""


ABOUT_CANDIDATES = ("tal_topk", "tal_min_side")
"""Keys whose explanation says how many candidates there are."""
MEAN_CANDIDATES = (
    "Mean number of candidates, anchors whose centre lies in the object, at strides 8, 16 and 32, where a side below "
    "tal_min_side counts as that long (16 in Ultralytics 8.4.190):"
)
FEW_CANDIDATES = (
    "With 16, an object below about 22 pixels does not have ten candidates on average, so that raising tal_topk above "
    "10 does nothing there."
)


def explanation(name: str) -> str:
    """Return the parts of a box or class loss, with formulas, options, sources and weaknesses.

    Args:
        name: Name as in ``loss=name`` or ``cls_loss=name``, a prefix as ``focal-``, or a key as ``focal_gamma``.

    Raises:
        LossPlugError: If there is no such loss, prefix or key.
    """
    from yolo_lossplug.selection.names import key_of

    if option := _option(name):
        return option
    prefixes = _prefixes(name)
    if prefixes:
        lines = [f"{key_of(prefixes[-1].kind)}={prefixes[0].name}-*", *_described(prefixes)]
    else:
        losses = _losses(name)
        key = key_of(losses[0][-1].kind)
        lines = [f"{key}={'+'.join(map(_title, losses))}", *(_mixture() if len(losses) > 1 else [])]
        for specs in losses:
            lines += ["", f"{key}={_title(specs)}"] if len(losses) > 1 else []
            lines += _described(specs)
    return "\n".join(line for i, line in enumerate(lines) if line or i > 1)


def _title(specs: Sequence[Spec]) -> str:
    return "-".join(spec.name for spec in specs)


def _mixture() -> list[str]:
    """Return the description of every mixture of two losses."""
    from yolo_lossplug.box_losses.mixture import FORMULA, NOTE
    from yolo_lossplug.selection.keys import MIX

    return [FORMULA, f"  {_explained(MIX)}", f"  Note: {NOTE}"]


def _explained(p: Parameter) -> str:
    """Return an option with its default, range and meaning."""
    return f"{p.key}={p.default} in {p.option.range}: {p.option.help}"


def _described(specs: Sequence[Spec]) -> list[str]:
    """Return formulas, options, sources and weaknesses of the parts of one loss."""
    is_sum = specs[-1].kind == OVERLAP
    lines = ["L = weight · (1 − u + Σ penalties), u = IoU unless a part changes it"] if is_sum else []
    for spec in specs:
        lines += ["", f"{shown(spec)}: {spec.formula}"]
        lines += [f"  also as {', '.join(spec.aliases)}"] if spec.aliases else []
        lines += [f"  {_explained(p)}" for p in spec.parameters.values()]
        if spec.paper:
            lines.append(f"  {spec.paper.citation}")
        if spec.note:
            lines.append(f"  Note: {spec.note}")
    return lines


def bibtex(name: str) -> str:
    """Return the BibTeX entries of a loss's parts, each paper once.

    Raises:
        LossPlugError: If there is no such loss.
    """
    from yolo_lossplug.selection.third_party import registry

    asked = registry().owners(_key(name)) or _prefixes(name) or [spec for specs in _losses(name) for spec in specs]
    return "\n\n".join(entries(asked))


def entries(specs: Iterable[Spec]) -> list[str]:
    """Return the BibTeX entries of losses, each paper once."""
    papers = dict.fromkeys(spec.paper for spec in specs if spec.paper)
    return [paper.bibtex for paper in papers if paper.bibtex]


def _key(name: str) -> str:
    return name.strip().lower().replace("-", "_")


def _option(name: str) -> str:
    """Return the explanation of a key, empty if the name is that of no key."""
    from yolo_lossplug.selection.keys import CLAIMED, MIX
    from yolo_lossplug.selection.third_party import registry

    key = _key(name)
    if key in CLAIMED:
        return (
            f"{key}: this Ultralytics has a key of that name, which keeps its meaning; that of yolo-lossplug is not "
            "available."
        )
    if key == MIX.key:
        return "\n".join(_mixture()[1:]).strip()
    common = [f"{k}={default}: {meaning} ({values})" for k, default, values, meaning in common_keys() if k == key]
    owners = registry().owners(key)
    if not owners:
        return "\n".join([*common, candidates_text()] if common and key in ABOUT_CANDIDATES else common)
    p = owners[0].parameters[key]
    belongs = ", ".join(dict.fromkeys(_belongs(owner).strip("`") for owner in owners))
    return f"{_explained(p)}\n  belongs to {belongs}"


def candidates_text() -> str:
    """Return how many candidate anchors objects of some sizes have, for a terminal."""
    from yolo_lossplug.sparse.candidates import rows

    lines = [f"  {size:<7}{host:>8}{raised:>8}" for size, host, raised in rows()]
    return "\n".join([f"\n{MEAN_CANDIDATES}", f"  {'pixels':<7}{'16':>8}{'32':>8}", *lines, "", FEW_CANDIDATES])


def _prefixes(name: str) -> list[Spec]:
    """Return the prefixes of a name like ``focal-``, of horizontal and of rotated boxes; none for another name."""
    from yolo_lossplug.selection.names import PREFIXES
    from yolo_lossplug.selection.third_party import registry

    prefixes = (spec for spec in registry() if spec.kind in PREFIXES.values())
    return [spec for spec in prefixes if f"{spec.name}-" == name.strip().lower()]


def _losses(name: str) -> list[list[Spec]]:
    """Return the specs of each loss in a name, outermost first: of one, or of two where they are mixed.

    A name of both kinds is the box loss.
    """
    from yolo_lossplug.selection.names import is_known, is_user_defined, mixed, names_with_prefixes, parts_of, suggest

    kinds, parts = (BOX, CLASS, ROTATED, SOFTMAX), parts_of(name)
    kind = next((k for k in kinds if all(is_user_defined(part) or is_known(k, part) for part in parts)), None)
    kind = kind or next((k for k in kinds if suggest(name, names_with_prefixes(k))), BOX)  # for a better message
    return [_parts(kind, part) for part in mixed(kind, name) or (name,)]


def _parts(kind: str, name: str) -> list[Spec]:
    """Return the specs of a loss of a kind, outermost first."""
    from yolo_lossplug.selection.names import is_user_defined, resolve
    from yolo_lossplug.selection.own import load_own

    if is_user_defined(name):
        return [load_own(name, kind)]
    spec, modifiers = resolve(kind, name)
    return [*modifiers, spec]


def shown(spec: Spec) -> str:
    """Return a name as it is written before or after others."""
    from yolo_lossplug.selection.names import PREFIXES

    return f"{spec.name}-" if spec.kind in PREFIXES.values() else spec.name


def listing(groups: Sequence[str] = ()) -> str:
    """Return losses with formulas and options, the keys of any loss, and where there is more; lines of any length.

    Args:
        groups: Words of `GROUPS`; all losses, and the keys of any loss, if there are none.
    """
    sections = [
        [heading, *(line for spec in specs for line in _listed(spec))]
        for heading, _, kinds in SECTIONS
        if (specs := _of_kinds(kinds, groups))
    ]
    if not groups or {"box", "obb"} & {*groups}:
        formula, option, _ = _mixture()
        sections.append(
            ["two losses: loss=NAME+NAME", _after_name(*formula.split(": ")), _after_name("", option.strip())]
        )
    if not groups:
        rows = [
            f"  {f'{key}={default}':<{KEY_WIDTH - 2}}{meaning} ({values})"
            for key, default, values, meaning in common_keys()
        ]
        sections.append(["any loss: keys of no loss in particular", *rows])
    more = "lossplug explain NAME says what options mean, with papers and weaknesses; --json prints all."
    return "\n\n".join("\n".join(section) for section in [*sections, [more]])


def _of_kinds(kinds: Sequence[str], groups: Sequence[str]) -> list[Spec]:
    """Return the specs of some kinds by name, of those kinds that belong to one of the groups, if there are any."""
    from yolo_lossplug.selection.third_party import registry

    wanted = {kind for group in groups or GROUPS for kind in GROUPS[group]}.intersection(kinds)
    return sorted((spec for spec in registry() if spec.kind in wanted), key=lambda spec: spec.name)


def _listed(spec: Spec) -> list[str]:
    """Return the lines of a loss: name and formula, and options with defaults and ranges."""
    name = f"{shown(spec)} ∘" if spec.kind == OVERLAP else shown(spec)
    options = [f"{p.key}={p.default} in {p.option.range}" for p in spec.parameters.values()]
    return [_after_name(name, spec.formula), *(_after_name("", option) for option in options)]


def _after_name(name: str, text: str) -> str:
    return f"  {name:<{NAME_WIDTH - 2}}{text}"


def records(groups: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return losses for programs, in the order of `listing`.

    Args:
        groups: Words of `GROUPS`; all losses if there are none.
    """
    return [_record(spec) for *_, kinds in SECTIONS for spec in _of_kinds(kinds, groups)]


def _record(spec: Spec) -> dict[str, Any]:
    from yolo_lossplug.selection.names import PREFIXES, key_of

    key, is_prefix = key_of(spec.kind), spec.kind in PREFIXES.values()
    return {
        "name": spec.name,
        "kind": "prefix" if is_prefix else "class" if key == key_of(CLASS) else "box",
        "key": key,
        "tasks": tasks_of(spec.kind),
        "aliases": list(spec.aliases),
        "formula": spec.formula,
        "options": [_option_record(p) for p in spec.parameters.values()],
        "paper": _paper_record(spec),
        "note": spec.note,
        "takes_prefixes": spec.kind in (OVERLAP, ROTATED),
    }


def tasks_of(kind: str) -> list[str]:
    """Return the tasks of a kind of losses or of prefixes."""
    from yolo_lossplug.selection.keys import CLASSIFY, TASKS
    from yolo_lossplug.selection.names import PREFIXES

    if kind == CLASS:
        return list(TASKS)
    base = {OVERLAP: BOX, **{prefix: base for base, prefix in PREFIXES.items()}}.get(kind, kind)
    return [task for task, of_task in {**TASKS, CLASSIFY: SOFTMAX}.items() if of_task == base]


def _option_record(p: Parameter) -> dict[str, Any]:
    return {
        "key": p.key,
        "type": p.type.__name__,
        "default": p.default,
        "range": p.option.range,
        "meaning": p.option.help,
    }


def _paper_record(spec: Spec) -> Optional[dict[str, Any]]:
    paper = spec.paper
    if paper is None:
        return None
    return {
        "title": paper.title,
        "authors": paper.authors,
        "venue": paper.venue,
        "year": paper.year,
        "address": paper.address,
    }


def common_keys() -> list[tuple[str, str, str, str]]:
    """Return key, default, values and meaning of every key that belongs to no loss in particular."""
    from yolo_lossplug.selection.keys import (
        ASSIGNER_OVERLAPS,
        CLAIMED,
        ENGINES,
        NAMES,
        NMS_OVERLAPS,
        NUMBERS,
        REPORT,
        WEIGHTS,
    )

    names = {
        "loss": (
            "name, prefix-name, file.py:function or package.module:function, or two of these: ciou+nwd",
            "box loss; probiou for task=obb",
        ),
        "cls_loss": ("name, file.py:function or package.module:function", "class loss; ce for task=classify"),
        "tal_iou": (", ".join(ASSIGNER_OVERLAPS), "overlap inside the assigner, clamped at 0"),
        "nms_iou": (", ".join(NMS_OVERLAPS), "overlap in the NMS of val, predict, track and of validation in training"),
        "loss_engine": (", ".join(ENGINES), "how the loss is computed; all engines compute the same loss"),
    }
    rows = [
        *((key, default, *names[key]) for key, default in NAMES.items()),
        *((p.key, _default(p), p.option.range, p.option.help) for p in NUMBERS.values()),
        (
            WEIGHTS,
            "none",
            "list of one number per class, or mapping from names to numbers",
            "weight of each class",
        ),
        (REPORT, "False", "True, False", "write what the assigner does, by epoch, to lossplug_report.csv and a plot"),
    ]
    return [row for row in rows if row[0] not in CLAIMED]


def _default(p: Parameter) -> str:
    return "none" if p.default is None else str(p.default)


def comments() -> dict[str, str]:
    """Return one line on every key, by key: default, values, meaning, and the losses it belongs to."""
    from yolo_lossplug.selection.keys import MIX, numeric_keys
    from yolo_lossplug.selection.third_party import registry

    common = {key: f"{default}: {meaning} ({values})" for key, default, values, meaning in common_keys()}
    owners = {MIX.key: ["loss=NAME+NAME"]}
    for key in numeric_keys().keys() - common.keys() - owners.keys():
        owners[key] = list(dict.fromkeys(_belongs(owner).strip("`") for owner in registry().owners(key)))
    options = {
        key: f"{p.default} in {p.option.range}: {p.option.help} ({', '.join(owners[key])})"
        for key, p in numeric_keys().items()
        if key in owners
    }
    return {**common, **options}


def table(head: str, rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table.

    Args:
        head: Titles of the columns, separated by `` | ``.
        rows: The cells of every row; bars in them are escaped.
    """
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    rule = "|---" * (head.count("|") + 1)
    return "".join([f"| {head} |\n{rule}|\n", *(f"| {line} |\n" for line in lines)])


def markdown(link: Callable[[Spec, str], str] = lambda spec, name: name, groups: Sequence[str] = ()) -> str:
    """Return the tables of losses for the documentation, one for each key and task.

    Args:
        link: Makes a link of a loss's name.
        groups: Words of `GROUPS`; all losses if there are none.
    """
    head = "name | formula | options = default in range | source | remark"
    return "\n".join(
        f"### {title}\n\n{table(head, ([link(spec, _marked(spec)), *_cells(spec)] for spec in specs))}"
        for _, title, kinds in SECTIONS
        if (specs := _of_kinds(kinds, groups))
    )


def _marked(spec: Spec) -> str:
    """Return the name of a loss as code, with a sign if it takes prefixes."""
    return f"`{shown(spec)}`{' ∘' if spec.kind == OVERLAP else ''}"


def _cells(spec: Spec) -> tuple[str, str, str, str]:
    """Return formula, options, source and remark of a loss."""
    options = "<br>".join(f"`{p.key}` = {p.default} in {p.option.range}" for p in spec.parameters.values())
    source = f"[{spec.year}]({spec.paper.address})" if spec.paper else ""
    return spec.formula, options, source, spec.note


def key_tables() -> list[str]:
    """Return the tables of keys for the documentation."""
    return [keys_markdown(), options_markdown()]


def keys_markdown() -> str:
    """Return the table of keys that belong to no loss in particular."""
    return table("key | default | values | meaning", ([f"`{key}`", *rest] for key, *rest in common_keys()))


def options_markdown() -> str:
    """Return the table of the losses' own keys."""
    from yolo_lossplug.registry import REGISTRY
    from yolo_lossplug.selection.keys import MIX

    mixture = [f"`{MIX.key}`", str(MIX.default), MIX.option.range, MIX.option.help, "`loss=ciou+nwd`"]
    rows = (
        [f"`{p.key}`", str(p.default), p.option.range, p.option.help, ", ".join(dict.fromkeys(map(_belongs, owners)))]
        for p in REGISTRY.parameters().values()
        if (owners := REGISTRY.owners(p.key))
    )
    return table("key | default | range | meaning | belongs to", sorted([mixture, *rows]))


def _belongs(spec: Spec) -> str:
    """Return how an option's loss is asked for."""
    from yolo_lossplug.selection.names import key_of

    return f"`{key_of(spec.kind)}={shown(spec)}`"

# SPDX-License-Identifier: AGPL-3.0-or-later
"""From a name to the losses that it stands for, and the messages about names that stand for none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolo_lossplug.registry import BOX, CLASS, ROTATED, SOFTMAX, LossPlugError, Spec
from yolo_lossplug.selection import names
from yolo_lossplug.selection.third_party import registry

ABSENT = (
    "this program was built without the modules of losses; build it with "
    "`pyinstaller --collect-submodules yolo_lossplug`, or your freezer's equivalent."
)


def canonical(kind: str, name: str) -> str:
    """Return the one spelling of a single loss; a user-defined one is not loaded.

    Raises:
        LossPlugError: If there is no such loss.
    """
    if names.is_user_defined(name):
        file, _, function = name.strip().rpartition(":")
        # The whole path, so that a run is resumed, and its workers start, from any folder.
        return f"{Path(file).resolve()}:{function}" if file.endswith(".py") else name.strip()
    spec, modifiers = resolve_name(kind, name)
    return "-".join(part.name for part in (*modifiers, spec))


def refuse_unknown_name(kind: str, name: str) -> None:
    """Raise an error for a name that is not a loss of a kind; user-defined functions are not loaded."""
    if not mixed(kind, name):
        canonical(kind, name)


def resolve_name(kind: str, name: str) -> tuple[Spec, list[Spec]]:
    """Return the spec of a name, and its modifiers, outermost first.

    Raises:
        LossPlugError: If there is no such loss, or the prefixes do not apply to it.
    """
    parts = names.split(kind, name)
    if parts is None:
        raise LossPlugError(unknown(kind, name))
    spec, modifiers = parts
    for position, m in enumerate(modifiers):
        if m in modifiers[:position]:
            raise LossPlugError(f"loss={name} has '{m.name}-' twice; name it once.")
        if not m.fits(spec.name) or spec.kind == BOX:
            not_one = f"needs an IoU loss (1 − IoU + penalties); '{spec.name}' is not one"
            what = not_one if spec.kind == BOX else f"is not defined for '{spec.name}'"
            bases = ", ".join(sorted(m.bases) or names.bases_of(kind))
            raise LossPlugError(f"loss={name} is not possible. The prefix '{m.name}-' {what}. Use it with {bases}.")
    return spec, [m for m in names.modifiers_of(kind) if m in modifiers]


def mixed(kind: str, name: str) -> tuple[str, ...]:
    """Return the two parts of a mixture, checked; none for a single loss.

    Raises:
        LossPlugError: If it is a mixture and cannot be one, or a part is unknown.
    """
    parts = names.parts_of(name)
    if len(parts) == 1:
        return ()
    explanations = (_not_two, _unknown_part, _not_one_kind)
    reason = next((text for explain in explanations if (text := explain(kind, name, parts))), "")
    if reason:
        raise LossPlugError(reason)
    try:
        first, second = (canonical(kind, part) for part in parts)
    except LossPlugError as error:
        raise LossPlugError(f"{names.key_of(kind)}={name}: {error}") from error
    if first == second:
        raise LossPlugError(f"loss={name} has the loss '{first}' twice; use loss={first}, or two different losses.")
    return parts


def _not_two(kind: str, name: str, parts: Sequence[str]) -> str:
    key = names.key_of(kind)
    if kind not in names.PREFIXES:
        return f"{key}={name} is a mixture, and only box losses can be mixed (loss=ciou+nwd); choose one class loss."
    if not all(parts):
        return f"{key}={name} lacks a loss before or after a '+'; write {key}=ciou+nwd, or remove the '+'."
    if len(parts) > 2:
        use = f"Use {key}={parts[0]}+{parts[1]}."
        return f"{key}={name} has {len(parts)} losses; a mixture has two, and loss_mix is the share of the first. {use}"
    return ""


def _unknown_part(kind: str, name: str, parts: Sequence[str]) -> str:
    """Return which part is a loss of neither kind, as one of the kind that the other part is of."""
    part = next((part for part in parts if not any(names.may_be(k, part) for k in names.PREFIXES)), None)
    if part is None:
        return ""
    its_kind = next((k for k in (kind, *names.PREFIXES) if any(names.may_be(k, other) for other in parts)), kind)
    return f"{names.key_of(kind)}={name}: {unknown(its_kind, part)}"


def _not_one_kind(kind: str, name: str, parts: Sequence[str]) -> str:
    other = ROTATED if kind == BOX else BOX
    if all(names.may_be(kind, part) for part in parts):
        return ""
    if all(names.may_be(other, part) for part in parts):
        return _of_another_task(kind, name)
    horizontal, rotated = (next(part for part in parts if names.is_known(k, part)) for k in (BOX, ROTATED))
    what = f"mixes a loss of horizontal boxes ({horizontal}) with one of rotated boxes ({rotated})"
    remedy = "use two rotated losses for task=obb, two horizontal ones for other tasks."
    return f"{names.key_of(kind)}={name} {what}, and one run has boxes of one kind; {remedy}"


def unknown(kind: str, name: str) -> str:
    """Return why a name is not a loss of that kind, and the remedy."""
    explanations = (_refused, _stock, _not_a_name, _of_another_task, _of_another_key)
    reason = next((text for explain in explanations if (text := explain(kind, name))), "")
    key, known = names.key_of(kind), names.names_with_prefixes(kind)
    if reason:
        return reason
    if not known or not registry().names(CLASS):  # single modules of box losses are there, as others import them
        return f"{key}={name} is unknown: {ABSENT}"
    every = f"{', '.join(registry().names(*names.spec_kinds(kind)))}{_prefixes(kind)}"
    near = names.hint(names.normalise(name), (*known, *registry().aliases(*names.spec_kinds(kind))), every)
    return f"{key}={name} is unknown.{near}; a user-defined loss is {key}=file.py:function."


def _refused(kind: str, name: str) -> str:
    refused = registry().refused.items()
    return next((reason for loss, reason in refused if f"-{loss}-" in f"-{names.normalise(name)}-"), "")


def _stock(kind: str, name: str) -> str:
    is_stock = names.normalise(name) in ("", "none", "null", "stock", "default")
    return how_to_get_stock(names.key_of(kind), name, names.STOCK[kind]) if is_stock else ""


def how_to_get_stock(key: str, value: Any, default: str) -> str:
    """Return how to keep the stock loss, which only the default names."""
    return f"{key}={value} is unknown. To keep Ultralytics' own, remove {key}, or give {key}={default}."


def _not_a_name(kind: str, name: str) -> str:
    """Return what a list, a recipe or a path is, and how to use it."""
    key, file = names.key_of(kind), name.strip().rstrip(":")
    if names.is_list(name):
        return f"{key}={name} is a list of several losses: lossplug compare {key}={name} trains with each."
    if name.strip().lower().endswith((".yaml", ".yml")):
        return f"{key}={name} is a recipe: cfg={name.strip()}."
    if file.endswith(".py"):
        return f"{key}={name} lacks the function in that file: {key}={file}:function."
    is_path = "/" in file or "\\" in file
    return f"{key}={name} is a path; a user-defined loss is {key}=file.py:function." if is_path else ""


def _of_another_task(kind: str, name: str) -> str:
    key, known = names.key_of(kind), names.names_with_prefixes(kind)
    if not names.is_known({BOX: ROTATED, ROTATED: BOX, CLASS: SOFTMAX, SOFTMAX: CLASS}[kind], name):
        return ""
    why = "cannot be used with task=obb: its boxes are rotated, and this loss takes horizontal boxes. obb takes"
    reasons = {
        ROTATED: f"{why} {', '.join(known)}.",
        BOX: "takes rotated boxes: it needs task=obb and a model of that task.",
        SOFTMAX: f"is not available for task=classify; choose {either(known)}.",
        CLASS: f"is only available for task=classify; choose {either(known)}.",
    }
    return f"{key}={name} {reasons[kind]}"


def _of_another_key(kind: str, name: str) -> str:
    """Return what a name means as a value of the other key, or as a prefix."""
    key, meanings = names.key_of(kind), []
    others, what = ((CLASS, SOFTMAX), "class loss") if key == "loss" else ((BOX, ROTATED), "box loss")
    if other := next((k for k in others if names.is_known(k, name)), None):
        meanings.append(f"{name.strip().rstrip('-')} is a {what}: {names.key_of(other)}={canonical(other, name)}")
    if m := next((m for m in names.modifiers_of(kind) if m.name == names.normalise(name)), None):
        base = (sorted(m.bases) or names.bases_of(kind))[0]
        meanings.append(f"'{m.name}-' is a prefix, e.g. {key}={m.name}-{base}")
    return f"{key}={name} is unknown; {'; '.join(meanings)}." if meanings else ""


def either(words: Sequence[str]) -> str:
    """Return words as a choice.

    >>> either(("ce", "focal", "poly"))
    'ce, focal or poly'
    """
    return " or ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _prefixes(kind: str) -> str:
    prefixes = ", ".join(f"{m.name}-" for m in names.modifiers_of(kind))
    return prefixes and f"; with prefixes {prefixes}"

# SPDX-License-Identifier: AGPL-3.0-or-later
"""The grammar of names, ``focal-inner-eiou`` being `eiou` with two prefixes, and the messages about unknown ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, Optional

from yolo_lossplug.registry import (
    BOX,
    CLASS,
    MODIFIER,
    OVERLAP,
    ROTATED,
    ROTATED_MODIFIER,
    SOFTMAX,
    LossPlugError,
    Spec,
)
from yolo_lossplug.selection.third_party import registry

ABSENT = (
    "this program was built without the modules of losses; build it with "
    "`pyinstaller --collect-submodules yolo_lossplug`, or what your builder has for whole packages."
)
STOCK = {BOX: "ciou", CLASS: "bce", ROTATED: "probiou", SOFTMAX: "ce"}
"""Ultralytics' own loss of each kind."""

PREFIXES = {BOX: MODIFIER, ROTATED: ROTATED_MODIFIER}
"""Kinds of losses that take prefixes, and the kind of these."""

DRIVE = re.compile(r"^[A-Za-z]:(?=[/\\])")
"""The drive of a path of Windows, whose colon is not the one before a function."""

_listed: set[str] = set()
"""Lists of names that this process has shown: once is enough."""


def kind_of(name: str, *kinds: str) -> str:
    """Return the first of some kinds of losses that knows a name, the first of all if none does."""
    return next((kind for kind in kinds if is_known(kind, name)), kinds[0])


def resolve(kind: str, name: str) -> tuple[Spec, list[Spec]]:
    """Return the spec of a name, and its modifiers, outermost first.

    Args:
        kind: ``BOX`` or ``CLASS``.
        name: Name as the user writes it.

    Raises:
        LossPlugError: If there is no such loss, or the prefixes do not apply to it.
    """
    parts = _split(kind, name)
    if parts is None:
        raise LossPlugError(unknown(kind, name))
    spec, modifiers = parts
    for position, m in enumerate(modifiers):
        if m in modifiers[:position]:
            raise LossPlugError(f"loss={name} has '{m.name}-' twice; name it once.")
        if not _fits(m, spec.name) or spec.kind == BOX:
            what = (
                f"needs an IoU loss (1 − IoU + penalties); '{spec.name}' is not one"
                if spec.kind == BOX
                else f"is not defined for '{spec.name}'"
            )
            bases = ", ".join(sorted(m.bases) or _bases(kind))
            raise LossPlugError(f"loss={name} is not possible. The prefix '{m.name}-' {what}. Use it with {bases}.")
    return spec, [m for m in _modifiers(kind) if m in modifiers]


def _split(kind: str, name: str) -> Optional[tuple[Spec, list[Spec]]]:
    """Return the spec of a name and its modifiers in the given order, unchecked; None if the name is unknown."""
    modifiers: list[Spec] = []
    rest = normalise(name)
    while True:
        spec = next((s for s in (registry().get(k, rest) for k in spec_kinds(kind)) if s), None)
        if spec:
            return spec, modifiers
        prefix = next((m for m in _modifiers(kind) if rest.startswith(f"{m.name}-")), None)
        if prefix is None:
            return None
        modifiers.append(prefix)
        rest = rest[len(prefix.name) + 1 :]


def unknown(kind: str, name: str) -> str:
    """Return why a name is not a loss of that kind, and the remedy."""
    explanations = (_refused, _stock, _several, _recipe, _file, _of_another_task, _of_another_key)
    reason = next((text for explain in explanations if (text := explain(kind, name))), "")
    key, known = key_of(kind), names_with_prefixes(kind)
    if reason:
        return reason
    if not known or not registry().names(CLASS):  # single modules of box losses are there, as others import them
        return f"{key}={name} is unknown: {ABSENT}"
    every = f"{', '.join(registry().names(*spec_kinds(kind)))}{_prefixes(kind)}"
    near = hint(normalise(name), (*known, *registry().aliases(*spec_kinds(kind))), every)
    return f"{key}={name} is unknown.{near}; a user-defined loss is {key}=file.py:function."


def _refused(kind: str, name: str) -> str:
    refused = registry().refused.items()
    return next((reason for loss, reason in refused if f"-{loss}-" in f"-{normalise(name)}-"), "")


def _stock(kind: str, name: str) -> str:
    is_stock = normalise(name) in ("", "none", "null", "stock", "default")
    return how_to_get_stock(key_of(kind), name, STOCK[kind]) if is_stock else ""


def how_to_get_stock(key: str, value: Any, default: str) -> str:
    """Return how to keep the stock loss, which only the default names."""
    return f"{key}={value} is unknown. To keep Ultralytics' own, remove {key}, or give {key}={default}."


def _several(kind: str, name: str) -> str:
    key = key_of(kind)
    words = f"{key}={name} is a list of several losses: lossplug compare {key}={name} trains with each."
    return words if is_list(name) else ""


def _recipe(kind: str, name: str) -> str:
    is_yaml = name.strip().lower().endswith((".yaml", ".yml"))
    return f"{key_of(kind)}={name} is a recipe: cfg={name.strip()}." if is_yaml else ""


def _file(kind: str, name: str) -> str:
    key, file = key_of(kind), name.strip().rstrip(":")
    if file.endswith(".py"):
        return f"{key}={name} lacks the function in that file: {key}={file}:function."
    is_path = "/" in file or "\\" in file
    return f"{key}={name} is a path; a user-defined loss is {key}=file.py:function." if is_path else ""


def _of_another_task(kind: str, name: str) -> str:
    key, known = key_of(kind), names_with_prefixes(kind)
    if kind == ROTATED and is_known(BOX, name):
        return (
            f"{key}={name} cannot be used with task=obb: its boxes are rotated, and this loss takes horizontal boxes. "
            f"obb takes {', '.join(known)}."
        )
    if kind == BOX and is_known(ROTATED, name):
        return f"{key}={name} takes rotated boxes: it needs task=obb and a model of that task."
    if kind == SOFTMAX and is_known(CLASS, name):
        return f"{key}={name} is not available for task=classify; choose {either(known)}."
    if kind == CLASS and is_known(SOFTMAX, name):
        return f"{key}={name} is only available for task=classify; choose {either(known)}."
    return ""


def _of_another_key(kind: str, name: str) -> str:
    """Return what a name means as a value of the other key, or as a prefix."""
    meanings = [text for text in (_as_other_loss(kind, name), _as_prefix(kind, name)) if text]
    return f"{key_of(kind)}={name} is unknown; {'; '.join(meanings)}." if meanings else ""


def _as_other_loss(kind: str, name: str) -> str:
    others = (CLASS, SOFTMAX) if key_of(kind) == "loss" else (BOX, ROTATED)
    other = next((k for k in others if is_known(k, name)), None)
    if other is None:
        return ""
    spec, modifiers = resolve(other, name)
    canonical = "-".join(part.name for part in (*modifiers, spec))
    what = "class loss" if key_of(other) == "cls_loss" else "box loss"
    return f"{name.strip().rstrip('-')} is a {what}: {key_of(other)}={canonical}"


def _as_prefix(kind: str, name: str) -> str:
    m = next((m for m in _modifiers(kind) if m.name == normalise(name)), None)
    if m is None:
        return ""
    example = f"{m.name}-{(sorted(m.bases) or _bases(kind))[0]}"
    return f"'{m.name}-' is a prefix, e.g. {key_of(kind)}={example}"


def key_of(kind: str) -> str:
    """Return the key that names losses of a kind."""
    return "cls_loss" if kind in (CLASS, SOFTMAX) else "loss"


def either(words: Sequence[str]) -> str:
    """Return words as a choice.

    >>> either(("ce", "focal", "poly"))
    'ce, focal or poly'
    """
    return " or ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def is_list(name: str) -> bool:
    """Return whether a value names several losses; a path may hold commas as well."""
    first, *others = (word.strip() for word in name.split(","))
    words = (first, *others)
    return bool(others) and (is_user_defined(first) or any(is_known(kind, word) for word in words for kind in STOCK))


def is_user_defined(name: str) -> bool:
    r"""Return whether a name refers to a function, as ``file.py:function`` or ``package.module:function``.

    >>> [is_user_defined(name) for name in (r"C:\losses\my.py:mine", r"C:\losses\my.py", "eiou")]
    [True, False, False]
    """
    module, _, function = DRIVE.sub("", name.strip()).rpartition(":")
    return bool(module and function) and not is_list(name)


def is_known(kind: str, name: str) -> bool:
    """Return whether a name is that of a loss of a kind, whether or not its prefixes fit."""
    return _split(kind, name) is not None


def normalise(name: str) -> str:
    """Return a name in kebab-case."""
    return "-".join(name.strip().lower().replace("_", " ").replace("-", " ").split())


def _modifiers(kind: str) -> list[Spec]:
    """Return all modifiers of a kind of loss, outermost first: those of the highest stage."""
    return sorted((s for s in registry() if s.kind == PREFIXES.get(kind)), key=lambda s: (-s.stage, s.name))


def names_with_prefixes(kind: str) -> tuple[str, ...]:
    """Return the names of a kind of loss, sorted: every loss, and every loss with one modifier."""
    singles = (f"{m.name}-{base}" for m in _modifiers(kind) for base in _bases(kind) if _fits(m, base))
    return tuple(sorted({*registry().names(*spec_kinds(kind)), *singles}))


def spec_kinds(kind: str) -> tuple[str, ...]:
    """Return the kinds of specs that a key of this kind names."""
    return (BOX, OVERLAP) if kind == BOX else (kind,)


def _bases(kind: str) -> tuple[str, ...]:
    """Return the losses that take prefixes."""
    return registry().names(OVERLAP if kind == BOX else kind)


def _fits(m: Spec, base: str) -> bool:
    return not m.bases or base in m.bases


def _prefixes(kind: str) -> str:
    modifiers = _modifiers(kind)
    return "; with prefixes " + ", ".join(f"{m.name}-" for m in modifiers) if modifiers else ""


def suggest(word: str, known: Iterable[str]) -> str:
    """Return a sentence with the nearest of some words, empty if none is near."""
    matches = get_close_matches(word, list(known), n=1)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def hint(word: str, known: Iterable[str], every: str) -> str:
    """Return the nearest of some words, or the list of all where none is near, but each list only once.

    Args:
        word: The unknown word.
        known: Candidates for a suggestion.
        every: The whole list as text.
    """
    near = suggest(word, known)
    if near or every in _listed:
        return f"{near} `lossplug list` shows all"
    _listed.add(every)
    return f" Known: {every}"

# SPDX-License-Identifier: AGPL-3.0-or-later
"""The grammar of names, and the messages about unknown ones.

``focal-inner-eiou`` is `eiou` with two prefixes, ``ciou+nwd`` a mixture of two losses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
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

PART = re.compile(r"([^/\\:+]*|.+?:\w+)\s*\+")
"""One loss before a ``+``: a name, or a reference to a function, whose path may hold a ``+`` as well."""

_listed: set[str] = set()
"""Lists of names that this process has shown: once is enough."""


def kind_of(name: str, *kinds: str) -> str:
    """Return the first of some kinds of losses that knows a name, the first of all if none does."""
    return next((kind for kind in kinds if is_known(kind, name)), kinds[0])


def parts_of(name: str) -> tuple[str, ...]:
    """Return the parts of a mixture as the user writes them, unchecked; for a single loss, its name alone.

    >>> parts_of("inner-ciou + /c++/losses.py:mine")
    ('inner-ciou', '/c++/losses.py:mine')
    """
    rest = name.strip()
    part = PART.match(rest)
    if part is None or is_list(name) or _is_file(rest):
        return (rest,)
    return part[1].strip(), *parts_of(rest[part.end() :])


def _is_file(name: str) -> bool:
    """Return whether a name is a function in a file that exists: its folder may look like a part of a mixture."""
    file, _, function = name.rpartition(":")
    return function.isidentifier() and Path(file).is_file()


def mixed(kind: str, name: str) -> tuple[str, ...]:
    """Return the two parts of a mixture, checked; none for a single loss.

    Raises:
        LossPlugError: If it is a mixture and cannot be one, or a part is unknown.
    """
    parts = parts_of(name)
    if len(parts) == 1:
        return ()
    explanations = (_not_two, _unknown_part, _not_one_kind)
    reason = next((text for explain in explanations if (text := explain(kind, name, parts))), "")
    if reason:
        raise LossPlugError(reason)
    try:
        first, second = (canonical(kind, part) for part in parts)
    except LossPlugError as error:
        raise LossPlugError(f"{key_of(kind)}={name}: {error}") from error
    if first == second:
        raise LossPlugError(f"loss={name} has the loss '{first}' twice; use loss={first}, or two different losses.")
    return parts


def _not_two(kind: str, name: str, parts: Sequence[str]) -> str:
    key = key_of(kind)
    if kind not in PREFIXES:
        return f"{key}={name} is a mixture, and only box losses can be mixed (loss=ciou+nwd); choose one class loss."
    if not all(parts):
        return f"{key}={name} lacks a loss before or after a '+'; write {key}=ciou+nwd, or remove the '+'."
    if len(parts) > 2:
        return (
            f"{key}={name} has {len(parts)} losses; a mixture has two, and loss_mix is the share of the first. "
            f"Use {key}={parts[0]}+{parts[1]}."
        )
    return ""


def _unknown_part(kind: str, name: str, parts: Sequence[str]) -> str:
    """Return which part is a loss of neither kind, as one of the kind that the other part is of."""
    part = next((part for part in parts if not any(_has(k, part) for k in PREFIXES)), None)
    if part is None:
        return ""
    its_kind = next((k for k in (kind, *PREFIXES) if any(_has(k, other) for other in parts)), kind)
    return f"{key_of(kind)}={name}: {unknown(its_kind, part)}"


def _not_one_kind(kind: str, name: str, parts: Sequence[str]) -> str:
    other = ROTATED if kind == BOX else BOX
    foreign = [part for part in parts if not _has(kind, part) and is_known(other, part)]
    if not foreign:
        return ""
    if all(_has(other, part) for part in parts):
        return _of_another_task(kind, name)
    horizontal, rotated = (next(part for part in parts if is_known(k, part)) for k in (BOX, ROTATED))
    return (
        f"{key_of(kind)}={name} mixes a loss of horizontal boxes ({horizontal}) with one of rotated boxes "
        f"({rotated}), and one run has boxes of one kind; use two rotated losses for task=obb, two horizontal ones "
        f"for other tasks."
    )


def _has(kind: str, part: str) -> bool:
    """Return whether a part may be a loss of a kind, as a user-defined one may be of any."""
    return is_user_defined(part) or is_known(kind, part)


def canonical(kind: str, name: str) -> str:
    """Return the one spelling of a single loss; a user-defined one is not loaded.

    Raises:
        LossPlugError: If there is no such loss.
    """
    if is_user_defined(name):
        file, _, function = name.strip().rpartition(":")
        # The whole path, so that a run is resumed, and its workers start, from any folder.
        return f"{Path(file).resolve()}:{function}" if file.endswith(".py") else name.strip()
    spec, modifiers = resolve(kind, name)
    return "-".join(part.name for part in (*modifiers, spec))


def refuse_unknown_name(kind: str, name: str) -> None:
    """Raise an error for a name that is no loss of a kind; user-defined functions are not loaded.

    Raises:
        LossPlugError: If it is none.
    """
    if not mixed(kind, name):
        canonical(kind, name)


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
    what = "class loss" if key_of(other) == "cls_loss" else "box loss"
    return f"{name.strip().rstrip('-')} is a {what}: {key_of(other)}={canonical(other, name)}"


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
    return bool(module and function) and not is_list(name) and len(parts_of(name)) == 1


def is_known(kind: str, name: str) -> bool:
    """Return whether a name is that of a loss of a kind, whether or not its prefixes fit.

    A mixture is known if both of its parts are, or may be, losses of that kind.
    """
    parts = parts_of(name)
    if len(parts) == 2 and kind in PREFIXES:
        return all(_has(kind, part) for part in parts)
    return _split(kind, name) is not None


def normalise(name: str) -> str:
    """Return a name in kebab-case, without spaces around a ``+``."""
    words = ["-".join(part.replace("_", " ").replace("-", " ").split()) for part in name.lower().split("+")]
    return "+".join(words)


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

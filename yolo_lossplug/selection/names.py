# SPDX-License-Identifier: AGPL-3.0-or-later
"""The grammar of names, ``focal-inner-eiou`` being `eiou` with two prefixes, and what to say of an unknown one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Optional

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
PREFIXES = {BOX: MODIFIER, ROTATED: ROTATED_MODIFIER}
"""Kinds of losses that take prefixes, and the kind of these."""


def kind_of(name: str, *kinds: str) -> str:
    """Return the first of some kinds of losses that knows a name, the first of all if none does."""
    return next((kind for kind in kinds if is_known(kind, name)), kinds[0])


def resolve(kind: str, name: str) -> tuple[Spec, list[Spec]]:
    """Return the spec of a name, and its modifiers, outermost first.

    Args:
        kind: ``BOX`` or ``CLASS``.
        name: Name as the user writes it.

    Raises:
        LossPlugError: If there is no such loss, or the parts do not fit.
    """
    parts = _split(kind, name)
    if parts is None:
        raise LossPlugError(_unknown(kind, name))
    spec, modifiers = parts
    for position, m in enumerate(modifiers):
        if m in modifiers[:position]:
            raise LossPlugError(f"loss={name} has '{m.name}-' twice; name it once.")
        if not _fits(m, spec.name) or spec.kind == BOX:
            bases = sorted(m.bases) or registry().names(OVERLAP if kind == BOX else kind)
            raise LossPlugError(
                f"loss={name} has no meaning: '{m.name}-' acts on {m.formula}, and '{spec.name}' is "
                f"{'not of the form 1 − u + penalties' if spec.kind == BOX else 'not defined for it'}. "
                f"It goes before {', '.join(bases)}."
            )
    return spec, [m for m in _modifiers(kind) if m in modifiers]


def _split(kind: str, name: str) -> Optional[tuple[Spec, list[Spec]]]:
    """Return the spec of a name and its modifiers as they are named, whether or not they fit; None if it is unknown."""
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


def _unknown(kind: str, name: str) -> str:
    """Return why a name is none of that kind, and what to take instead."""
    for refused, reason in registry().refused.items():
        if f"-{normalise(name)}".endswith(f"-{refused}"):
            return reason
    key, known = "cls_loss" if kind in (CLASS, SOFTMAX) else "loss", names_with_prefixes(kind)
    if kind == ROTATED and is_known(BOX, name):
        return (
            f"loss={name} cannot be used with task=obb: its boxes are rotated, and this loss is one of "
            f"horizontal boxes. obb takes {', '.join(known)}."
        )
    if kind == BOX and is_known(ROTATED, name):
        return f"loss={name} is one of rotated boxes: it needs task=obb and a model of that task."
    if kind in (CLASS, SOFTMAX) and is_known(CLASS if kind == SOFTMAX else SOFTMAX, name):
        other = "of the task classify" if kind == CLASS else "of tasks with boxes, and not of classify"
        return f"cls_loss={name} is one {other}. Take one of {', '.join(known)}."
    if not known:
        return f"{key}={name} is unknown: {ABSENT}"
    own = f"{name.strip()}:function" if name.strip().endswith(".py") else "file.py:function"
    return (
        f"{key}={name} is unknown.{suggest(normalise(name), known)} "
        f"Known: {', '.join(registry().names(*spec_kinds(kind)))}{_prefixes(kind)}; or one of your own as {key}={own}."
    )


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
    bases = registry().names(OVERLAP if kind == BOX else kind)
    singles = (f"{m.name}-{base}" for m in _modifiers(kind) for base in bases if _fits(m, base))
    return tuple(sorted({*registry().names(*spec_kinds(kind)), *singles}))


def spec_kinds(kind: str) -> tuple[str, ...]:
    """Return the kinds of specs that a key of this kind names."""
    return (BOX, OVERLAP) if kind == BOX else (kind,)


def _fits(m: Spec, base: str) -> bool:
    return not m.bases or base in m.bases


def _prefixes(kind: str) -> str:
    modifiers = _modifiers(kind)
    return "; with prefixes " + ", ".join(f"{m.name}-" for m in modifiers) if modifiers else ""


def suggest(word: str, known: Iterable[str]) -> str:
    """Return a sentence with the nearest of some words, empty if none is near."""
    matches = get_close_matches(word, list(known), n=1)
    return f" Did you mean '{matches[0]}'?" if matches else ""

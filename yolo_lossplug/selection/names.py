# SPDX-License-Identifier: AGPL-3.0-or-later
"""The grammar of names: ``focal-inner-eiou`` is `eiou` with two prefixes, ``ciou+nwd`` a mixture of two losses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Optional

from yolo_lossplug.registry import BOX, CLASS, MODIFIER, OVERLAP, ROTATED, ROTATED_MODIFIER, SOFTMAX, Spec
from yolo_lossplug.selection.third_party import registry

STOCK = {BOX: "ciou", CLASS: "bce", ROTATED: "probiou", SOFTMAX: "ce"}
"""Ultralytics' own loss of each kind."""
PREFIXES = {BOX: MODIFIER, ROTATED: ROTATED_MODIFIER}
"""Kinds of losses that take prefixes, and the kind of these."""
DRIVE = re.compile(r"^[A-Za-z]:(?=[/\\])")
"""The drive of a path of Windows, whose colon is not the one before a function."""
MIXTURE_PART = re.compile(r"([^/\\:+]*|.+?:\w+)\s*\+")
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
    part = MIXTURE_PART.match(rest)
    if part is None or is_list(name) or _is_file(rest):
        return (rest,)
    return part[1].strip(), *parts_of(rest[part.end() :])


def _is_file(name: str) -> bool:
    """Return whether a name is a function in a file that exists: its folder may look like a part of a mixture."""
    file, _, function = name.rpartition(":")
    return function.isidentifier() and Path(file).is_file()


def may_be(kind: str, part: str) -> bool:
    """Return whether a part may be a loss of a kind, as a user-defined one may be of any."""
    return is_user_defined(part) or is_known(kind, part)


def split(kind: str, name: str) -> Optional[tuple[Spec, list[Spec]]]:
    """Return the spec of a name and its modifiers in the given order, unchecked; None if the name is unknown."""
    modifiers: list[Spec] = []
    rest = normalise(name)
    while True:
        spec = next((s for s in (registry().get(k, rest) for k in spec_kinds(kind)) if s), None)
        if spec:
            return spec, modifiers
        prefix = next((m for m in modifiers_of(kind) if rest.startswith(f"{m.name}-")), None)
        if prefix is None:
            return None
        modifiers.append(prefix)
        rest = rest[len(prefix.name) + 1 :]


def key_of(kind: str) -> str:
    """Return the key that names losses of a kind."""
    return "cls_loss" if kind in (CLASS, SOFTMAX) else "loss"


def is_list(name: str) -> bool:
    """Return whether a value names several losses; a path may hold commas as well."""
    words = [word.strip() for word in name.split(",")]
    return len(words) > 1 and (is_user_defined(words[0]) or any(is_known(k, word) for word in words for k in STOCK))


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
        return all(may_be(kind, part) for part in parts)
    return split(kind, name) is not None


def normalise(name: str) -> str:
    """Return a name in kebab-case, without spaces around a ``+``."""
    words = ["-".join(part.replace("_", " ").replace("-", " ").split()) for part in name.lower().split("+")]
    return "+".join(words)


def modifiers_of(kind: str) -> list[Spec]:
    """Return all modifiers of a kind of loss, outermost first: those of the highest stage."""
    return sorted((s for s in registry() if s.kind == PREFIXES.get(kind)), key=lambda s: (-s.stage, s.name))


def names_with_prefixes(kind: str) -> tuple[str, ...]:
    """Return the names of a kind of loss, sorted: every loss, and every loss with one modifier."""
    singles = (f"{m.name}-{base}" for m in modifiers_of(kind) for base in bases_of(kind) if m.fits(base))
    return tuple(sorted({*registry().names(*spec_kinds(kind)), *singles}))


def spec_kinds(kind: str) -> tuple[str, ...]:
    """Return the kinds of specs that a key of this kind names."""
    return (BOX, OVERLAP) if kind == BOX else (kind,)


def bases_of(kind: str) -> tuple[str, ...]:
    """Return the losses that take prefixes."""
    return registry().names(OVERLAP if kind == BOX else kind)


def suggest(word: str, known: Iterable[str]) -> str:
    """Return a sentence with the nearest of some words, empty if none is near."""
    matches = get_close_matches(word, list(known), n=1)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def hint(word: str, known: Iterable[str], every: str) -> str:
    """Return the nearest of some words, or the list of all where none is near, but each list only once."""
    near = suggest(word, known)
    if near or every in _listed:
        return f"{near} `lossplug list` shows all"
    _listed.add(every)
    return f" Known: {every}"

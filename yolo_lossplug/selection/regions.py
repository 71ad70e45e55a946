# SPDX-License-Identifier: AGPL-3.0-or-later
"""What of a dataset shall not be taught: the keys `ignore` and `annotated`, checked against its classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.names import suggest

IGNORE, ANNOTATED = "ignore", "annotated"
EVERY = "all"
"""In place of a list of classes."""
NAMED_LIKE_REGIONS = frozenset(
    {"crowd", "difficult", "dont care", "dontcare", "ignore", "ignored", "ignored regions", "others"}
)
"""Names of classes whose boxes are regions in well-known datasets, in lower case, without marks."""


@dataclass(frozen=True)
class Rules:
    """What is not taught, and where.

    Attributes:
        count: Number of classes.
        rows: Classes that a region silences, by the number of its kind.
        kinds: Kind of the regions that the boxes of a class are, by class.
        entries: By split, the kind of the region that covers every image of an entry, None where all is annotated.
    """

    count: int
    rows: tuple[frozenset[int], ...]
    kinds: Mapping[int, int]
    entries: Mapping[str, tuple[Optional[int], ...]] = field(default_factory=dict)

    def describe(self) -> str:
        """Return in a few words what is not taught."""
        parts = [f"{IGNORE}: {_plural(len(self.kinds), 'class', 'classes')}"] if self.kinds else []
        partly = sum(kind is not None for kinds in self.entries.values() for kind in kinds)
        return ", ".join([*parts, *([f"{ANNOTATED}: {_plural(partly, 'entry', 'entries')} in part"] if partly else [])])


def _plural(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"


def parsed(key: str, value: Any) -> Any:
    """Return the value of a key as YAML reads it; what is typed on a command line is a string.

    Raises:
        LossPlugError: If it is no YAML.
    """
    if not isinstance(value, str):
        return value
    import yaml

    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise LossPlugError(f"{key}={value} cannot be read; write it as in YAML, e.g. {key}=[person,car].") from error


def rules_of(names: Mapping[int, str], ignore: Any, annotated: Any, data: Mapping[str, Any]) -> Optional[Rules]:
    """Return the rules of a dataset, None where everything is taught.

    Args:
        names: Names of the classes by index.
        ignore: Value of the key of that name.
        annotated: Value of the key of that name.
        data: Description of the dataset, with the entries of its splits.

    Raises:
        LossPlugError: If a value is wrong.
    """
    silenced = _silenced(names, parsed(IGNORE, ignore))
    by_split = _classes_of_entries(names, parsed(ANNOTATED, annotated), data)
    for split, annotates in by_split.items():
        _refuse_unfit_entries(names, split, annotates, silenced)
    rows: list[frozenset[int]] = []

    def kind_of_row(classes: frozenset[int]) -> Optional[int]:
        if not classes:
            return None
        if classes not in rows:
            rows.append(classes)
        return rows.index(classes)

    kinds = {cls: kind for cls, row in silenced.items() if (kind := kind_of_row(row)) is not None}
    entries = {
        split: tuple(kind_of_row(frozenset(names) - classes - silenced.keys()) for classes in values)
        for split, values in by_split.items()
    }
    return Rules(len(names), tuple(rows), kinds, entries) if rows else None


def by_index(names: Any) -> dict[int, str]:
    """Return names of classes, in order or by index, by index; none for None."""
    return {int(i): str(n) for i, n in (names.items() if isinstance(names, dict) else enumerate(names or ()))}


def _silenced(names: Mapping[int, str], value: Any) -> dict[int, frozenset[int]]:
    """Return the classes that boxes of an ignored class silence, by that class."""
    if value is None or value == [] or value == {}:
        return {}
    table = value if isinstance(value, Mapping) else dict.fromkeys(map(_hashable, as_list(value)), EVERY)
    silenced = {}
    for one, silences in table.items():
        classes = frozenset(names) if silences in (EVERY, [EVERY]) else _indices(names, IGNORE, silences)
        if not classes:
            raise LossPlugError(f"{IGNORE}: boxes of {one} silence no class; give a list of classes, or {EVERY}.")
        silenced[_index(names, IGNORE, one)] = classes
    if len(silenced) == len(names):
        raise LossPlugError(f"{IGNORE}={value} names every class of the data, so that nothing is taught; remove one.")
    return silenced


def _classes_of_entries(
    names: Mapping[int, str], value: Any, data: Mapping[str, Any]
) -> dict[str, list[frozenset[int]]]:
    """Return the annotated classes of every entry, by split."""
    if value is None or value == []:
        return {}
    by_split = value.items() if isinstance(value, Mapping) else [("train", value)]
    return {split: _annotated(names, split, lists, data.get(split)) for split, lists in by_split}


def _annotated(names: Mapping[int, str], split: str, lists: Any, entries: Any) -> list[frozenset[int]]:
    """Return the annotated classes of every entry of a split."""
    n_given = len(lists) if isinstance(lists, (list, tuple)) else 1
    n_entries = 0 if entries is None else len(as_list(entries))
    if not isinstance(lists, (list, tuple)) or n_given != n_entries or not n_entries:
        raise LossPlugError(
            f"{ANNOTATED}={lists} has {n_given} lists of classes for {n_entries} entries of {split}: in the data; "
            f"give one list for each, e.g. {ANNOTATED}=[[cat],[dog]]."
        )
    return [frozenset(names) if one == EVERY else _indices(names, ANNOTATED, one) for one in lists]


def _refuse_unfit_entries(
    names: Mapping[int, str], split: str, entries: list[frozenset[int]], silenced: Mapping[int, Any]
) -> None:
    everywhere = frozenset().union(*entries)
    if everywhere != frozenset(names):  # `all` names the ignored ones too
        both = everywhere & silenced.keys()
        if both:
            name = names[min(both)]
            raise LossPlugError(f"class '{name}' is both in {ANNOTATED} and in {IGNORE}; remove it from one of them.")
    missing = frozenset(names) - everywhere - silenced.keys()
    if missing and split == "train":
        name = names[min(missing)]
        raise LossPlugError(
            f"{ANNOTATED}: no entry of {split}: annotates the class '{name}', which would never be taught; add it to "
            f"a list, or remove it from names."
        )


def as_list(value: Any) -> list[Any]:
    """Return a value as a list, of one element if it is none."""
    return [*value] if isinstance(value, (list, tuple)) else [value]


def _hashable(value: Any) -> Any:
    return value if isinstance(value, (str, int)) else str(value)


def _indices(names: Mapping[int, str], key: str, value: Any) -> frozenset[int]:
    return frozenset(_index(names, key, one) for one in as_list(value))


def _index(names: Mapping[int, str], key: str, value: Any) -> int:
    """Return the class that a name or an index means."""
    if isinstance(value, int) and not isinstance(value, bool) and value in names:
        return value
    by_name = {name: index for index, name in names.items()}
    if str(value) in by_name:
        return by_name[str(value)]
    known = list(by_name)
    raise LossPlugError(
        f"{key}: the data has no class '{value}'.{suggest(str(value), known)} Known: {', '.join(known)}."
    )


def looks_like_region(name: str) -> bool:
    """Return whether a class is named as those are whose boxes are regions.

    >>> [looks_like_region(name) for name in ("Don't care", "ignored-regions", "car")]
    [True, True, False]
    """
    plain = "".join(mark if mark.isalnum() else "" if mark == "'" else " " for mark in name.lower())
    return " ".join(plain.split()) in NAMED_LIKE_REGIONS

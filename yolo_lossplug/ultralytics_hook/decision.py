# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which engine takes the steps of a criterion, and the measurements that decide it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional


def size_class(number: int) -> int:
    """Return the coarse size of a number: the exponent of the largest power of 4 not above it.

    >>> size_class(16 * 7 * 8400)
    9
    """
    return (max(1, number).bit_length() - 1) // 2


class Fastest(NamedTuple):
    """The fastest proven engine for steps of a size: size classes are of all anchors, and of elements.

    Elements are the objects of all images × the anchors of one.
    """

    dtype: str
    anchors_class: int
    size_class: int
    engine: str


class Measured(NamedTuple):
    """What was measured on a device, last on that date: the fastest engines, sorted."""

    date: str
    engines: tuple[Fastest, ...]

    def engine(self, dtype: str, anchors: int, elements: int) -> str:
        """Return the fastest engine for a size; empty if that is not within a class of one that was measured."""
        distances = {b.anchors_class: abs(b.anchors_class - size_class(anchors)) for b in self.engines if b[0] == dtype}
        near = [group for group, distance in distances.items() if distance <= 1]
        group = min(near, key=lambda known: (distances[known], known), default=None)
        by_size = {best.size_class: best.engine for best in self.engines if best[:2] == (dtype, group)}
        wanted = size_class(elements)
        if not by_size or not min(by_size) - 1 <= wanted <= max(by_size) + 1:
            return ""
        return by_size[min(by_size, key=lambda size: (abs(size - wanted), size))]

    @property
    def sizes(self) -> str:
        """The sizes of the steps that were measured, in words."""
        classes = [best.size_class for best in self.engines]
        return f"{short_number(4 ** min(classes))} to {short_number(4 ** (max(classes) + 1))} elements"

    def __str__(self) -> str:
        groups = dict.fromkeys(best[:2] for best in self.engines)
        texts = {group: _by_size([best for best in self.engines if best[:2] == group]) for group in groups}
        if len({*texts.values()}) == 1:
            return next(iter(texts.values()))
        return "; ".join(f"{dtype}, {short_number(4**size)} anchors: {text}" for (dtype, size), text in texts.items())


def _by_size(engines: Sequence[Fastest]) -> str:
    changes = [now for before, now in zip(engines, engines[1:]) if now.engine != before.engine]
    return ", ".join(
        [engines[0].engine, *(f"{best.engine} from {short_number(4**best.size_class)} elements" for best in changes)]
    )


def short_number(number: float) -> str:
    """Return a large number in words of two digits.

    >>> short_number(4_194_304), short_number(65_536), short_number(12)
    ('4.2M', '66k', '12')
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2g}{unit}" if number < 100 * size else f"{number / size:.0f}{unit}"
    return f"{number:g}"


class Decision(NamedTuple):
    """Which engine takes the steps of a criterion.

    Attributes:
        name: ``reference``, ``fast`` or ``triton``.
        why: Why it is the host's own step although another was requested, else empty.
        is_lazy: Whether steps are left to the host where the host is faster.
        measured: What a record says, which goes before `is_lazy`; None without a record.
        is_unmeasured: Whether `lossplug bench` may find a faster one.
        part: ``masks`` or ``keypoints`` if these are computed where needed only, whichever engine takes the rest.
    """

    name: str
    why: str = ""
    is_lazy: bool = False
    measured: Optional[Measured] = None
    is_unmeasured: bool = False
    part: str = ""

    def engine_at(self, dtype: str, anchors: int, elements: int) -> str:
        """Return the engine that a record names for a step, empty without one; see `Measured.engine`."""
        return "" if self.measured is None else self.measured.engine(dtype, anchors, elements)

    def __str__(self) -> str:
        part = f", {self.part} {'fast' if self.name == 'reference' else 'included'}" if self.part else ""
        unmeasured = "fast in crowds, else reference" if self.is_lazy else "fast"
        if self.measured is not None:
            others = "" if str(self.measured) == unmeasured else f", other sizes {unmeasured}"
            return f"{self.measured} (bench {self.measured.date}){others}{part}"
        step = f"{self.name} ({self.why})" if self.why else self.name
        return f"{unmeasured if self.name == 'fast' else step}{part}"

# SPDX-License-Identifier: AGPL-3.0-or-later
"""`lossplug`, the one attribute that the plugin adds to objects of the host, and its contents."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple, Optional

from torch import Tensor

from yolo_lossplug.selection.loss import Loss
from yolo_lossplug.selection.select import Selection
from yolo_lossplug.ultralytics_hook.run.counts import Meter

ATTRIBUTE = "lossplug"


def size_class(elements: int) -> int:
    """Return the coarse size of a step: the power of 4 not above images × objects × anchors.

    >>> size_class(16 * 7 * 8400)
    9
    """
    return (max(1, elements).bit_length() - 1) // 2


class Measured(NamedTuple):
    """What was measured on a device.

    Attributes:
        date: When, the newest.
        engines: Type of the scores, size class and fastest proven engine, sorted.
    """

    date: str
    engines: tuple[tuple[str, int, str], ...]

    def engine(self, dtype: str, elements: int) -> str:
        """Return the fastest engine for a size; empty if that is not within a class of one that was measured.

        Args:
            dtype: Type of the scores, as ``float32``.
            elements: Objects in all images times anchors.
        """
        size = size_class(elements)
        known = {one: name for kind, one, name in self.engines if kind == dtype}
        if not known or not min(known) - 1 <= size <= max(known) + 1:
            return ""
        return known[min(known, key=lambda one: (abs(one - size), one))]

    def __str__(self) -> str:
        kinds = sorted({kind for kind, _, _ in self.engines})
        texts = {kind: self._text(kind) for kind in kinds}
        if len({*texts.values()}) == 1:
            return texts[kinds[0]]
        return ", ".join(f"{kind} {text}" for kind, text in texts.items())

    def _text(self, dtype: str) -> str:
        """Return the engines of a type by size, each where it begins."""
        rows = [(size, name) for kind, size, name in self.engines if kind == dtype]
        changes = [rows[0], *(now for before, now in zip(rows, rows[1:]) if now[1] != before[1])]
        return ", ".join([changes[0][1], *(f"{name} from {count(4**size)} elements" for size, name in changes[1:])])


def count(number: float) -> str:
    """Return a large number in words of two digits.

    >>> count(4_194_304), count(65_536), count(12)
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
    """

    name: str
    why: str = ""
    is_lazy: bool = False
    measured: Optional[Measured] = None
    is_unmeasured: bool = False

    def engine_at(self, dtype: str, elements: int) -> str:
        """Return the engine that a record names for a step, empty without one; see `Measured.engine`."""
        return "" if self.measured is None else self.measured.engine(dtype, elements)

    def __str__(self) -> str:
        if self.measured is not None:
            return f"{self.measured} (bench {self.measured.date})"
        if self.name == "fast" and self.is_lazy:
            return "fast in crowds, else reference"
        return f"{self.name} ({self.why})" if self.why else self.name


@dataclass
class OnAssigner:
    """Our attributes of an assigner of the host.

    Attributes:
        overlap_loss: Loss of which 1 minus is the overlap of its metric, None for the host's own overlap.
        overlap: That overlap.
        meter: Counts for the report, None without a report.
    """

    overlap_loss: Optional[Loss] = None
    overlap: Optional[Callable[[Tensor, Tensor], Tensor]] = None
    meter: Optional[Meter] = None


@dataclass
class OnCriterion:
    """Our attributes of a criterion of the host.

    Attributes:
        selection: Selected losses, None for a criterion that only uses another engine.
        running: Values it was installed with, by key: the requested ones and its own.
        decision: Which engine takes its steps.
        is_class_loss_pointwise: Whether its class loss may be evaluated on parts.
        kernels: Kernels that take its steps, None for tensor functions.
        anchors: Cached anchors of the last step, with their cache key.
    """

    selection: Optional[Selection] = None
    running: dict[str, Any] = field(default_factory=dict)
    decision: Decision = field(default_factory=lambda: Decision("reference"))
    is_class_loss_pointwise: bool = True
    kernels: Optional[Any] = None
    anchors: Optional[tuple[tuple, Any]] = None


def on_assigner(assigner: Any) -> OnAssigner:
    """Return our attributes of an assigner, created on first use."""
    attached = vars(assigner).get(ATTRIBUTE)  # in every step: nothing is made where it is there
    return vars(assigner).setdefault(ATTRIBUTE, OnAssigner()) if attached is None else attached


def on_criterion(criterion: Any) -> OnCriterion:
    """Return our attributes of a criterion, created on first use."""
    attached = vars(criterion).get(ATTRIBUTE)
    return vars(criterion).setdefault(ATTRIBUTE, OnCriterion()) if attached is None else attached


class Derived:
    """A host's object whose class we have derived, in place: it pickles by reference to the host's class.

    Made by `derive`; a class that is written out, and inherits this, pickles as others do.
    """

    @classmethod
    def bases(cls, stock: type) -> tuple[type, ...]:
        """Return the bases of a class of the host that is derived with this one."""
        return cls, stock

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Return how to make it again: derive the host's class, then set the state."""
        made, about = super().__reduce_ex__(max(2, protocol)), vars(type(self))
        return (_made_again, (about["mixin"], about["stock_class"]), *made[2:]) if "stock_class" in about else made


def derive(mixin: Any, thing: Any) -> None:
    """Give an object of the host its own class with a mixin, a kind of `Derived`, among the bases, if it lacks it."""
    if not isinstance(thing, mixin):
        stock: Any = type(thing)
        thing.__class__ = _derived(mixin, stock)


@functools.cache
def _derived(mixin: Any, stock: Any) -> Any:
    return type(f"{mixin.__name__}{stock.__name__}", mixin.bases(stock), {"stock_class": stock, "mixin": mixin})


def _made_again(mixin: type, stock: type) -> Any:
    derived = _derived(mixin, stock)
    return derived.__new__(derived)

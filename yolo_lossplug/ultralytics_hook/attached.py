# SPDX-License-Identifier: AGPL-3.0-or-later
"""`lossplug`, the one attribute that the plugin adds to objects of the host, and its contents."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple, Optional

from torch import Tensor

from yolo_lossplug.selection.loss import Loss
from yolo_lossplug.selection.select import Selection
from yolo_lossplug.ultralytics_hook.counts import Meter

ATTRIBUTE = "lossplug"


def size_class(number: int) -> int:
    """Return the coarse size of a number: the exponent of the largest power of 4 not above it.

    >>> size_class(16 * 7 * 8400)
    9
    """
    return (max(1, number).bit_length() - 1) // 2


class Fastest(NamedTuple):
    """The fastest proven engine for steps of a size.

    Attributes:
        dtype: Type of the scores, as ``float32``.
        anchors_class: Size class of the anchors of all images.
        size_class: Size class of the elements, objects of all images × anchors of one.
        engine: Its name.
    """

    dtype: str
    anchors_class: int
    size_class: int
    engine: str


class Measured(NamedTuple):
    """What was measured on a device.

    Attributes:
        date: When, the newest.
        engines: The fastest engines, sorted.
    """

    date: str
    engines: tuple[Fastest, ...]

    def engine(self, dtype: str, anchors: int, elements: int) -> str:
        """Return the fastest engine for a size; empty if that is not within a class of one that was measured.

        Args:
            dtype: Type of the scores.
            anchors: Anchors of all images.
            elements: Objects of all images × anchors of one.
        """
        near = {one.anchors_class for one in self.engines if one.dtype == dtype}
        group = _nearest(near, size_class(anchors))
        known = {one.size_class: one.engine for one in self.engines if one[:2] == (dtype, group)}
        if not known or not min(known) - 1 <= size_class(elements) <= max(known) + 1:
            return ""
        return known[min(known, key=lambda one: (abs(one - size_class(elements)), one))]

    def __str__(self) -> str:
        groups = {one[:2]: [other for other in self.engines if other[:2] == one[:2]] for one in self.engines}
        texts = {group: _by_size(engines) for group, engines in groups.items()}
        if len({*texts.values()}) == 1:
            return next(iter(texts.values()))
        return "; ".join(f"{dtype}, {count(4**size)} anchors: {text}" for (dtype, size), text in texts.items())


def _nearest(classes: Iterable[int], size: int) -> Optional[int]:
    """Return the size class nearest to one, None if none is next to it."""
    return min((one for one in classes if abs(one - size) <= 1), key=lambda one: (abs(one - size), one), default=None)


def _by_size(engines: Sequence[Fastest]) -> str:
    """Return engines in words, each with the size from which on it is taken."""
    changes = [now for before, now in zip(engines, engines[1:]) if now.engine != before.engine]
    return ", ".join(
        [engines[0].engine, *(f"{one.engine} from {count(4**one.size_class)} elements" for one in changes)]
    )


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

    def engine_at(self, dtype: str, anchors: int, elements: int) -> str:
        """Return the engine that a record names for a step, empty without one; see `Measured.engine`."""
        return "" if self.measured is None else self.measured.engine(dtype, anchors, elements)

    def __str__(self) -> str:
        unmeasured = "fast in crowds, else reference" if self.is_lazy else "fast"
        if self.measured is not None:
            others = "" if str(self.measured) == unmeasured else f", other sizes {unmeasured}"
            return f"{self.measured} (bench {self.measured.date}){others}"
        if self.name == "fast":
            return unmeasured
        return f"{self.name} ({self.why})" if self.why else self.name


@dataclass
class OnAssigner:
    """Our attributes of an assigner of the host.

    Attributes:
        overlap_loss: Loss of which 1 minus is the overlap of its metric, None for the host's own overlap.
        overlap: That overlap.
        meter: Counts for the report, None without a report.
        claims: Numbers of gts that select each anchor, in the calls of the host's form since they were last taken.
    """

    overlap_loss: Optional[Loss] = None
    overlap: Optional[Callable[[Tensor, Tensor], Tensor]] = None
    meter: Optional[Meter] = None
    claims: list[Tensor] = field(default_factory=list)


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
        terms: Losses on matched queries of RT-DETR.
    """

    selection: Optional[Selection] = None
    running: dict[str, Any] = field(default_factory=dict)
    decision: Decision = field(default_factory=lambda: Decision("reference"))
    is_class_loss_pointwise: bool = True
    kernels: Optional[Any] = None
    anchors: Optional[tuple[tuple, Any]] = None
    terms: Any = None


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
        made, (stock, *mixins) = super().__reduce_ex__(max(2, protocol)), layers(type(self))
        return (_made_again, (stock, *mixins), *made[2:]) if mixins else made


def derive(mixin: Any, thing: Any) -> None:
    """Give an object of the host its own class with a mixin, a kind of `Derived`, among the bases, if it lacks it."""
    if not isinstance(thing, mixin):
        stock: Any = type(thing)
        thing.__class__ = _derived(mixin, stock)


@functools.cache
def _derived(mixin: Any, stock: Any) -> Any:
    return type(f"{mixin.__name__}{stock.__name__}", mixin.bases(stock), {"stock_class": stock, "mixin": mixin})


def layers(cls: type) -> tuple[type, ...]:
    """Return the class of the host that a class is derived from, then the mixins, innermost first."""
    about = vars(cls)
    return (*layers(about["stock_class"]), about["mixin"]) if "stock_class" in about else (cls,)


def _made_again(stock: Any, *mixins: Any) -> Any:
    derived: Any = functools.reduce(lambda cls, mixin: _derived(mixin, cls), mixins, stock)
    return derived.__new__(derived)

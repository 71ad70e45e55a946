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


class Decision(NamedTuple):
    """Which engine takes the steps of a criterion.

    Attributes:
        name: ``reference``, ``fast`` or ``triton``.
        why: Why it is the host's own step although another was requested, else empty.
        is_lazy: Whether steps are left to the host where the host is faster.
    """

    name: str
    why: str = ""
    is_lazy: bool = False

    def __str__(self) -> str:
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

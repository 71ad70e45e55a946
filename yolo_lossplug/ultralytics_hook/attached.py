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
    """

    selection: Optional[Selection] = None
    running: dict[str, Any] = field(default_factory=dict)
    decision: Decision = field(default_factory=lambda: Decision("reference"))
    is_class_loss_pointwise: bool = True
    kernels: Optional[Any] = None
    anchors: Optional[tuple[tuple, Any]] = None


def on_assigner(assigner: Any) -> OnAssigner:
    """Return our attributes of an assigner, created on first use."""
    return vars(assigner).setdefault(ATTRIBUTE, OnAssigner())


def on_criterion(criterion: Any) -> OnCriterion:
    """Return our attributes of a criterion, created on first use."""
    return vars(criterion).setdefault(ATTRIBUTE, OnCriterion())


class Derived:
    """A host's object whose class we have derived, in place: it pickles by reference to the host's class.

    Made by `derive`; a class that is written out, and inherits this, pickles as others do.
    """

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Return how to make it again: derive the host's class, then set the state."""
        made = super().__reduce_ex__(max(2, protocol))
        stock = vars(type(self)).get("stock_class")
        return made if stock is None else (_made_again, (self.mixin, stock), *made[2:])  # type: ignore[attr-defined]


def derive(mixin: type, cls: type) -> type:
    """Return a class of the host with a mixin before it, or behind what it overrides of the mixin's base."""
    return _derived(mixin, cls)


@functools.cache
def _derived(mixin: type, cls: type) -> type:
    bases: tuple[type, ...] = getattr(mixin, "bases")(cls)  # noqa: B009  of every mixin that is derived with
    return type(f"{mixin.__name__}{cls.__name__}", bases, {"stock_class": cls, "mixin": mixin})


def _made_again(mixin: type, cls: type) -> Any:
    derived: Any = derive(mixin, cls)
    return derived.__new__(derived)

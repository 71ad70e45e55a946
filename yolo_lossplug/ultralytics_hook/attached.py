# SPDX-License-Identifier: AGPL-3.0-or-later
"""The one attribute that the plugin adds to objects of the host, `lossplug`, and what it holds."""

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
        why: Why it is the host's own step where another was asked for, empty if it is not.
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
    """What an assigner of the host holds of ours.

    Attributes:
        overlap_loss: What the overlap of its metric is 1 minus of, None for the host's own overlap.
        overlap: That overlap.
        meter: Counts what it assigns, None if nothing is reported.
    """

    overlap_loss: Optional[Loss] = None
    overlap: Optional[Callable[[Tensor, Tensor], Tensor]] = None
    meter: Optional[Meter] = None


@dataclass
class OnCriterion:
    """What a criterion of the host holds of ours.

    Attributes:
        selection: What is selected, None for a criterion that only takes the steps of an engine.
        running: What it is set to, by key: what was asked for, and what it brought along itself.
        decision: Which engine takes its steps.
        is_class_loss_pointwise: Whether its class loss may be evaluated on parts.
        kernels: Kernels that take its steps, None for tensor functions.
        anchors: Anchors of the last step, with what they are made of.
    """

    selection: Optional[Selection] = None
    running: dict[str, Any] = field(default_factory=dict)
    decision: Decision = field(default_factory=lambda: Decision("reference"))
    is_class_loss_pointwise: bool = True
    kernels: Optional[Any] = None
    anchors: Optional[tuple[tuple, Any]] = None


def on_assigner(assigner: Any) -> OnAssigner:
    """Return what an assigner holds of ours, which is nothing at first."""
    return vars(assigner).setdefault(ATTRIBUTE, OnAssigner())


def on_criterion(criterion: Any) -> OnCriterion:
    """Return what a criterion holds of ours, which is nothing at first."""
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

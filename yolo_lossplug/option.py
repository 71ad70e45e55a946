# SPDX-License-Identifier: AGPL-3.0-or-later
"""An option of a loss: what its number may be, and the training key that it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, Optional

INNER_POSITIONS = (0.1, 0.5, 0.9)
NEAR = 2**-10
"""Positions of samples in a range of length 1, and the distance of the outer ones from open ends."""


class LossPlugError(ValueError):
    """A mistake of the user: the message names the key, its value and the remedy."""


@dataclass(frozen=True)
class Option:
    """What a number may be. The default stands in the signature that the option annotates.

    Args:
        help: What the option means, in a few words.
        at_least: Smallest value allowed.
        above: Bound that the value must exceed.
        at_most: Largest value allowed.
        below: Bound that the value must stay under.
        formerly: Key of older YOLOs for the same, which an error points from to this one.
    """

    help: str
    at_least: Optional[float] = None
    above: Optional[float] = None
    at_most: Optional[float] = None
    below: Optional[float] = None
    formerly: str = ""

    @property
    def range(self) -> str:
        """The allowed interval in mathematical notation, e.g. ``(0.5, 1)`` or ``[0, ∞)``."""
        low = "(-∞" if self.at_least is None else f"[{self.at_least:g}"
        high = "∞)" if self.at_most is None else f"{self.at_most:g}]"
        low = low if self.above is None else f"({self.above:g}"
        high = high if self.below is None else f"{self.below:g})"
        return f"{low}, {high}"

    def contains(self, value: float) -> bool:
        """Return whether a finite number lies within the bounds."""
        is_above = value >= (-math.inf if self.at_least is None else self.at_least)
        is_below = value <= (math.inf if self.at_most is None else self.at_most)
        is_inside = (self.above is None or value > self.above) and (self.below is None or value < self.below)
        return math.isfinite(value) and is_above and is_below and is_inside

    def samples(self) -> tuple[float, ...]:
        """Return five values over the range, rising: its ends, or next to those not allowed, and three between.

        Towards an end at infinity they grow by larger and larger steps, up to about 1000.

        >>> Option("", above=0, at_most=1).samples()
        (0.0009765625, 0.1, 0.5, 0.9, 1.0)
        """
        low = self.at_least if self.above is None else self.above
        high = self.at_most if self.below is None else self.below
        first = NEAR if self.at_least is None else 0.0
        last = 1 - NEAR if self.at_most is None else 1.0
        return tuple(_between(low, high, position) for position in (first, *INNER_POSITIONS, last))


def _between(low: Optional[float], high: Optional[float], position: float) -> float:
    """Return the value at a position in [0, 1] of a range; an end of None is infinite."""
    if low is not None and high is not None:
        return low + position * (high - low)
    if low is not None:
        return low + position / (1 - position)
    if high is not None:
        return high - (1 - position) / position
    return (2 * position - 1) / (position * (1 - position))


@dataclass(frozen=True)
class Parameter:
    """An option as read from a signature: its key, type and default.

    Attributes:
        key: Name of the option, and of the training key.
        type: ``float`` or ``int``.
        nullable: Whether ``None`` is a value that the option can take.
        default: Value where the key is not set.
        option: Meaning and bounds.
    """

    key: str
    type: type
    nullable: bool
    default: Any
    option: Option

    @property
    def unset(self) -> Optional[str]:
        """What the key holds when the user has not given it: ``None``, or ``"auto"`` where ``None`` is a value."""
        return "auto" if self.nullable else None

    def samples(self) -> tuple[Any, ...]:
        """Return values over the range, as `Option.samples` does, of the option's own type, and None if that is one."""
        values = self.option.samples()
        if self.type is int:
            values = tuple(filter(self.option.contains, map(round, values)))
        return (*dict.fromkeys(map(self.type, values)), *([None] if self.nullable else []))

    def check(self, value: Any) -> Any:
        """Return the value as the option's own type.

        Raises:
            LossPlugError: If it is of another type or out of bounds.
        """
        if value is None and self.nullable:
            return None
        if not self._is_number(value):
            kind, none = "an integer" if self.type is int else "a number", " or None" * self.nullable
            must = f"must be {kind} in {self.option.range}{none}: {self.option.help}."
            raise LossPlugError(f"{self.key}={value!r} {must}")
        if not self.option.contains(value):
            must = f"it must be in {self.option.range}: {self.option.help}."
            raise LossPlugError(f"{self.key}={value:g} is out of range; {must}")
        return self.type(value)

    def _is_number(self, value: Any) -> bool:
        """Return whether a value is a number, and of an integer without a fraction; an infinite one is out of range."""
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        return is_number and (self.type is float or not math.isfinite(value) or value == int(value))

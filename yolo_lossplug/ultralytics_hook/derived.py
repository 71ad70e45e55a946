# SPDX-License-Identifier: AGPL-3.0-or-later
"""Objects of the host that get a subclass of their class, in place."""

from __future__ import annotations

import functools
from typing import Any


class Derived:
    """A host's object whose class was swapped for a subclass: it pickles by reference to the host's class.

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


def has_stock_methods(thing: Any, stock: Any, names: tuple[str, ...]) -> bool:
    """Return whether methods are those of a class of the host: no subclass overrides one, and no object has its own."""
    cls = layers(type(thing))[0]
    return issubclass(cls, stock) and all(
        getattr(cls, name, None) is getattr(stock, name, None) and name not in vars(thing) for name in names
    )


def _made_again(stock: Any, *mixins: Any) -> Any:
    derived: Any = functools.reduce(lambda cls, mixin: _derived(mixin, cls), mixins, stock)
    return derived.__new__(derived)

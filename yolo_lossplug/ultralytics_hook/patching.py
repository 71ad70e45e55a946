# SPDX-License-Identifier: AGPL-3.0-or-later
"""The mechanism of changes to the host: make one, check what it relies on, undo it and nothing else.

What a change is has the form ``change(owner, attribute) -> undo``.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from types import ModuleType
from typing import Any, Callable

from yolo_lossplug import _autoload

Undo = Callable[[], None]
Change = Callable[[Any, str], Undo]

HOST, HOOK = "ultralytics", "yolo_lossplug.ultralytics_hook"
MARK = "__lossplug__"
"""Attribute of the functions that we put in."""


class SeamMoved(Exception):
    """This release of Ultralytics lacks something that the plugin relies on."""


@contextmanager
def held(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    """Give a context variable a value while the context is open."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@dataclass(frozen=True)
class Patch:
    """One change to the host.

    Attributes:
        module: Module that holds the attribute.
        attribute: Dotted name inside the module; ``*.method`` means on every class there that defines the method.
        change: Makes the change and returns its undo.
        reason: Why here and nowhere else.
        parameters: Leading parameters that we rely on, checked before anything is changed.
        is_optional: Whether releases without the attribute are fine without the change.
    """

    module: str
    attribute: str
    change: Change
    reason: str
    parameters: tuple[str, ...] = ()
    is_optional: bool = False


def around(path: str, *first: Any) -> Change:
    """Return a change that lets a function of the hook stand around one of the host.

    Args:
        path: ``module.function`` inside the hook, imported when the host's function is called and not before. It is
            called as ``function(stock, *first, *args, **kwargs)``.
        *first: Arguments that go before those of the call.
    """

    def change(owner: Any, attribute: str) -> Undo:
        stock, is_live = as_function(owner, vars(owner)[attribute]), True

        @functools.wraps(stock)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not is_live:  # somebody holds on to it, or has put another wrapper over it
                return stock(*args, **kwargs)
            try:
                function = function_of(path)
            except Exception as error:  # what others have made of the host: a run without our keys must go on
                leave_alone(error)
                return stock(*args, **kwargs)
            return function(stock, *first, *args, **kwargs)

        def undo() -> None:
            nonlocal is_live
            is_live = False
            put_back()

        setattr(wrapper, MARK, True)
        put_back = put(owner, attribute, wrapper)
        return undo

    return change


def as_function(owner: Any, held: Any) -> Callable[..., Any]:
    """Return what a class or a module holds as a function, whose first argument is the object that Python binds."""
    if not inspect.isclass(owner) or inspect.isfunction(held):
        return held
    get = getattr(type(held), "__get__", None)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (get(held, self, type(self)) if get else held)(*args, **kwargs)

    return functools.update_wrapper(call, held)


def leave_alone(error: Exception) -> None:
    """Undo everything, since the plugin cannot be used with this host, and say why."""
    _autoload.give_up(error)
    sys.modules["ultralytics.utils"].LOGGER.warning(
        f"LossPlug: not active, this run is one of plain Ultralytics: {_autoload.problem}."
    )


def made_by(path: str) -> Change:
    """Return a change that puts what a function of the hook makes of a value in its place."""
    return lambda owner, attribute: put(owner, attribute, function_of(path)(vars(owner)[attribute]))


def in_place(path: str) -> Change:
    """Return a change by a function of the hook that alters a value which others hold too, and returns its undo."""
    return lambda owner, attribute: function_of(path)(vars(owner)[attribute])


def function_of(path: str) -> Callable[..., Any]:
    """Return a function of the hook by its name ``module.function``."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"{HOOK}.{module}"), name)


def put(owner: Any, attribute: str, value: Any) -> Undo:
    """Set an attribute, and return what sets it back, unless somebody else has set it meanwhile."""
    stock = vars(owner)[attribute]
    setattr(owner, attribute, value)

    def undo() -> None:
        if vars(owner).get(attribute) is value:
            setattr(owner, attribute, stock)

    return undo


_undo: list[Undo] = []


def apply_change(change: Change, owner: Any, attribute: str) -> None:
    """Make a change that `undo_changes` undoes."""
    _undo.append(change(owner, attribute))


def undo_changes() -> None:
    """Undo everything, last change first."""
    while _undo:
        _undo.pop()()


def is_ours(function: Any) -> bool:
    """Return whether we have put in a function."""
    return hasattr(function, MARK)


def parameters_of(function: Any) -> list[inspect.Parameter]:
    """Return the parameters of a function; none of one without a signature."""
    try:
        return [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):
        return []


def check_parameters(name: str, function: Any, expected: Sequence[str]) -> None:
    """Check the leading parameters of a function.

    What others have put in its place may name them as it likes, may take ``*args`` and hand them on, or may have no
    signature; it is refused where it cannot be called with them.

    Raises:
        SeamMoved: If it has others, or is not there.
    """
    if not callable(function) and not hasattr(function, "__get__"):
        raise SeamMoved(f"{MOVED}: {name} is gone")
    parameters = parameters_of(function)
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][: len(expected)]
    is_open = not parameters or inspect.Parameter.VAR_POSITIONAL in map(attrgetter("kind"), parameters)
    takes_all = is_open or len(named) == len(expected)
    is_of_host = str(getattr(function, "__module__", "")).partition(".")[0] == HOST
    if not takes_all or (is_of_host and named != [*expected[: len(named)]]):
        raise SeamMoved(f"{MOVED}: {name} takes ({', '.join(named)}, …) where ({', '.join(expected)}, …) was expected")


MOVED = "this release of Ultralytics has changed what the plugin relies on"


def targets(module: ModuleType, patch: Patch) -> Iterator[tuple[Any, str]]:
    """Yield owner and name of every attribute that a patch changes.

    Raises:
        SeamMoved: If there is none, and the patch is not optional.
    """
    if not (owners := owners_of(module, patch.attribute)) and not patch.is_optional:
        raise SeamMoved(f"{MOVED}: {patch.module}.{patch.attribute} is gone")
    for owner in owners:
        yield owner, patch.attribute.rpartition(".")[2]


def owners_of(module: ModuleType, name: str) -> list[Any]:
    """Return the module or the classes that define an attribute, which is dotted as that of a `Patch`."""
    path, _, attribute = name.rpartition(".")
    candidates = [c for c in vars(module).values() if inspect.isclass(c)] if path == "*" else [look_up(module, path)]
    return [owner for owner in candidates if owner is not None and attribute in vars(owner)]


def look_up(owner: Any, path: str) -> Any:
    """Return the attribute of a dotted path, the owner itself for an empty one, None if there is none."""
    for name in path.split(".") if path else ():
        owner = original(owner, name)
    return owner


def original(owner: Any, name: str) -> Any:
    """Return an attribute, None if there is none; a class of a module as the module defines it.

    Somebody may have put a subclass there, or a function that makes one.
    """
    if (held := getattr(owner, name, None)) is None or not inspect.ismodule(owner):
        return held
    classes = chain(held.__mro__ if inspect.isclass(held) else (), _subclasses(object))
    return next((cls for cls in classes if (cls.__module__, cls.__name__) == (owner.__name__, name)), held)


def _subclasses(cls: type) -> Iterator[type]:
    subclasses: list[type] = type.__subclasses__(cls)
    for subclass in subclasses:
        yield subclass
        yield from _subclasses(subclass)


def exists(module: str, attribute: str) -> bool:
    """Return whether this release has an attribute, which is dotted as that of a `Patch`."""
    try:
        return bool(owners_of(importlib.import_module(module), attribute))
    except ImportError:
        return False

# SPDX-License-Identifier: AGPL-3.0-or-later
"""The kinds of losses, and what the signature of a function of each kind says: its options and its context."""

from __future__ import annotations

import inspect
import typing
from dataclasses import replace
from typing import Any, Callable, Optional

from yolo_lossplug.option import LossPlugError, Option, Parameter

BOX, OVERLAP, MODIFIER, CLASS = "box loss", "overlap loss", "modifier", "class loss"
ROTATED, ROTATED_MODIFIER, SOFTMAX = "rotated box loss", "modifier of rotated box losses", "softmax loss"
SIGNATURES = {
    BOX: (("pred", "target"), frozenset({"stride", "imgsz", "state"})),
    OVERLAP: (("pair",), frozenset({"stride", "imgsz", "state"})),
    MODIFIER: (("terms",), frozenset({"state"})),
    CLASS: (("logits", "targets"), frozenset({"state"})),
    ROTATED: (("pred", "target"), frozenset({"stride", "imgsz"})),
    ROTATED_MODIFIER: (("loss", "pred", "target"), frozenset[str]()),
    SOFTMAX: (("logits", "targets"), frozenset[str]()),
}
"""By kind, positional parameters and keyword-only ones that the caller supplies; these are neither options nor keys."""


def read_signature(kind: str, function: Callable[..., Any]) -> tuple[dict[str, Parameter], frozenset[str]]:
    """Return the options of a function by key, and what it wants of its caller.

    Raises:
        LossPlugError: If the signature is not one of this kind.
    """
    refusal = f"{place_of(function)} cannot be a {kind}"
    try:
        signature = inspect.signature(function)
        hints = typing.get_type_hints(function, include_extras=True)
    except (TypeError, ValueError, NameError) as error:
        raise LossPlugError(f"{refusal}: its signature cannot be read ({error}).") from error
    keyword = {p.name: p.default for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
    positional, context = SIGNATURES[kind]
    _refuse_other_positional(refusal, positional, [p for p in signature.parameters.values() if p.name not in keyword])
    options = {name: default for name, default in keyword.items() if name not in context}
    parameters = {name: _read_option(refusal, name, hints.get(name), default) for name, default in options.items()}
    return parameters, context & keyword.keys()


def _refuse_other_positional(refusal: str, expected: tuple[str, ...], named: list[inspect.Parameter]) -> None:
    names = tuple(p.name for p in named)
    if names != expected or any(p.kind is p.VAR_POSITIONAL for p in named):
        must = f"its positional parameters must be exactly ({', '.join(expected)}), not ({', '.join(names)})"
        raise LossPlugError(f"{refusal}: {must}; put '*' before the options.")


def _read_option(refusal: str, name: str, hint: Any, default: Any) -> Parameter:
    annotated, option = _parts(hint)
    if option is None:
        raise LossPlugError(f"{refusal}: annotate its option '{name}' as Annotated[float, Option('meaning')].")
    types = [t for t in typing.get_args(annotated) or (annotated,) if t is not type(None)]
    if types[0] not in (float, int):
        raise LossPlugError(f"{refusal}: its option '{name}' must be a float or an int, not {types[0]}.")
    if default is inspect.Parameter.empty:
        raise LossPlugError(f"{refusal}: its option '{name}' needs a default.")
    parameter = Parameter(name, types[0], type(None) in typing.get_args(annotated), default, option)
    return replace(parameter, default=parameter.check(default))


def _parts(hint: Any) -> tuple[Any, Optional[Option]]:
    """Return the type and the option of an annotation; no option without one."""
    if not hasattr(hint, "__metadata__"):  # before 3.11 a default of None wraps it in Optional
        hint = next((a for a in typing.get_args(hint) if hasattr(a, "__metadata__")), hint)
    annotated, *metadata = typing.get_args(hint) or (None,)
    return annotated, next((a for a in metadata if isinstance(a, Option)), None)


def place_of(function: Callable[..., Any]) -> str:
    """Return where a function is defined, as messages name it."""
    name = getattr(function, "__qualname__", str(function))
    code = getattr(function, "__code__", None)
    if code is not None and not function.__module__.startswith("yolo_lossplug."):
        return f"{name} in {code.co_filename}, line {code.co_firstlineno},"
    return f"{getattr(function, '__module__', '?')}.{name}"

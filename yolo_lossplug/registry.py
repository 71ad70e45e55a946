# SPDX-License-Identifier: AGPL-3.0-or-later
"""How losses are declared: one decorator beside the maths, options in the signature, checked when the module loads.

A loss is a plain function. Its keyword-only parameters are its options, and an option is a training key of the same
name: the word in the signature, in YAML, on the command line and in every message is one word.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Callable, Optional, TypeVar, Union

from yolo_lossplug.forms import Background, BoxKernel, ClassKernel
from yolo_lossplug.option import Option
from yolo_lossplug.paper import Paper

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)

BOX, OVERLAP, MODIFIER, CLASS = "box loss", "overlap loss", "modifier", "class loss"
ROTATED, ROTATED_MODIFIER, SOFTMAX = "rotated box loss", "modifier of rotated box losses", "softmax loss"
POSITIONAL = {
    BOX: ("pred", "target"),
    OVERLAP: ("pair",),
    MODIFIER: ("terms",),
    CLASS: ("logits", "targets"),
    ROTATED: ("pred", "target"),
    ROTATED_MODIFIER: ("loss", "pred", "target"),
    SOFTMAX: ("logits", "targets"),
}
CONTEXT = {
    BOX: frozenset({"stride", "imgsz", "state"}),
    OVERLAP: frozenset({"stride", "imgsz", "state"}),
    MODIFIER: frozenset({"state"}),
    CLASS: frozenset({"state"}),
    ROTATED: frozenset({"stride", "imgsz"}),
    ROTATED_MODIFIER: frozenset(),
    SOFTMAX: frozenset(),
}
"""Keyword-only parameters that the caller supplies, by kind. They are neither options nor keys."""


class LossPlugError(ValueError):
    """A mistake of the user: the message names the key, its value and the remedy."""


UNSET_NULLABLE = "auto"


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
        return UNSET_NULLABLE if self.nullable else None

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
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number or (self.type is int and math.isfinite(value) and value != int(value)):
            kind = "an integer" if self.type is int else "a number"
            raise LossPlugError(
                f"{self.key}={value!r} must be {kind} in {self.option.range}"
                f"{' or None' if self.nullable else ''}: {self.option.help}."
            )
        if not self.option.contains(value):
            raise LossPlugError(
                f"{self.key}={value:g} is out of range; it must be in {self.option.range}: {self.option.help}."
            )
        return self.type(value)


@dataclass(frozen=True)
class Spec:
    """A registered loss or modifier.

    Attributes:
        name: Name in kebab-case, as in ``loss=name``.
        kind: ``BOX``, ``OVERLAP``, ``MODIFIER`` or ``CLASS``.
        function: The function that was decorated.
        parameters: Its options by key.
        context: Which of `CONTEXT` it wants.
        formula: One line.
        latex: The same for the documentation, one equation each; without it the documentation shows `formula`.
        paper: Where it was published, None if nowhere.
        note: What a user should know before choosing it.
        bases: For a modifier, the overlap losses it applies to; empty means all.
        stage: For a modifier, when it acts: a lower stage acts first, on what is nearer to the base.
        increasing: Options whose values must increase in this order.
        background: For a class loss, takes its options and returns its closed form at target 0; None if it has none.
        kernel: Takes its options and returns it as the Triton kernels evaluate it; None if they do not have it.
        aliases: Other spellings of the name, in kebab-case.
    """

    name: str
    kind: str
    function: Function
    parameters: Mapping[str, Parameter]
    context: frozenset[str]
    formula: str = ""
    latex: tuple[str, ...] = ()
    paper: Optional[Paper] = None
    note: str = ""
    bases: frozenset[str] = frozenset()
    stage: int = 0
    increasing: tuple[str, ...] = ()
    background: Optional[Callable[..., Background]] = None
    kernel: Optional[Callable[..., Union[BoxKernel, ClassKernel]]] = None
    aliases: tuple[str, ...] = ()

    @property
    def year(self) -> int:
        """Year of the paper, 0 if there is none."""
        return self.paper.year if self.paper else 0

    @property
    def is_user_defined(self) -> bool:
        """Whether the function is none of this package's."""
        return self.function.__module__.partition(".")[0] != "yolo_lossplug"

    def bind(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return this function's keyword arguments: those of `options` that are its own, checked, else the defaults.

        Raises:
            LossPlugError: If a value is of another type, out of bounds, or not in order with another.
        """
        values = {
            key: parameter.check(options[key]) if key in options else parameter.default
            for key, parameter in self.parameters.items()
        }
        for lower, upper in zip(self.increasing, self.increasing[1:]):
            if values[lower] >= values[upper]:
                raise LossPlugError(
                    f"{lower}={values[lower]:g} must be below {upper}={values[upper]:g}: "
                    f"{self.parameters[lower].option.help}; {self.parameters[upper].option.help}."
                )
        return values


@dataclass
class Registry:
    """All declared losses by kind and name; iterates over the specs in name order.

    Attributes:
        specs: The losses.
        observers: Called with every spec that is added.
        reserved: Keys of Ultralytics, which no option may have.
        refused: Why losses were removed when keys were reserved, by name.
    """

    specs: dict[tuple[str, str], Spec] = field(default_factory=dict)
    observers: list[Callable[[Spec], None]] = field(default_factory=list)
    reserved: frozenset[str] = frozenset()
    refused: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Spec]:
        return iter(sorted(self.specs.values(), key=lambda spec: (spec.kind, spec.name)))

    def get(self, kind: str, name: str) -> Optional[Spec]:
        """Return the spec of that kind and name, or with that alias, or None; a name goes before an alias."""
        return self.specs.get((kind, name)) or self._by_alias(kind, name)

    def _by_alias(self, kind: str, alias: str) -> Optional[Spec]:
        return next((spec for spec in self.specs.values() if spec.kind == kind and alias in spec.aliases), None)

    def names(self, *kinds: str) -> tuple[str, ...]:
        """Return the sorted names of these kinds."""
        return tuple(sorted(spec.name for spec in self.specs.values() if spec.kind in kinds))

    def aliases(self, *kinds: str) -> tuple[str, ...]:
        """Return the sorted aliases of these kinds."""
        return tuple(sorted(alias for spec in self.specs.values() if spec.kind in kinds for alias in spec.aliases))

    def parameters(self) -> dict[str, Parameter]:
        """Return every option of every loss by key."""
        return {key: parameter for spec in self for key, parameter in spec.parameters.items()}

    def owners(self, key: str) -> list[Spec]:
        """Return the losses that have the option."""
        return [spec for spec in self if key in spec.parameters]

    def reserve(self, reserved: Iterable[str]) -> None:
        """Refuse losses with an option named like a key of Ultralytics: those that are registered, and later ones."""
        self.reserved = frozenset(reserved)
        for index, spec in list(self.specs.items()):
            for key in self.reserved & spec.parameters.keys():
                del self.specs[index]
                self.refused[spec.name] = _reserved(key, spec)
                break

    def add(self, spec: Spec) -> None:
        """Add a spec and tell the observers.

        Raises:
            LossPlugError: If the name is taken, or a key is already another option.
        """
        rivals = (BOX, OVERLAP) if spec.kind in (BOX, OVERLAP) else (spec.kind,)
        for kind in rivals:
            known = self.specs.get((kind, spec.name))
            if known and not _same_definition(known.function, spec.function):
                raise LossPlugError(
                    f"{spec.kind} '{spec.name}' is already registered by {_where(known.function)}; "
                    f"choose another name for {_where(spec.function)}."
                )
        for key, parameter in spec.parameters.items():
            if key in self.reserved:
                raise LossPlugError(_reserved(key, spec))
            for owner in self.owners(key):
                if owner.parameters[key] != parameter and not _same_definition(owner.function, spec.function):
                    raise LossPlugError(
                        f"option '{key}' of {_where(spec.function)} differs from the one of '{owner.name}' in type, "
                        f"range or default; a key has one meaning, so choose another name for it."
                    )
        self.specs[spec.kind, spec.name] = spec
        for observer in list(self.observers):
            observer(spec)


REGISTRY = Registry()


def box_loss(name: str, **about: Any) -> Callable[[F], F]:
    """Register ``function(pred, target, *, options) -> (N,)`` as a box loss; the function is returned unchanged.

    `pred` and `target` are (N, 4) boxes as x1, y1, x2, y2, float32 or float64, in grid cells of their own pyramid
    level during training. The result is one loss per pair, unweighted and unreduced. Keyword-only parameters
    annotated ``Annotated[float, Option(...)]`` become training keys; ``stride`` (N, 1) and ``imgsz`` (height, width) in
    pixels are supplied to a function that has these keyword-only parameters, as None in a call that gives none.

    Args:
        name: Name in kebab-case.
        **about: Attributes of `Spec` for the table of losses: ``formula`` in one line, ``latex``, one equation or a
            tuple of them, ``note`` for users, and ``paper``, a `Paper`, or its address and ``year``. Besides,
            ``increasing`` names options whose values must increase in that order, ``background`` and ``kernel`` say
            what engines evaluate instead of calling the function, and ``aliases`` is a tuple of other spellings of
            the name, in kebab-case.

    Raises:
        LossPlugError: If the signature is another one, or the name is taken.
    """
    return _declare(BOX, name, about)


def overlap_loss(name: str, **about: Any) -> Callable[[F], F]:
    """Register ``function(pair, *, options) -> tuple of (N,) penalties`` as the loss 1 − IoU + sum of penalties.

    Losses declared this way take modifiers. Arguments and errors are those of `box_loss`.
    """
    return _declare(OVERLAP, name, about)


def modifier(name: str, *, stage: int, bases: Iterable[str] = (), **about: Any) -> Callable[[F], F]:
    """Register ``function(terms, *, options) -> terms`` as the prefix ``name-`` of overlap losses.

    Arguments and errors are those of `box_loss`; besides, `bases` are the losses it applies to, empty for all, and
    modifiers of a lower `stage` act first, so that the order in which a user names them does not matter.
    """
    return _declare(MODIFIER, name, {**about, "stage": stage, "bases": frozenset(bases)})


def rotated_box_loss(name: str, **about: Any) -> Callable[[F], F]:
    """Register ``function(pred, target, *, options) -> (N,)`` as a box loss of the obb task.

    Boxes are (N, 5): centre x, centre y, width, height, angle in radians. Arguments and errors are those of `box_loss`.
    """
    return _declare(ROTATED, name, about)


def rotated_modifier(name: str, *, stage: int, bases: Iterable[str] = (), **about: Any) -> Callable[[F], F]:
    """Register ``function(loss, pred, target, *, options) -> (N,)`` as the prefix ``name-`` of rotated box losses.

    Arguments and errors are those of `modifier`.
    """
    return _declare(ROTATED_MODIFIER, name, {**about, "stage": stage, "bases": frozenset(bases)})


def class_loss(name: str, **about: Any) -> Callable[[F], F]:
    """Register ``function(logits, targets, *, options) -> same shape`` as a class loss, elementwise and unreduced.

    `targets` are soft, in [0, 1]. Arguments and errors are those of `box_loss`.
    """
    return _declare(CLASS, name, about)


def softmax_loss(name: str, **about: Any) -> Callable[[F], F]:
    """Register ``function(logits, targets, *, options) -> same shape`` as a loss of the classify task.

    Both are (N, classes), and the loss of an image is the sum over its classes. Arguments and errors are those of
    `box_loss`.
    """
    return _declare(SOFTMAX, name, about)


def spec_of(kind: str, name: str, function: Function, **about: Any) -> Spec:
    """Read a spec from a function's signature without registering it.

    Raises:
        LossPlugError: If the signature is not one of this kind.
    """
    parameters, context = _read_signature(kind, function)
    summary = (inspect.getdoc(function) or "").partition("\n")[0]
    about["formula"] = about.get("formula") or summary
    latex = about.get("latex", ())
    about["latex"] = (latex,) if isinstance(latex, str) else latex
    about["paper"] = _paper(about.get("paper"), about.pop("year", 0))
    return Spec(name, kind, function, parameters, context, **about)


def _paper(declared: Union[Paper, str, None], year: int) -> Optional[Paper]:
    return Paper(declared, year=year) if isinstance(declared, str) and declared else declared or None


def _declare(kind: str, name: str, about: Mapping[str, Any]) -> Callable[[F], F]:
    for word in (name, *about.get("aliases", ())):
        if word != word.strip().lower().replace("_", "-").replace(" ", "-") or not word or {*":+"} & {*word}:
            raise LossPlugError(f"'{word}' is not a valid name for a {kind}: use lower-case words joined by '-'.")

    def register(function: F) -> F:
        REGISTRY.add(spec_of(kind, name, function, **about))
        return function

    return register


def _read_signature(kind: str, function: Function) -> tuple[dict[str, Parameter], frozenset[str]]:
    where, expected = _where(function), POSITIONAL[kind]
    try:
        signature = inspect.signature(function)
        hints = typing.get_type_hints(function, include_extras=True)
    except (TypeError, ValueError, NameError) as error:
        raise LossPlugError(f"{where} cannot be a {kind}: its signature cannot be read ({error}).") from error

    named = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    if [p.name for p in named] != list(expected) or any(p.kind is p.VAR_POSITIONAL for p in named):
        raise LossPlugError(
            f"{where} cannot be a {kind}: its positional parameters must be exactly ({', '.join(expected)}), "
            f"not ({', '.join(p.name for p in named)}); put '*' before the options."
        )
    parameters: dict[str, Parameter] = {}
    context = set()
    for p in signature.parameters.values():
        if p.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        if p.name in CONTEXT[kind]:
            context.add(p.name)
            continue
        parameters[p.name] = _read_option(where, kind, p, hints.get(p.name))
    return parameters, frozenset(context)


def _read_option(where: str, kind: str, p: inspect.Parameter, hint: Any) -> Parameter:
    if hint is not None and not hasattr(hint, "__metadata__"):  # before 3.11 a default of None wraps it in Optional
        hint = next((a for a in typing.get_args(hint) if hasattr(a, "__metadata__")), hint)
    arguments = typing.get_args(hint) if hint is not None else ()
    option = next((a for a in arguments[1:] if isinstance(a, Option)), None)
    if option is None:
        raise LossPlugError(
            f"{where} cannot be a {kind}: annotate its option '{p.name}' as Annotated[float, Option('meaning')]."
        )
    base, nullable = arguments[0], False
    if type(None) in typing.get_args(base):
        nullable, base = True, next(a for a in typing.get_args(base) if a is not type(None))
    if base not in (float, int):
        raise LossPlugError(f"{where} cannot be a {kind}: its option '{p.name}' must be a float or an int, not {base}.")
    if p.default is p.empty:
        raise LossPlugError(f"{where} cannot be a {kind}: its option '{p.name}' needs a default.")
    parameter = Parameter(p.name, base, nullable, p.default, option)
    return Parameter(p.name, base, nullable, parameter.check(p.default), option)


def _same_definition(one: Function, other: Function) -> bool:
    """Whether the second is the first, read again (a notebook cell run twice, a reloaded module)."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def _reserved(key: str, spec: Spec) -> str:
    if spec.is_user_defined:
        where = _where(spec.function)
        return f"option '{key}' of {where} is a key of Ultralytics already; choose another name for the option."
    return f"'{spec.name}' is not available: this Ultralytics has a key of its own named {key}. Choose another loss."


def _where(function: Function) -> str:
    name = getattr(function, "__qualname__", str(function))
    code = getattr(function, "__code__", None)
    if code is not None and not function.__module__.startswith("yolo_lossplug."):
        return f"{name} in {code.co_filename}, line {code.co_firstlineno},"
    return f"{getattr(function, '__module__', '?')}.{name}"


def import_siblings(package: str, path: Iterable[str]) -> None:
    """Import every module of a package, so that a new file of losses registers itself."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")

# SPDX-License-Identifier: AGPL-3.0-or-later
"""How losses are declared: one decorator beside the maths, options in the signature, checked when the module loads.

A loss is a plain function. Its keyword-only parameters are its options, and an option is a training key of the same
name: the word in the signature, in YAML, on the command line and in every message is one word.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Callable, Optional, TypeVar, Union

from yolo_lossplug import signature
from yolo_lossplug.forms import Background, BoxKernel, ClassKernel
from yolo_lossplug.option import LossPlugError, Parameter
from yolo_lossplug.option import Option as Option  # loss files import it beside their decorator
from yolo_lossplug.paper import Paper
from yolo_lossplug.signature import BOX, CLASS, MODIFIER, OVERLAP, ROTATED, ROTATED_MODIFIER, SOFTMAX

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)


@dataclass(frozen=True)
class Spec:
    """A registered loss or modifier.

    Attributes:
        name: Name in kebab-case, as in ``loss=name``.
        kind: ``BOX``, ``OVERLAP``, ``MODIFIER`` or ``CLASS``.
        function: The function that was decorated.
        parameters: Its options by key.
        context: What it wants of its caller: `stride`, `imgsz`, `state`.
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
    kernel: Optional[Callable[..., Union[BoxKernel, ClassKernel, None]]] = None
    aliases: tuple[str, ...] = ()

    @property
    def year(self) -> int:
        """Year of the paper, 0 if there is none."""
        return self.paper.year if self.paper else 0

    @property
    def is_user_defined(self) -> bool:
        """Whether the function is defined outside this package."""
        return self.function.__module__.partition(".")[0] != "yolo_lossplug"

    def fits(self, base: str) -> bool:
        """Return whether a modifier applies to a loss."""
        return not self.bases or base in self.bases

    def bind(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return this function's keyword arguments: those of `options` that are its own, checked, else the defaults.

        Raises:
            LossPlugError: If a value is of another type, out of bounds, or not in order with another.
        """
        values = {key: p.check(options[key]) if key in options else p.default for key, p in self.parameters.items()}
        for lower, upper in zip(self.increasing, self.increasing[1:]):
            if values[lower] >= values[upper]:
                why = "; ".join(self.parameters[key].option.help for key in (lower, upper))
                raise LossPlugError(f"{lower}={values[lower]:g} must be below {upper}={values[upper]:g}: {why}.")
        return values


@dataclass
class Registry:
    """All declared losses by kind and name; iterates over the specs in name order.

    Attributes:
        specs: The losses.
        reserved: Keys of Ultralytics, which no option may have.
        refused: Why losses were removed when keys were reserved, by name.
    """

    specs: dict[tuple[str, str], Spec] = field(default_factory=dict)
    reserved: frozenset[str] = frozenset()
    refused: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Spec]:
        return iter(sorted(self.specs.values(), key=lambda spec: (spec.kind, spec.name)))

    def get(self, kind: str, name: str) -> Optional[Spec]:
        """Return the spec of that kind and name, or with that alias, or None; a name goes before an alias."""
        aliased = (spec for spec in self.specs.values() if spec.kind == kind and name in spec.aliases)
        return self.specs.get((kind, name)) or next(aliased, None)

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
            if taken := self.reserved & spec.parameters.keys():
                del self.specs[index]
                self.refused[spec.name] = _reserved(min(taken), spec)

    def add(self, spec: Spec) -> None:
        """Add a spec.

        Raises:
            LossPlugError: If the name is taken, or a key is already another option.
        """
        for kind in (BOX, OVERLAP) if spec.kind in (BOX, OVERLAP) else (spec.kind,):
            known = self.specs.get((kind, spec.name))
            if known and not _same_definition(known.function, spec.function):
                old, new = (signature.place_of(each.function) for each in (known, spec))
                taken = f"{spec.kind} '{spec.name}' is already registered by {old}"
                raise LossPlugError(f"{taken}; choose another name for {new}.")
        for key in spec.parameters:
            if key in self.reserved:
                raise LossPlugError(_reserved(key, spec))
            self._refuse_second_meaning(key, spec)
        self.specs[spec.kind, spec.name] = spec

    def _refuse_second_meaning(self, key: str, spec: Spec) -> None:
        for owner in self.owners(key):
            if owner.parameters[key] != spec.parameters[key] and not _same_definition(owner.function, spec.function):
                what = f"option '{key}' of {signature.place_of(spec.function)} differs from the one of '{owner.name}'"
                why = "in type, range or default; a key has one meaning, so choose another name for it."
                raise LossPlugError(f"{what} {why}")


REGISTRY = Registry()


def box_loss(name: str, **about: Any) -> Callable[[F], F]:
    """Register ``function(pred, target, *, options) -> (N,)`` as a box loss; the function is returned unchanged.

    `pred` and `target` are (N, 4) boxes as x1, y1, x2, y2, float32 or float64, in grid cells of their own pyramid
    level during training. The result is one loss per pair, unweighted and unreduced. Keyword-only parameters
    annotated ``Annotated[float, Option(...)]`` become training keys. A function that has these keyword-only parameters
    gets ``stride``, the pixels per box unit (N, 1), ``imgsz``, height and width of the network input in pixels (2,),
    and ``state``, the `Scope` of what the run remembers; each is None in a call that gives none.

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

    `pair` is a `Pair` of boxes. Losses declared this way take modifiers. Arguments and errors are those of `box_loss`.
    """
    return _declare(OVERLAP, name, about)


def modifier(name: str, *, stage: int, bases: Iterable[str] = (), **about: Any) -> Callable[[F], F]:
    """Register ``function(terms, *, options) -> terms`` as the prefix ``name-`` of overlap losses.

    `terms` are the `Terms` of a loss. Arguments and errors are those of `box_loss`; besides, `bases` are the losses
    that it applies to, empty for all, and modifiers of a lower `stage` act first, in whatever order a user names them.
    """
    return _declare(MODIFIER, name, {**about, "stage": stage, "bases": frozenset(bases)})


def rotated_box_loss(name: str, **about: Any) -> Callable[[F], F]:
    """Register ``function(pred, target, *, options) -> (N,)`` as a box loss of the obb task.

    Boxes are (N, 5): centre x and y, width, height, angle in radians. Arguments and errors are those of `box_loss`.
    """
    return _declare(ROTATED, name, about)


def rotated_modifier(name: str, *, stage: int, bases: Iterable[str] = (), **about: Any) -> Callable[[F], F]:
    """Register ``function(loss, pred, target, *, options) -> (N,)`` as the prefix ``name-`` of rotated box losses.

    Arguments and errors are those of `modifier`.
    """
    return _declare(ROTATED_MODIFIER, name, {**about, "stage": stage, "bases": frozenset(bases)})


def class_loss(name: str, **about: Any) -> Callable[[F], F]:
    """Register ``function(logits, targets, *, options) -> same shape`` as a class loss, elementwise and unreduced.

    `logits` are scores before the sigmoid, of any shape, and `targets` soft, in [0, 1]. Arguments and errors are those
    of `box_loss`.
    """
    return _declare(CLASS, name, about)


def softmax_loss(name: str, **about: Any) -> Callable[[F], F]:
    """Register ``function(logits, targets, *, options) -> same shape`` as a loss of the classify task.

    Both are (N, classes): scores before the softmax, and targets that sum to 1. The loss of an image is the sum over
    its classes. Arguments and errors are those of `box_loss`.
    """
    return _declare(SOFTMAX, name, about)


def spec_of(kind: str, name: str, function: Function, **about: Any) -> Spec:
    """Read a spec from a function's signature without registering it.

    Raises:
        LossPlugError: If the signature is not one of this kind.
    """
    parameters, context = signature.read_signature(kind, function)
    about["formula"] = about.get("formula") or (inspect.getdoc(function) or "").partition("\n")[0]
    latex = about.get("latex", ())
    about["latex"] = (latex,) if isinstance(latex, str) else latex
    paper, year = about.get("paper"), about.pop("year", 0)
    about["paper"] = Paper(paper, year=year) if isinstance(paper, str) and paper else paper or None
    return Spec(name, kind, function, parameters, context, **about)


def _declare(kind: str, name: str, about: Mapping[str, Any]) -> Callable[[F], F]:
    for word in (name, *about.get("aliases", ())):
        if word != word.strip().lower().replace("_", "-").replace(" ", "-") or not word or {*":+"} & {*word}:
            raise LossPlugError(f"'{word}' is not a valid name for a {kind}: use lower-case words joined by '-'.")

    def register(function: F) -> F:
        REGISTRY.add(spec_of(kind, name, function, **about))
        return function

    return register


def _same_definition(first: Function, second: Function) -> bool:
    """Return whether the second is the first, read again (a notebook cell run twice, a reloaded module)."""
    return (first.__module__, first.__qualname__) == (second.__module__, second.__qualname__)


def _reserved(key: str, spec: Spec) -> str:
    if spec.is_user_defined:
        option = f"option '{key}' of {signature.place_of(spec.function)}"
        return f"{option} is a key of Ultralytics already; choose another name for the option."
    return f"'{spec.name}' is not available: this Ultralytics has a key of its own named {key}. Choose another loss."


def import_siblings(package: str, path: Iterable[str]) -> None:
    """Import every module of a package, so that a new file of losses registers itself."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")

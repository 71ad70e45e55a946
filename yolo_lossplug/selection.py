# SPDX-License-Identifier: AGPL-3.0-or-later
"""From training keys to checked and bound loss functions. Pure: no training framework, nothing is changed."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import warnings
import zlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Optional, Union

import torch
from torch import Tensor

import yolo_lossplug.box_losses
import yolo_lossplug.class_losses  # noqa: F401  both imports fill the registry
from yolo_lossplug import boxes
from yolo_lossplug.box_losses import algebra, rotated
from yolo_lossplug.box_losses.algebra import Part
from yolo_lossplug.registry import (
    BOX,
    CLASS,
    MODIFIER,
    OVERLAP,
    REGISTRY,
    ROTATED,
    ROTATED_MODIFIER,
    SOFTMAX,
    Background,
    LossPlugError,
    Option,
    Parameter,
    Spec,
    spec_of,
)
from yolo_lossplug.state import Scope, State

STOCK_BOX, STOCK_CLASS, STOCK_ROTATED, STOCK_SOFTMAX = "ciou", "bce", "probiou", "ce"
ENGINES = ("auto", "fast", "triton", "reference")
NMS_OVERLAPS = ("iou", "diou")
ASSIGNER_OVERLAPS = ("ciou", "diou", "eiou", "giou", "iou", "siou")

NUMBERS = {
    p.key: p
    for p in (
        Parameter("tal_topk", int, False, 10, Option("anchors assigned to an object at most", at_least=1)),
        Parameter("tal_alpha", float, False, 0.5, Option("exponent of the score in the assigner's metric", at_least=0)),
        Parameter(
            "tal_beta", float, False, 6.0, Option("exponent of the overlap in the assigner's metric", at_least=0)
        ),
        Parameter("cls_smoothing", float, False, 0.0, Option("smoothing of assigned targets", at_least=0, below=1)),
    )
}
NAMES = {"loss": STOCK_BOX, "cls_loss": STOCK_CLASS, "tal_iou": "ciou", "loss_engine": "auto", "nms_iou": "iou"}
"""Keys that take a name, with their defaults."""

WEIGHTS = "cls_weights"
REPORT = "lossplug_report"
"""The key that asks for a report of the assignment; False is as good as not given."""
COMMON = frozenset((*NUMBERS, *NAMES, WEIGHTS, REPORT))
"""Keys that belong to no loss in particular."""

ABSENT = (
    "this program was built without the modules of losses; build it with "
    "`pyinstaller --collect-submodules yolo_lossplug`, or what your builder has for whole packages."
)
GROUP = "yolo_lossplug.losses"
"""Entry points of packages with losses: each names a module, or a function in it."""

PREFIXES = {BOX: MODIFIER, ROTATED: ROTATED_MODIFIER}
"""Kinds of losses that take prefixes, and the kind of these."""

TASKS = {"detect": BOX, "segment": BOX, "pose": BOX, "obb": ROTATED}
"""Tasks with boxes, and their kind."""

UNSPED = {"obb": "its boxes are rotated", "classify": "it has no boxes"}
"""Tasks that the fast engine does not run, and why."""

CLASSIFY = "classify"
"""The task without boxes that takes keys of the class loss."""
CLASSIFY_KEYS = frozenset({"cls_loss", "cls_smoothing", "cls_weights", "loss_engine"})


@dataclass(frozen=True)
class Loss:
    """A loss with its options bound: callable, comparable, picklable.

    Attributes:
        name: Name as the user would write it, in canonical form.
        function: ``(pred, target)`` or ``(logits, targets)``, and the context.
        options: Values of its options by key.
        context: The context that the function wants.
        state: What the loss remembers, its own until it joins a run; None for a loss that remembers nothing.
        kind: ``BOX`` or ``CLASS``.
        background: A class loss at target 0 in closed form, None if it has none.
    """

    name: str
    kind: str
    function: Callable[..., Tensor] = field(compare=False, repr=False)
    options: dict[str, Any]
    context: frozenset[str] = frozenset()
    state: Optional[Scope] = field(default=None, compare=False, repr=False)
    background: Optional[Background] = field(default=None, compare=False, repr=False)

    def __call__(
        self, pred: Tensor, target: Tensor, *, stride: Optional[Tensor] = None, imgsz: Optional[Tensor] = None
    ) -> Tensor:
        """Return the loss, computed in float32 (float64 stays) whatever autocast says.

        Args:
            pred: Boxes (N, 4) x1 y1 x2 y2, or logits of any shape.
            target: Boxes (N, 4) in the same unit, or soft targets in [0, 1] of the same shape.
            stride: Pixels per box unit (N, 1); None where boxes are in pixels. For box losses that want it.
            imgsz: Height and width of the network input in pixels (2,). For box losses that want it.

        Returns:
            One loss per pair (N,), or per element.

        Raises:
            LossPlugError: If a function of the user's own returns something else, or a result without gradient, or
                changes its inputs.
        """
        known = {"stride": stride, "imgsz": imgsz, "state": self.state}
        context = {key: known[key] for key in self.context}
        is_elementwise = self.kind in (CLASS, SOFTMAX)
        raise_dtype = boxes.as_float if is_elementwise else boxes.promote
        given = raise_dtype(pred), raise_dtype(target)  # copies for some, which the promise holds for too
        before = _versions(*given)
        with _no_autocast(pred.device.type):
            loss = self.function(*given, **context)
        if _versions(*given) != before:
            raise LossPlugError(
                f"loss '{self.name}' changes its inputs in place; the other losses need them as they were."
            )
        if not isinstance(loss, Tensor):
            raise LossPlugError(f"loss '{self.name}' must return a tensor, not {loss!r}.")
        expected = pred.shape if is_elementwise else pred.shape[:1]
        if loss.shape != expected:  # (N, 1) would be multiplied with weights (N,) into N x N losses, without an error
            raise LossPlugError(
                f"loss '{self.name}' must return shape {tuple(expected)} for inputs {tuple(pred.shape)}, one loss per "
                f"{'element' if is_elementwise else 'pair'}, but returned {tuple(loss.shape)}."
            )
        if torch.is_grad_enabled() and pred.requires_grad and not loss.requires_grad:
            raise LossPlugError(f"loss '{self.name}' has no gradient: it must not detach what it computes.")
        return loss

    def within(self, scope: Scope) -> Loss:
        """Return this loss with the memory of a run, if it remembers anything."""
        return self if self.state is None else replace(self, state=scope)

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}({options})" if options else self.name


@dataclass(frozen=True)
class Selection:
    """What one run trains with.

    Attributes:
        box: The box loss.
        cls: The class loss.
        cls_smoothing: Label smoothing of assigned targets.
        cls_weights: Weights of the classes, by index or by name; None for none.
        tal_topk: Anchors per object.
        tal_alpha: Exponent of the score.
        tal_beta: Exponent of the overlap.
        tal_iou: Overlap inside the assigner.
        loss_engine: Requested engine.
        nms_iou: Overlap in the suppression of validation.
        report: Whether a report of the assignment is written.
        given: Keys that the user has given; without any, the run is stock.
        task: Task of the run.
    """

    box: Loss
    cls: Loss
    cls_smoothing: float
    cls_weights: Optional[Union[dict[str, float], list[float]]]
    tal_topk: int
    tal_alpha: float
    tal_beta: float
    tal_iou: str
    loss_engine: str
    nms_iou: str
    report: bool
    given: frozenset[str] = field(compare=False)
    task: str

    @property
    def is_active(self) -> bool:
        """Whether the user asked for anything."""
        return bool(self.given)

    @property
    def has_stock_box_loss(self) -> bool:
        """Whether the box term is the host's own."""
        return self.box.name in (STOCK_BOX, STOCK_ROTATED)

    @property
    def has_stock_class_loss(self) -> bool:
        """Whether the class term is the host's own."""
        return self.cls.name in (STOCK_CLASS, STOCK_SOFTMAX) and not self.cls_smoothing and self.cls_weights is None

    @property
    def has_stock_numbers(self) -> bool:
        """Whether everything that is selected is the host's own."""
        stock = {**{key: parameter.default for key, parameter in NUMBERS.items()}, "tal_iou": NAMES["tal_iou"]}
        is_stock = all(getattr(self, key) == value for key, value in stock.items())
        return self.has_stock_box_loss and self.has_stock_class_loss and is_stock

    def resolved(self) -> dict[str, Any]:
        """Return every key that this run depends on with its value, defaults included; empty for a stock run."""
        if not self.is_active:
            return {}
        values = {
            "loss": self.box.name,
            **self.box.options,
            "cls_loss": self.cls.name,
            **self.cls.options,
            **{key: getattr(self, key) for key in ("cls_smoothing", "tal_topk", "tal_alpha", "tal_beta", "tal_iou")},
            "loss_engine": self.loss_engine,
            **({} if self.nms_iou == NAMES["nms_iou"] else {"nms_iou": self.nms_iou}),
            **({} if self.cls_weights is None else {"cls_weights": self.cls_weights}),
            **({REPORT: True} if self.report else {}),
        }
        if self.task == CLASSIFY:
            return {key: values[key] for key in values if key in CLASSIFY_KEYS or key in self.cls.options}
        if self.box.kind == ROTATED:  # the overlap of its assigner is the host's
            del values["tal_iou"]
        return values


def keys() -> dict[str, Optional[str]]:
    """Return every training key with the value that means 'not given'."""
    options = {**NUMBERS, **REGISTRY.parameters()}
    return {**dict.fromkeys((*NAMES, WEIGHTS, REPORT)), **{key: parameter.unset for key, parameter in options.items()}}


def given_keys(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of our keys that arguments give a value, with the values."""
    found = {key: args[key] for key, unset in keys().items() if key in args and args[key] != unset}
    if found.get(REPORT) is False:
        del found[REPORT]
    return found


def select(args: Mapping[str, Any]) -> Selection:
    """Return what a run with these arguments trains with. Keys of others are ignored.

    Args:
        args: Arguments of a run, merged from every source.

    Raises:
        LossPlugError: If a value is unknown, of another type, out of range, or without effect.
    """
    task = args.get("task") or "detect"
    given = given_keys(args)
    _refuse_unfit_task(task, given)
    bound = _bound if given else _bound_if_there
    box, cls = (bound(kind, _named(args, key, task), args) for key, kind in _kinds(task).items())
    given = given_keys(args)  # with the options of losses of the user's own, which are loaded now

    values = {key: p.check(given[key]) if key in given else p.default for key, p in NUMBERS.items()}
    tal_iou = choose("tal_iou", args, ASSIGNER_OVERLAPS)
    engine = choose("loss_engine", args, ENGINES)
    if engine in ("fast", "triton") and task in UNSPED:
        raise LossPlugError(f"loss_engine={engine} cannot be used with task={task}: {UNSPED[task]}. Remove it.")
    for key, value in given.items():
        if key not in COMMON and key not in box.options and key not in cls.options:
            raise LossPlugError(no_effect(key, value, box.name, cls.name))
    selection = Selection(
        box,
        cls,
        **values,
        cls_weights=_weights(given.get(WEIGHTS)),
        tal_iou=tal_iou,
        loss_engine=engine,
        nms_iou=choose("nms_iou", args, NMS_OVERLAPS),
        report=_flag(REPORT, given.get(REPORT, False)),
        given=frozenset(given),
        task=task,
    )
    if "loss_engine" not in given and selection.has_stock_numbers:  # to the last digit, and the fast engine rounds
        return replace(selection, loss_engine="reference")
    return selection


def refuse_unknown_names(given: Mapping[str, Any]) -> None:
    """Raise an error for a loss that is unknown, whatever else is given.

    Raises:
        LossPlugError: If there is one.
    """
    task = given.get("task")
    for key, kind in _kinds(str(task)).items():
        name = _named(given, key, str(task))
        # Without a task the loss may be one of any: the trainer knows, and is asked next.
        is_of_another = task is None and any(_is_known(other, name) for other in (ROTATED, SOFTMAX))
        if given.get(key) is not None and ":" not in name and not is_of_another:
            resolve(kind, name)


def refuse_unknown(given: Mapping[str, Any], *others: str) -> None:
    """Raise an error for a key that is none of ours, nor one of some others.

    Raises:
        LossPlugError: If there is one.
    """
    known = (*others, *keys())
    for key, value in given.items():
        if key not in known:
            raise LossPlugError(f"{key}={value} is unknown.{suggest(key, known)} Known: {', '.join(known)}.")


def create_box_loss(name: str, **options: Any) -> Loss:
    """Return a box loss by name, e.g. ``create_box_loss("focal-eiou", focal_gamma=0.5)``.

    Args:
        name: Name as in ``loss=name``.
        **options: Options of that loss.

    Returns:
        A callable ``(pred, target, *, stride=None, imgsz=None) -> (N,)``; see `Loss`. Boxes are (N, 4), or (N, 5) for
        a loss of rotated boxes.

    Raises:
        LossPlugError: If the name or an option is unknown, or a value is out of range.

    >>> import torch
    >>> create_box_loss("focal-eiou")(torch.tensor([[1.0, 1, 3, 3]]), torch.tensor([[0.0, 0, 4, 4]]))  # √¼ · 1.25
    tensor([0.6250])
    """
    return _created(kind_of(name, BOX, ROTATED), name, options)


def create_class_loss(name: str, **options: Any) -> Loss:
    """Return a class loss by name, e.g. ``create_class_loss("focal", cls_focal_gamma=1.5)``.

    Args:
        name: Name as in ``cls_loss=name``.
        **options: Options of that loss.

    Returns:
        A callable ``(logits, targets) -> same shape``; see `Loss`.

    Raises:
        LossPlugError: If the name or an option is unknown, or a value is out of range.
    """
    return _created(kind_of(name, CLASS, SOFTMAX), name, options)


def list_box_losses() -> tuple[str, ...]:
    """Return the names that ``loss=`` takes, sorted: every loss, and every loss with one modifier."""
    return _with_prefixes(BOX)


def list_class_losses() -> tuple[str, ...]:
    """Return the names that ``cls_loss=`` takes, sorted."""
    return REGISTRY.names(CLASS)


def assigner_overlap(loss: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    """Return ``(boxes, boxes) -> (N,)``: 1 − loss, clamped at 0, for the metric of the assigner."""
    return partial(_overlap, loss)


def kind_of(name: str, *kinds: str) -> str:
    """Return the first of some kinds of losses that knows a name, the first of all if none does."""
    return next((kind for kind in kinds if _is_known(kind, name)), kinds[0])


def resolve(kind: str, name: str) -> tuple[Spec, list[Spec]]:
    """Return the spec of a name, and its modifiers, outermost first.

    Args:
        kind: ``BOX`` or ``CLASS``.
        name: Name as the user writes it.

    Raises:
        LossPlugError: If there is no such loss, or the parts do not fit.
    """
    parts = _split(kind, name)
    if parts is None:
        raise LossPlugError(_unknown(kind, name))
    spec, modifiers = parts
    for position, m in enumerate(modifiers):
        if m in modifiers[:position]:
            raise LossPlugError(f"loss={name} has '{m.name}-' twice; name it once.")
        if not _fits(m, spec.name) or spec.kind == BOX:
            bases = sorted(m.bases) or REGISTRY.names(OVERLAP if kind == BOX else kind)
            raise LossPlugError(
                f"loss={name} has no meaning: '{m.name}-' acts on {m.formula}, and '{spec.name}' is "
                f"{'not of the form 1 − u + penalties' if spec.kind == BOX else 'not defined for it'}. "
                f"It goes before {', '.join(bases)}."
            )
    return spec, [m for m in _modifiers(kind) if m in modifiers]


def _split(kind: str, name: str) -> Optional[tuple[Spec, list[Spec]]]:
    """Return the spec of a name and its modifiers as they are named, whether or not they fit; None if it is unknown."""
    modifiers: list[Spec] = []
    rest = _normalise(name)
    while True:
        spec = next((s for s in (REGISTRY.get(k, rest) for k in _wanted(kind)) if s), None)
        if spec:
            return spec, modifiers
        prefix = next((m for m in _modifiers(kind) if rest.startswith(f"{m.name}-")), None)
        if prefix is None:
            return None
        modifiers.append(prefix)
        rest = rest[len(prefix.name) + 1 :]


def _unknown(kind: str, name: str) -> str:
    """Return why a name is none of that kind, and what to take instead."""
    for refused, reason in REGISTRY.refused.items():
        if f"-{_normalise(name)}".endswith(f"-{refused}"):
            return reason
    key, known = "cls_loss" if kind in (CLASS, SOFTMAX) else "loss", _with_prefixes(kind)
    if kind == ROTATED and _is_known(BOX, name):
        return (
            f"loss={name} cannot be used with task=obb: its boxes are rotated, and this loss is one of "
            f"horizontal boxes. obb takes {', '.join(known)}."
        )
    if kind == BOX and _is_known(ROTATED, name):
        return f"loss={name} is one of rotated boxes: it needs task=obb and a model of that task."
    if kind in (CLASS, SOFTMAX) and _is_known(CLASS if kind == SOFTMAX else SOFTMAX, name):
        other = "of the task classify" if kind == CLASS else "of tasks with boxes, and not of classify"
        return f"cls_loss={name} is one {other}. Take one of {', '.join(known)}."
    if not known:
        return f"{key}={name} is unknown: {ABSENT}"
    own = f"{name.strip()}:function" if name.strip().endswith(".py") else "file.py:function"
    return (
        f"{key}={name} is unknown.{suggest(_normalise(name), known)} "
        f"Known: {', '.join(REGISTRY.names(*_wanted(kind)))}{_prefixes(kind)}; or one of your own as {key}={own}."
    )


def load_own(reference: str, kind: str) -> Spec:
    """Return the spec of a user's own function, named as ``package.module:name`` or ``path/to/file.py:name``.

    Raises:
        LossPlugError: If the file, module or function is not there, or its signature is unfit.
    """
    key = "cls_loss" if kind in (CLASS, SOFTMAX) else "loss"
    place, _, name = reference.rpartition(":")
    module = load_module(place, f"{key}={reference}")
    function = getattr(module, name, None)
    if not callable(function):
        functions = [n for n, f in vars(module).items() if getattr(f, "__module__", None) == module.__name__]
        raise LossPlugError(f"{key}={reference}: {place} has no function '{name}'.{suggest(name, functions)}")
    for spec in REGISTRY:
        if spec.function is function and spec.kind == kind:
            return spec
    spec = spec_of(kind, reference, function)
    REGISTRY.add(spec)
    return spec


def load_module(place: str, asked: str) -> ModuleType:
    """Return the module of that dotted name or ``.py`` file; a file that is loaded already is not loaded again.

    Args:
        place: ``package.module`` or a path that ends in ``.py``.
        asked: The key and value that asked for it, for the message.

    Raises:
        LossPlugError: If it is not there or fails when loaded.
    """
    if not place.endswith(".py"):
        if not {"", str(Path.cwd())} & set(sys.path):
            sys.path.append(str(Path.cwd()))  # so that a project's own package is found from its folder, by `yolo` too
        try:
            return importlib.import_module(place)
        except ImportError as error:
            raise LossPlugError(f"{asked}: module '{place}' cannot be imported ({error}).") from error
    path = Path(place).resolve()
    if not path.is_file():
        raise LossPlugError(f"{asked}: there is no file {path}.")
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) and Path(str(module.__file__)).resolve() == path:
            return module
    name = f"yolo_lossplug_own_{path.stem}_{zlib.crc32(str(path).encode()):08x}"  # two folders may hold one name
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LossPlugError(f"{asked}: {path} cannot be loaded as Python.")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise LossPlugError(f"{asked}: {path} fails when loaded ({type(error).__name__}: {error}).") from error
    return module


def _versions(*tensors: Tensor) -> list[int]:
    """Return how often each tensor was changed in place; tensors of inference mode do not know."""
    return [-1 if tensor.is_inference() else tensor._version for tensor in tensors]


def _is_known(kind: str, name: str) -> bool:
    return _split(kind, name) is not None


def _no_autocast(device_type: str) -> AbstractContextManager[Any]:
    try:
        return torch.autocast(device_type, enabled=False)
    except RuntimeError:  # a kind of device that has none
        return nullcontext()


def load_third_party() -> None:
    """Let installed packages register their losses: those with an entry point of the group ``yolo_lossplug.losses``."""
    found = importlib.metadata.entry_points()
    chosen = found.select(group=GROUP) if hasattr(found, "select") else found.get(GROUP, ())
    for entry in chosen:
        try:
            entry.load()
        except Exception as error:  # somebody else's package must not break a training that does not use it
            warnings.warn(f"yolo-lossplug: the losses of '{entry.value}' are not available: {error}", stacklevel=2)


def _overlap(loss: Loss, one: Tensor, other: Tensor) -> Tensor:
    return (1 - loss(one, other)).clamp_(0)


def _created(kind: str, name: str, options: Mapping[str, Any]) -> Loss:
    loss = _bound(kind, name, options)
    for key, value in options.items():
        if key not in loss.options:
            takes = f"it takes {', '.join(loss.options)}" if loss.options else "it takes none"
            raise LossPlugError(f"{key}={value} is no option of '{loss.name}'; {takes}.")
    return loss


def _kinds(task: str) -> dict[str, str]:
    """Return the kinds of losses that a task has, by the key that names them."""
    return {"loss": TASKS.get(task, BOX), "cls_loss": SOFTMAX if task == CLASSIFY else CLASS}


def _named(args: Mapping[str, Any], key: str, task: str = "detect") -> str:
    value, default = args.get(key), NAMES[key]
    if key in _kinds(task):
        default = {ROTATED: STOCK_ROTATED, SOFTMAX: STOCK_SOFTMAX}.get(_kinds(task)[key], default)
    if value is None:
        return default
    if not isinstance(value, str):
        raise LossPlugError(f"{key}={value!r} must be a name, e.g. {key}={default}.")
    return value


def choose(key: str, args: Mapping[str, Any], choices: tuple[str, ...]) -> str:
    """Return the value of a key that takes one of a few names, its default if it is not given.

    Args:
        key: The key.
        args: What is given.
        choices: The names.

    Raises:
        LossPlugError: If the value is none of them.
    """
    name = _normalise(_named(args, key))
    if name not in choices:
        raise LossPlugError(f"{key}={name} is unknown.{suggest(name, choices)} Known: {', '.join(choices)}.")
    return name


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise LossPlugError(f"{key}={value} must be True or False.")
    return value


def _weights(value: Any) -> Optional[Union[dict[str, float], list[float]]]:
    if value is None:
        return None
    numbers = list(value.values()) if isinstance(value, Mapping) else value
    kind = "a list of one number for each class, or a mapping from names of classes to numbers"
    if not isinstance(numbers, (list, tuple)) or not numbers:
        raise LossPlugError(f"{WEIGHTS}={value!r} must be {kind}, e.g. {WEIGHTS}=[1,2.5,1].")
    parameter = Parameter(WEIGHTS, float, False, 1.0, Option("weight of a class", at_least=0))
    checked = [parameter.check(number) for number in numbers]
    return dict(zip(map(str, value), checked)) if isinstance(value, Mapping) else checked


def class_weights(selection: Selection, count: int, names: Mapping[int, str]) -> Optional[list[float]]:
    """Return the weight of each class of a model, None if none are selected.

    Args:
        selection: What to train with.
        count: Number of classes.
        names: Their names by index.

    Raises:
        LossPlugError: If there are more or fewer weights than classes, or a name is that of no class.
    """
    weights = selection.cls_weights
    if weights is None:
        return None
    if isinstance(weights, dict):
        known = [names.get(i, "") for i in range(count)]
        for name in weights:
            if name not in known:
                raise LossPlugError(
                    f"{WEIGHTS}: the data has no class '{name}'.{suggest(name, known)} Known: {', '.join(known)}."
                )
        return [weights.get(name, 1.0) for name in known]
    if len(weights) != count:
        raise LossPlugError(f"{WEIGHTS}={weights} has {len(weights)} values for {count} classes; give one for each.")
    return weights


def _normalise(name: str) -> str:
    return "-".join(name.strip().lower().replace("_", " ").replace("-", " ").split())


def _bound(kind: str, name: str, options: Mapping[str, Any]) -> Loss:
    """Resolve a name into its parts and bind their options."""
    modifiers: list[Spec] = []
    if ":" in name:
        spec = load_own(name.strip(), kind)
        place, _, function_name = name.strip().rpartition(":")
        # The whole path, so that a run is resumed, and its workers start, from any folder.
        canonical = f"{Path(place).resolve()}:{function_name}" if place.endswith(".py") else name.strip()
    else:
        spec, modifiers = resolve(kind, name)
        canonical = "-".join([*(m.name for m in modifiers), spec.name])
    used = [*modifiers, spec]
    given = given_keys(options)
    values = {key: value for part in used for key, value in part.bind(given).items()}

    if spec.kind == OVERLAP:
        # Outermost is named first and acts last.
        base, *acting = (Part(partial(s.function, **s.bind(given)), s.context) for s in reversed(used))
        function: Callable[..., Tensor] = partial(algebra.evaluate, base=base, modifiers=tuple(acting))
    elif modifiers:
        first, *others = (partial(s.function, **s.bind(given)) for s in reversed(used))
        function = partial(rotated.evaluate, base=first, modifiers=tuple(others))
    else:
        function = partial(spec.function, **values)
    context = frozenset().union(*(s.context for s in used))
    state = State().scoped("own") if "state" in context else None
    background = spec.background(**values) if spec.background else None
    return Loss(canonical, kind, function, values, context, state, background)


def _bound_if_there(kind: str, name: str, options: Mapping[str, Any]) -> Loss:
    """Return a loss of a stock run, which the host computes: it must not fail where a program lacks our modules."""
    return _bound(kind, name, options) if _is_known(kind, name) else Loss(name, kind, _absent, {})


def _absent(*args: Any, **context: Any) -> Tensor:
    raise LossPlugError(ABSENT)


def _modifiers(kind: str) -> list[Spec]:
    """Return all modifiers of a kind of loss, outermost first: those of the highest stage."""
    return sorted((s for s in REGISTRY if s.kind == PREFIXES.get(kind)), key=lambda s: (-s.stage, s.name))


def _with_prefixes(kind: str) -> tuple[str, ...]:
    """Return the names of a kind of loss, sorted: every loss, and every loss with one modifier."""
    bases = REGISTRY.names(OVERLAP if kind == BOX else kind)
    singles = (f"{m.name}-{base}" for m in _modifiers(kind) for base in bases if _fits(m, base))
    return tuple(sorted({*REGISTRY.names(*_wanted(kind)), *singles}))


def _wanted(kind: str) -> tuple[str, ...]:
    """Return the kinds of specs that a key of this kind names."""
    return (BOX, OVERLAP) if kind == BOX else (kind,)


def _fits(m: Spec, base: str) -> bool:
    return not m.bases or base in m.bases


def _prefixes(kind: str) -> str:
    modifiers = _modifiers(kind)
    return "; with prefixes " + ", ".join(f"{m.name}-" for m in modifiers) if modifiers else ""


def suggest(word: str, known: Iterable[str]) -> str:
    """Return a sentence with the nearest of some words, empty if none is near."""
    matches = get_close_matches(word, list(known), n=1)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def no_effect(key: str, value: Any, box: str, cls: str) -> str:
    """Return that an option belongs to none of the chosen losses, and where it belongs."""
    owners = REGISTRY.owners(key)
    is_class = any(owner.kind in (CLASS, SOFTMAX) for owner in owners)
    chosen = f"cls_loss={cls}" if is_class else f"loss={box}"
    places = [
        f"{o.name}-*" if o.kind in PREFIXES.values() else f"{'cls_loss' if is_class else 'loss'}={o.name}"
        for o in owners
    ]
    return f"{key}={value} has no effect with {chosen}; it belongs to {', '.join(dict.fromkeys(places))}."


def _refuse_unfit_task(task: str, given: Mapping[str, Any]) -> None:
    if not given:
        return
    if task == CLASSIFY:
        names = REGISTRY.names(SOFTMAX)
        takes = CLASSIFY_KEYS | {key for name in names for key in REGISTRY.specs[SOFTMAX, name].parameters}
        for key, value in given.items():
            if key not in takes:
                raise LossPlugError(
                    f"{key}={value} has no effect with task={task}, which has no boxes; remove it. It takes cls_loss "
                    f"({', '.join(names)}), their options, cls_smoothing and cls_weights."
                )
        return
    if task not in TASKS:
        key, value = next(iter(given.items()))
        raise LossPlugError(
            f"{key}={value} has no effect with task={task}, whose loss is another one; remove it. "
            f"Tasks that take it: {', '.join(TASKS)}."
        )
    for key in ("tal_iou", "nms_iou"):
        if TASKS[task] != ROTATED or key not in given:
            continue
        raise LossPlugError(
            f"{key}={given[key]} cannot be used with task={task}: its boxes are rotated, and this overlap is "
            f"one of horizontal boxes. Remove it; {task} takes loss, cls_loss, tal_topk, tal_alpha and tal_beta."
        )


load_third_party()

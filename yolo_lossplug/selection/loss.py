# SPDX-License-Identifier: AGPL-3.0-or-later
"""A loss with its options bound, callable and comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Callable, Optional, Union

import torch
from torch import Tensor

from yolo_lossplug import boxes
from yolo_lossplug.box_losses import algebra, mixture, rotated
from yolo_lossplug.box_losses.algebra import Part
from yolo_lossplug.forms import Background, BoxKernel, ClassKernel
from yolo_lossplug.registry import BOX, CLASS, OVERLAP, ROTATED, SOFTMAX, LossPlugError, Spec
from yolo_lossplug.selection.keys import MIX, given_keys
from yolo_lossplug.selection.names import is_known, is_user_defined, kind_of, names_with_prefixes
from yolo_lossplug.selection.own import load_own
from yolo_lossplug.selection.resolve import ABSENT, canonical, mixed, resolve_name
from yolo_lossplug.selection.third_party import registry
from yolo_lossplug.state import Scope, State


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
        kernel: The loss as the Triton kernels evaluate it, None if they do not have it.
    """

    name: str
    kind: str
    function: Callable[..., Tensor] = field(compare=False, repr=False)
    options: dict[str, Any]
    context: frozenset[str] = frozenset()
    state: Optional[Scope] = field(default=None, compare=False, repr=False)
    background: Optional[Background] = field(default=None, compare=False, repr=False)
    kernel: Optional[Union[BoxKernel, ClassKernel]] = field(default=None, compare=False, repr=False)

    def __call__(
        self,
        pred: Tensor,
        target: Tensor,
        *,
        stride: Union[Tensor, float, None] = None,
        imgsz: Union[Tensor, int, Sequence[int], None] = None,
    ) -> Tensor:
        """Return the loss, computed in float32 (float64 stays) whatever autocast says.

        Args:
            pred: Boxes (N, 4) x1 y1 x2 y2, or logits of any shape.
            target: Boxes (N, 4) in the same unit, or soft targets in [0, 1] of the same shape.
            stride: Pixels per box unit, a number or one for each pair (N, 1); None where boxes are in pixels. For box
                losses that want it.
            imgsz: Height and width of the network input in pixels, or its side. For box losses that want it.

        Returns:
            One loss per pair (N,), or per element.

        Raises:
            LossPlugError: If a user-defined function returns something else, or a result without gradient, or changes
                its inputs; if stride or imgsz are something else.
        """
        is_elementwise = self.kind in (CLASS, SOFTMAX)
        raise_dtype = boxes.as_float if is_elementwise else boxes.promote
        inputs = raise_dtype(pred), raise_dtype(target)  # copies for some, which the promise holds for too
        available = {
            "stride": _expanded("stride", stride, (*pred.shape[:1], 1), inputs[0]),
            "imgsz": _expanded("imgsz", imgsz, (2,), inputs[0]),
            "state": self.state,
        }
        context: dict[str, Any] = {key: available[key] for key in self.context}
        with _no_autocast(pred.device.type):
            return _checked(self.name, is_elementwise, self.function, *inputs, **context)

    def within(self, scope: Scope) -> Loss:
        """Return this loss with the memory of a run, if it remembers anything."""
        return self if self.state is None else replace(self, state=scope)

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}({options})" if options else self.name


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
    return names_with_prefixes(BOX)


def list_class_losses() -> tuple[str, ...]:
    """Return the names that ``cls_loss=`` takes, sorted."""
    return registry().names(CLASS)


def assigner_overlap(loss: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    """Return ``(boxes, boxes) -> (N,)``: 1 − loss, clamped at 0, for the metric of the assigner."""
    return partial(_overlap, loss)


def _checked(
    name: str, is_elementwise: bool, function: Callable[..., Tensor], pred: Tensor, target: Tensor, **context: Any
) -> Tensor:
    """Return what a function returns, a tensor of one loss each, with gradient; it has not changed its inputs."""
    before = _versions(pred, target)
    loss = function(pred, target, **context)
    if _versions(pred, target) != before:
        raise LossPlugError(f"loss '{name}' changes its inputs in place, which other losses read; work on a copy.")
    if not isinstance(loss, Tensor):
        raise LossPlugError(f"loss '{name}' must return a tensor, not {loss!r}.")
    expected = pred.shape if is_elementwise else pred.shape[:1]
    if loss.shape != expected:  # (N, 1) would be multiplied with weights (N,) into N x N losses, without an error
        given, one = tuple(pred.shape), f"one loss per {'element' if is_elementwise else 'pair'}"
        must = f"must return shape {tuple(expected)} for inputs {given}, {one}"
        raise LossPlugError(f"loss '{name}' {must}, but returned {tuple(loss.shape)}.")
    if torch.is_grad_enabled() and pred.requires_grad and not loss.requires_grad:
        raise LossPlugError(f"loss '{name}' has no gradient; remove .detach() or torch.no_grad() from its result.")
    return loss


def _expanded(name: str, value: Any, shape: tuple[int, ...], like: Tensor) -> Optional[Tensor]:
    """Return numbers as a tensor of a shape, of the type and on the device of another one; None stays."""
    if value is None:
        return None
    try:
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=like.dtype, device=like.device)
        return tensor.expand(shape)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LossPlugError(f"{name}={value} must be a number, or numbers of shape {shape}.") from error


def _versions(*tensors: Tensor) -> list[int]:
    """Return how often each tensor was changed in place; -1 for tensors of inference mode, which do not count."""
    return [-1 if tensor.is_inference() else tensor._version for tensor in tensors]


def _no_autocast(device_type: str) -> AbstractContextManager[Any]:
    try:
        return torch.autocast(device_type, enabled=False)
    except RuntimeError:  # a kind of device that has none
        return nullcontext()


def _overlap(loss: Loss, pred: Tensor, target: Tensor) -> Tensor:
    return (1 - loss(pred, target)).clamp_(0)


def _created(kind: str, name: str, options: Mapping[str, Any]) -> Loss:
    loss = bind(kind, name, options)
    for key, value in options.items():
        if key not in loss.options:
            takes = ", ".join(loss.options) or "none"
            raise LossPlugError(f"{key}={value} is not an option of '{loss.name}'; it takes {takes}.")
    return loss


def bind(kind: str, name: str, options: Mapping[str, Any]) -> Loss:
    """Resolve a name into its parts and bind their options."""
    parts = mixed(kind, name)
    if not parts:
        return _bind_single(kind, name, options)
    first, second = (_bind_single(kind, part, options) for part in parts)
    share = MIX.check(given_keys(options).get(MIX.key, MIX.default))
    context = first.context | second.context
    function = partial(mixture.mixture_of, first=_as_part(first), second=_as_part(second), share=share)
    values = {MIX.key: share, **first.options, **second.options}
    state = State().scoped("own") if "state" in context else None
    return Loss(f"{first.name}+{second.name}", first.kind, function, values, context, state)


def _as_part(loss: Loss) -> Part:
    """Return a part of a mixture, whose shape and gradient are checked."""
    is_overlap = getattr(loss.function, "func", None) is algebra.overlap_loss_of
    wants = loss.context | {mixture.PAIR} if is_overlap else loss.context
    return Part(partial(_checked, loss.name, False, loss.function), wants)


def _bind_single(kind: str, name: str, options: Mapping[str, Any]) -> Loss:
    *modifiers, spec = specs = specs_of(kind, name)
    given = given_keys(options)
    values = {key: value for part in specs for key, value in part.bind(given).items()}
    context = frozenset().union(*(s.context for s in specs))
    state = State().scoped("own") if "state" in context else None
    background = spec.background(**values) if spec.background else None
    kernel = spec.kernel(**values) if spec.kernel and not modifiers else None
    function = _assembled(specs, given)
    return Loss(canonical(kind, name), kind, function, values, context, state, background, kernel)


def specs_of(kind: str, name: str) -> list[Spec]:
    """Return the specs of a loss that is not a mixture: its modifiers, outermost first, and itself."""
    if is_user_defined(name):
        return [load_own(name.strip(), kind)]
    spec, modifiers = resolve_name(kind, name)
    return [*modifiers, spec]


def _assembled(specs: Sequence[Spec], given: Mapping[str, Any]) -> Callable[..., Tensor]:
    # The outermost is named first and acts last.
    base, *acting = (Part(partial(s.function, **s.bind(given)), s.context) for s in reversed(specs))
    if specs[-1].kind == OVERLAP:
        return partial(algebra.overlap_loss_of, base=base, modifiers=tuple(acting))
    if acting:
        modifiers = tuple(part.function for part in acting)
        return partial(rotated.rotated_loss_of, base=base.function, modifiers=modifiers)
    return base.function


def bind_if_there(kind: str, name: str, options: Mapping[str, Any]) -> Loss:
    """Return a loss of a stock run, which Ultralytics computes: a frozen program may lack ours."""
    return bind(kind, name, options) if is_known(kind, name) else Loss(name, kind, _absent, {})


def _absent(*args: Any, **context: Any) -> Tensor:
    raise LossPlugError(ABSENT)

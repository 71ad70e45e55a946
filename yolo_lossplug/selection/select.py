# SPDX-License-Identifier: AGPL-3.0-or-later
"""From training keys to what one run trains with. Pure: no training framework."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any, Optional, Union

from yolo_lossplug.registry import BOX, CLASS, ROTATED, SOFTMAX, LossPlugError
from yolo_lossplug.selection import keys
from yolo_lossplug.selection.keys import CLASSIFY, COMMON, DETR, NAMES, NUMBERS, REPORT, TASKS, WEIGHTS
from yolo_lossplug.selection.loss import Loss, bind, bind_if_there
from yolo_lossplug.selection.names import is_known, is_user_defined, key_of, suggest
from yolo_lossplug.selection.regions import ANNOTATED, IGNORE, parsed
from yolo_lossplug.selection.resolve import refuse_unknown_name
from yolo_lossplug.selection.third_party import registry

HORIZONTAL = frozenset(("tal_iou", "nms_iou"))
"""Keys of overlaps that take horizontal boxes."""
SETTLED = frozenset(("loss", "cls_loss", "tal_topk", "tal_alpha", "tal_beta", "loss_engine"))
"""Keys that stand together in the arguments of a run with boxes that was settled."""
LEFT_OUT = {
    **{"tal_min_side": None, "nms_iou": NAMES["nms_iou"], WEIGHTS: None},
    **{REPORT: False, IGNORE: None, ANNOTATED: None},
}
"""Keys that a resolved run does not show where they have these values."""


@dataclass(frozen=True)
class Selection:
    """What one run trains with.

    Attributes:
        box: The box loss.
        cls: The class loss.
        cls_smoothing: Label smoothing of assigned targets.
        cls_weights: Weights of the classes, by index or by name; None for none.
        tal_topk: Maximum number of anchors per object.
        tal_alpha: Exponent of the score.
        tal_beta: Exponent of the overlap.
        tal_min_side: Floor of an object's side in pixels when candidates are chosen; None for the host's.
        tal_iou: Name of the overlap inside the assigner.
        overlap: Loss of which 1 minus is that overlap; None for the host's own.
        loss_engine: Requested engine.
        nms_iou: Overlap in the NMS of validation.
        report: Whether a report of the assignment is written.
        ignore: Classes whose boxes are regions, as given; None for what the data say.
        annotated: Classes that each entry of the data annotates, as given; None for what the data say.
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
    tal_min_side: Optional[float]
    tal_iou: str
    overlap: Optional[Loss] = field(compare=False, repr=False)
    loss_engine: str
    nms_iou: str
    report: bool
    ignore: Any
    annotated: Any
    given: frozenset[str] = field(compare=False)
    task: str

    @property
    def is_active(self) -> bool:
        """Whether the user asked for anything."""
        return bool(self.given)

    @property
    def chosen(self) -> frozenset[str]:
        """Keys that the user has chosen: those given.

        Of arguments that hold every key, those of a resumed run or of a worker, these are the ones off their defaults.
        """
        if not self.given >= SETTLED:
            return self.given
        defaults = {**NAMES, **{key: p.default for key, p in keys.numeric_keys().items()}}
        values = self.resolved()
        return frozenset(key for key in self.given if values.get(key) != defaults.get(key))

    def chooses(self, loss: Loss) -> bool:
        """Return whether the user has named one of the two losses, or given an option of it."""
        return bool(self.given & {key_of(loss.kind), *loss.options})

    @property
    def has_stock_box_loss(self) -> bool:
        """Whether the box loss is the stock one."""
        return self.box.name in (keys.STOCK_BOX, keys.STOCK_ROTATED)

    @property
    def has_stock_class_loss(self) -> bool:
        """Whether the class loss is the stock one."""
        is_stock = self.cls.name in (keys.STOCK_CLASS, keys.STOCK_SOFTMAX)
        return is_stock and not self.cls_smoothing and self.cls_weights is None

    @property
    def has_stock_numbers(self) -> bool:
        """Whether losses and assigner are the stock ones."""
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
        }
        others = (self.tal_min_side, self.nms_iou, self.cls_weights, self.report, self.ignore, self.annotated)
        values.update((key, value) for (key, unset), value in zip(LEFT_OUT.items(), others) if value != unset)
        used = self._used(values.keys()) - keys.CLAIMED
        return {key: value for key, value in values.items() if key in used}

    def _used(self, every: Set[str]) -> Set[str]:
        if self.task == CLASSIFY:
            return keys.CLASSIFY_KEYS | self.cls.options.keys()
        if self.box.kind == ROTATED:  # the overlap of its assigner is the host's
            return every - {"tal_iou"}
        if self.task != DETR:
            return every
        used = {"loss_engine", IGNORE, ANNOTATED}  # a loss that is not chosen is the host's own, with its numbers
        if self.chooses(self.box):
            used |= {"loss", *self.box.options}
        if self.chooses(self.cls):
            used |= {"cls_loss", "cls_smoothing", WEIGHTS, *self.cls.options}
        return used


def select(args: Mapping[str, Any]) -> Selection:
    """Return what a run with these arguments trains with. Keys of others are ignored.

    Args:
        args: Arguments of a run, merged from every source.

    Raises:
        LossPlugError: If a value is unknown, of another type, out of range, or without effect.
    """
    task = args.get("task") or "detect"
    given = keys.given_keys(args)
    _refuse_unfit_task(task, given)
    bound = bind if given else bind_if_there
    box, cls = (bound(kind, keys.name_of(args, key, task), args) for key, kind in keys.loss_kinds(task).items())
    given = keys.given_keys(args)  # with the options of user-defined losses, which are loaded now

    values = {key: p.check(given[key]) if key in given else p.default for key, p in NUMBERS.items()}
    tal_iou = keys.choose("tal_iou", args, keys.ASSIGNER_OVERLAPS)
    engine = keys.choose("loss_engine", args, keys.ENGINES)
    _refuse_unfit_engine(task, engine)
    _refuse_other_options(given, box, cls)
    _refuse_unfit_class_loss(task, given, cls)
    selection = Selection(
        box,
        cls,
        **values,
        cls_weights=keys.checked_weights(given.get(WEIGHTS)),
        tal_iou=tal_iou,
        overlap=None if tal_iou == keys.STOCK_BOX else bind(BOX, tal_iou, {}),
        loss_engine=engine,
        nms_iou=keys.choose("nms_iou", args, keys.NMS_OVERLAPS),
        report=keys.flag_of(REPORT, given.get(REPORT, False)),
        ignore=parsed(IGNORE, given.get(IGNORE)),
        annotated=parsed(ANNOTATED, given.get(ANNOTATED)),
        given=frozenset(given),
        task=task,
    )
    # Stock numbers are stock's to the last digit, and the fast engine rounds.
    if "loss_engine" not in given and task != DETR and selection.has_stock_numbers:
        return replace(selection, loss_engine="reference")
    return selection


def refuse_unknown_names(given: Mapping[str, Any]) -> None:
    """Raise an error for a loss that is unknown, before anything else is checked."""
    task = given.get("task")
    for key, kind in keys.loss_kinds(str(task)).items():
        name = keys.name_of(given, key, str(task))
        # Without a task the loss may be one of any: the trainer knows, and is asked next.
        is_of_another = task is None and any(is_known(other, name) for other in (ROTATED, SOFTMAX))
        if given.get(key) is not None and not is_user_defined(name) and not is_of_another:
            refuse_unknown_name(kind, name)


def class_weights(selection: Selection, count: int, names: Mapping[int, str]) -> Optional[list[float]]:
    """Return the weight of each class of a model with this number of classes, None if none are selected.

    Raises:
        LossPlugError: If the number of weights is not that of the classes, or a class of that name does not exist.
    """
    weights = selection.cls_weights
    if weights is None:
        return None
    if isinstance(weights, dict):
        known = [names.get(i, "") for i in range(count)]
        for name in (name for name in weights if name not in known):
            near = suggest(name, known)
            raise LossPlugError(f"{WEIGHTS}: the data has no class '{name}'.{near} Known: {', '.join(known)}.")
        return [weights.get(name, 1.0) for name in known]
    if len(weights) != count:
        raise LossPlugError(f"{WEIGHTS}={weights} has {len(weights)} values for {count} classes; give one for each.")
    return weights


def _refuse_unfit_task(task: str, given: Mapping[str, Any]) -> None:
    """Raise an error for a key that a task has no use for."""
    for key, value in given.items():
        if reason := _no_use(task, key):
            raise LossPlugError(f"{key}={value} {reason}.")


def _no_use(task: str, key: str) -> str:
    """Return why a task has no use for a key, empty if it has one."""
    if task == CLASSIFY:
        names = registry().names(SOFTMAX)
        if key in keys.CLASSIFY_KEYS.union(*(registry().specs[SOFTMAX, name].parameters for name in names)):
            return ""
        takes = f"cls_loss ({', '.join(names)}), their options, cls_smoothing and cls_weights"
        return f"has no effect with task={task}, which has no boxes; remove it. It takes {takes}"
    if task == DETR:
        if key not in COMMON or key in keys.DETR_KEYS:
            return ""
        return (
            "has no effect with RT-DETR: its queries are matched to objects, so that no anchor is assigned and there "
            f"is no NMS. Remove it; RT-DETR takes {_listed(keys.DETR_KEYS)}"
        )
    if task not in TASKS:
        another = "which has another criterion; remove it. Tasks that take it"
        return f"has no effect with task={task}, {another}: {', '.join(TASKS)}"
    if TASKS[task] == ROTATED and key in HORIZONTAL:
        return (
            f"cannot be used with task={task}: its boxes are rotated, and this overlap takes horizontal boxes. Remove "
            f"it; {task} takes {_listed(COMMON - HORIZONTAL)}"
        )
    return ""


def _listed(names: Set[str]) -> str:
    """Return keys that a run takes, with the options of its losses, in words."""
    return f"{', '.join(key for key in [*keys.keys()] if key in names)}, and the options of its losses"


def _refuse_unfit_engine(task: str, engine: str) -> None:
    if why := {"fast": keys.NO_FAST_ENGINE, "triton": keys.NO_KERNELS}.get(engine, {}).get(task):
        run = "RT-DETR" if task == DETR else f"task={task}"
        raise LossPlugError(f"loss_engine={engine} cannot be used with {run}: {why}. Remove it.")


def _refuse_other_options(given: Mapping[str, Any], box: Loss, cls: Loss) -> None:
    for key, value in given.items():
        if key not in COMMON and key not in box.options and key not in cls.options:
            raise LossPlugError(keys.no_effect(key, value, box.name, cls.name))


def _refuse_unfit_class_loss(task: str, given: Mapping[str, Any], cls: Loss) -> None:
    """Raise an error for a class loss that is not defined for RT-DETR, or a key that needs one."""
    if task != DETR:
        return
    if "state" in cls.context:
        specs = (registry().specs[CLASS, name] for name in registry().names(CLASS))
        names = ", ".join(spec.name for spec in specs if "state" not in spec.context)
        why = "it keeps statistics of one call in a step, and RT-DETR calls it for every decoder layer"
        remedy = f"Choose one of {names}, or a user-defined loss without state."
        raise LossPlugError(f"cls_loss={cls.name} cannot be used with RT-DETR: {why}. {remedy}")
    for key in ("cls_smoothing", WEIGHTS):
        if key in given and not given.keys() & {"cls_loss", *cls.options}:
            why = "whose own class loss stays as it is otherwise"
            raise LossPlugError(f"{key}={given[key]} needs cls_loss with RT-DETR, {why}: add cls_loss={cls.name}.")

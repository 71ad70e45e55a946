# SPDX-License-Identifier: AGPL-3.0-or-later
"""The training keys: their defaults, the values they take, and the messages about wrong ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional, Union

from yolo_lossplug.box_losses.mixture import DEFAULT_SHARE, SHARE
from yolo_lossplug.registry import BOX, CLASS, ROTATED, SOFTMAX, LossPlugError, Option, Parameter
from yolo_lossplug.selection.names import PREFIXES, STOCK, hint, key_of, normalise, suggest
from yolo_lossplug.selection.regions import ANNOTATED, IGNORE
from yolo_lossplug.selection.resolve import how_to_get_stock
from yolo_lossplug.selection.third_party import registry

STOCK_BOX, STOCK_CLASS, STOCK_ROTATED, STOCK_SOFTMAX = STOCK[BOX], STOCK[CLASS], STOCK[ROTATED], STOCK[SOFTMAX]

ENGINES = ("auto", "fast", "triton", "reference")
NMS_OVERLAPS = ("iou", "diou")
ASSIGNER_OVERLAPS = ("ciou", "diou", "eiou", "giou", "iou", "siou")

SMOOTHING = "smoothing of assigned targets"
FLOOR = "side in pixels that shorter sides of an object count as when candidates are chosen; none = the host's"
NUMBERS = {
    key: Parameter(key, kind, False, default, option)
    for key, kind, default, option in (
        ("tal_topk", int, 10, Option("maximum number of anchors per object", at_least=1)),
        ("tal_alpha", float, 0.5, Option("exponent of the score in the assigner's metric", at_least=0)),
        ("tal_beta", float, 6.0, Option("exponent of the overlap in the assigner's metric", at_least=0)),
        ("tal_min_side", float, None, Option(FLOOR, above=0, at_most=65536)),
        ("cls_smoothing", float, 0.0, Option(SMOOTHING, at_least=0, below=1, formerly="label_smoothing")),
    )
}

MIX = Parameter("loss_mix", float, False, DEFAULT_SHARE, SHARE)
"""The key that belongs to mixtures of two box losses."""

NAMES = {"loss": STOCK_BOX, "cls_loss": STOCK_CLASS, "tal_iou": "ciou", "loss_engine": "auto", "nms_iou": "iou"}
"""Keys that take a name, with their defaults."""

WEIGHTS = "cls_weights"

REPORT = "lossplug_report"
"""The key that asks for a report of the assignment; False means the same as no key."""

COMMON = frozenset((*NUMBERS, *NAMES, WEIGHTS, REPORT, IGNORE, ANNOTATED))
"""Keys that are not options of one loss."""

TASKS = {"detect": BOX, "segment": BOX, "pose": BOX, "obb": ROTATED}
"""Tasks with boxes, and the kind of their box losses."""

DETR = "rtdetr"
"""RT-DETR in place of its task, which is detect: it matches queries to objects, and has no assigner."""

STOCK_DETR = {"loss": "giou", "cls_loss": "varifocal"}
"""Losses of RT-DETR by the key that names them; the numbers of the host's own class loss are others."""

DETR_KEYS = frozenset({"loss", "cls_loss", "cls_smoothing", WEIGHTS, "loss_engine", IGNORE, ANNOTATED})
CLASSIFY_KEYS = DETR_KEYS - {"loss", IGNORE, ANNOTATED}

NO_FAST_ENGINE = {"classify": "it has no boxes", DETR: "it matches queries, and assigns no anchors"}
"""Tasks without a fast engine, and why."""
NO_KERNELS = {**NO_FAST_ENGINE, "obb": "its boxes are rotated"}
"""Tasks without kernels, and why."""

CLASSIFY = "classify"
"""The task without boxes that takes keys of the class loss."""

CLAIMED: set[str] = set()
"""Keys that the installed Ultralytics has itself: its meaning wins, and they are not ours."""


def numeric_keys() -> dict[str, Parameter]:
    """Return every key that takes a number: of assigner and targets, of mixtures, and the options of all losses."""
    return {**NUMBERS, MIX.key: MIX, **registry().parameters()}


def keys() -> dict[str, Optional[str]]:
    """Return every training key with its unset value."""
    unset = {key: p.unset for key, p in numeric_keys().items()}
    every = {**dict.fromkeys((*NAMES, WEIGHTS, REPORT, IGNORE, ANNOTATED)), **unset}
    return {key: value for key, value in every.items() if key not in CLAIMED}


def given_keys(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return our keys that are set in arguments, with their values; arrays, tensors and series become lists."""
    values = {key: (_plain(args[key]), unset) for key, unset in keys().items() if key in args}
    # A table compares by element, and so only words are compared.
    given = {k: value for k, (value, unset) in values.items() if value is not unset and str(value) != unset}
    if given.get(REPORT) is False:
        del given[REPORT]
    return given


def _plain(value: Any) -> Any:
    method = getattr(value, "tolist", None) or getattr(value, "to_list", None)
    return method() if callable(method) else value


def refuse_unknown(given: Mapping[str, Any], *others: str) -> None:
    """Raise an error for a key that is neither a key of yolo-lossplug nor one of some others."""
    known = (*others, *keys())
    for key, value in given.items():
        if key not in known:
            remedy = instead_of(key, value) or hint(key, known, ", ".join(known))
            raise LossPlugError(f"{key}={value} is unknown.{remedy}.")


def instead_of(key: str, value: Any) -> str:
    """Return which key of ours does what a key of an older YOLO did, empty if none does."""
    ours = next((parameter.key for parameter in numeric_keys().values() if parameter.option.formerly == key), None)
    if ours is None or ours in CLAIMED:
        return ""
    owners = [f"{key_of(owner.kind)}={owner.name} " for owner in registry().owners(ours)]
    return f" Use {''.join(owners[:1])}{ours}={value}"


def refuse_none(key: str, value: Any) -> None:
    """Raise an error for a name that was typed as none, which parses to the unset value."""
    if key in NAMES and key not in CLAIMED and value is None:
        raise LossPlugError(how_to_get_stock(key, "none", NAMES[key]))


def loss_kinds(task: str) -> dict[str, str]:
    """Return the kinds of losses that a task has, by the key that names them."""
    return {"loss": TASKS.get(task, BOX), "cls_loss": SOFTMAX if task == CLASSIFY else CLASS}


def name_of(args: Mapping[str, Any], key: str, task: str = "detect") -> str:
    """Return the name that is the value of a key, its default where it is not set."""
    value, default = None if key in CLAIMED else args.get(key), NAMES[key]
    if key in loss_kinds(task):
        default = STOCK_DETR[key] if task == DETR else STOCK[loss_kinds(task)[key]]
    if value is None:
        return default
    if isinstance(value, (list, tuple)) and len(value) > 1:
        value = ",".join(map(str, value))  # several losses: the next check says what to do with them
    if not isinstance(value, str):
        raise LossPlugError(f"{key}={value!r} must be a name, e.g. {key}={default}.")
    return value


def choose(key: str, args: Mapping[str, Any], choices: tuple[str, ...]) -> str:
    """Return the value of a key that takes one of some names, its default if it is not set; else raise an error."""
    name = normalise(name_of(args, key))
    if name not in choices:
        raise LossPlugError(f"{key}={name} is unknown.{suggest(name, choices)} Known: {', '.join(choices)}.")
    return name


def flag_of(key: str, value: Any) -> bool:
    """Return a value that must be True or False."""
    if not isinstance(value, bool):
        raise LossPlugError(f"{key}={value} must be True or False.")
    return value


def checked_weights(value: Any) -> Optional[Union[dict[str, float], list[float]]]:
    """Return checked class weights, None for none."""
    if value is None:
        return None
    numbers = list(value.values()) if isinstance(value, Mapping) else value
    kind = "a list of one number for each class, or a mapping from names of classes to numbers"
    if not isinstance(numbers, (list, tuple)) or not numbers:
        raise LossPlugError(f"{WEIGHTS}={value!r} must be {kind}, e.g. {WEIGHTS}=[1,2.5,1].")
    parameter = Parameter(WEIGHTS, float, False, 1.0, Option("weight of a class", at_least=0))
    checked = [parameter.check(number) for number in numbers]
    return dict(zip(map(str, value), checked)) if isinstance(value, Mapping) else checked


def no_effect(key: str, value: Any, box: str, cls: str) -> str:
    """Return the message about an option that neither chosen loss has, with those that have it."""
    owners = registry().owners(key)
    is_class = any(owner.kind in (CLASS, SOFTMAX) for owner in owners)
    chosen = f"cls_loss={cls}" if is_class else f"loss={box}"
    owned = [f"{o.name}-*" if o.kind in PREFIXES.values() else f"{key_of(o.kind)}={o.name}" for o in owners]
    owned += ["two losses, loss=ciou+nwd"] if key == MIX.key else []
    return f"{key}={value} has no effect with {chosen}; it belongs to {', '.join(dict.fromkeys(owned))}."

# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a criterion runs, read from its members: its branches, where it deviates from a selection, and the banner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Callable

import ultralytics
from torch import nn

from yolo_lossplug.selection.keys import CLASSIFY, NAMES, NUMBERS, STOCK_BOX, STOCK_CLASS, STOCK_ROTATED
from yolo_lossplug.selection.select import Selection
from yolo_lossplug.ultralytics_hook import detr
from yolo_lossplug.ultralytics_hook.assigner import overlap_name, topk2_of
from yolo_lossplug.ultralytics_hook.attached import on_criterion
from yolo_lossplug.ultralytics_hook.engines import choice, terms
from yolo_lossplug.ultralytics_hook.members import PluggedSoftmaxLoss, box_loss_error
from yolo_lossplug.ultralytics_hook.originals import (
    BboxLoss,
    DETRLoss,
    RotatedBboxLoss,
    v8DetectionLoss,
)
from yolo_lossplug.ultralytics_hook.run.report import FILE

Mark = Callable[[str], str]

ONE_TO_ONE = "one2one"
"""The branch of an end-to-end head whose every gt has one anchor."""
TOLERANCE = 1e-4
"""Maximum relative error of the host's box loss, against our CIoU, with which it counts as CIoU."""


def mismatches(criterion: Any, selection: Selection, role: str = "training") -> list[str]:
    """Return where a criterion deviates from the selection: the key, the requested value and the one that runs."""
    if isinstance(criterion, PluggedSoftmaxLoss):
        is_same = criterion.lossplug == selection and criterion.loss == selection.cls
        return [] if is_same else [f"cls_loss={selection.cls} was requested, but {role} runs {criterion.loss}"]
    leaves = branch_criteria(criterion)
    if not leaves:
        requested = f"loss={selection.box} " if selection.task != CLASSIFY else ""
        return [f"{requested}cls_loss={selection.cls} was requested, but {role} runs {type(criterion).__name__}"]
    return [text for leaf in leaves for text in _leaf_mismatches(leaf, selection, role)]


def _leaf_mismatches(leaf: Any, selection: Selection, role: str) -> list[str]:
    attached, actual = on_criterion(leaf), running(leaf)
    if attached.selection is None:
        module = type(getattr(leaf, "bbox_loss", leaf)).__name__
        requested = f"loss={selection.box} cls_loss={selection.cls}"
        return [f"{requested} was requested, but {role} runs {type(leaf).__name__} with {module}"]
    wrong = [
        f"{key}={value} was requested, but {role} runs {key}={actual[key]}"
        for key, value in attached.running.items()
        if actual[key] != value
    ]
    if wrong or attached.selection == selection:
        return wrong
    before, now = attached.selection.resolved(), selection.resolved()
    return [
        f"{key}={now.get(key)} was requested, but {role} runs {key}={before.get(key)}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ] or [f"loss={selection.box} was requested, but {role} runs loss={attached.selection.box}"]


def running(leaf: Any) -> dict[str, Any]:
    """Return what a criterion runs, by key, read from its members and not from the requested keys."""
    if isinstance(leaf, DETRLoss):
        return detr.running_detr(leaf)
    assigner = leaf.assigner
    return {
        "loss": getattr(leaf.bbox_loss, "loss", None) or _stock_name(leaf.bbox_loss),
        "cls_loss": getattr(leaf.bce, "loss", None)
        or (STOCK_CLASS if terms.has_stock_bce(leaf) else describe_module(leaf.bce)),
        "cls_smoothing": getattr(leaf.bce, "smoothing", 0.0),
        "tal_topk": assigner.topk,
        "tal_alpha": assigner.alpha,
        "tal_beta": assigner.beta,
        "tal_min_side": getattr(assigner, "stride_val", None),
        "tal_iou": overlap_name(assigner),
        "loss_engine": choice.running_engine(leaf),
    }


def _stock_name(module: Any) -> str:
    """Return what a box loss of the host computes; the class name for that of a fork."""
    if type(module) is RotatedBboxLoss:
        return STOCK_ROTATED
    if type(module) is BboxLoss:
        return STOCK_BOX if is_host_ciou() else "BboxLoss (not CIoU)"
    return type(module).__name__


def is_host_ciou() -> bool:
    """Return whether the host's box loss is CIoU; that of a fork may differ."""
    return box_loss_error() < TOLERANCE


def describe_module(module: Any) -> str:
    """Return the class of a class loss, and which weights it has."""
    weights = [name for name in ("weight", "pos_weight") if getattr(module, name, None) is not None]
    return f"{type(module).__name__}({', '.join(weights)})" if weights else type(module).__name__


def branches(criterion: Any, name: str = "main", depth: int = 3) -> Iterator[tuple[str, Any]]:
    """Yield the criteria inside one that hold a box loss and a class loss, with the names of branches.

    Searches the callable attributes of compound criteria and of wrappers.
    """
    if isinstance(criterion, (v8DetectionLoss, DETRLoss)):
        yield name, criterion
        return
    for branch, inner in list(getattr(criterion, "__dict__", {}).items()):
        if depth and callable(inner) and not isinstance(inner, (nn.Module, type)):
            yield from branches(inner, branch, depth - 1)


def branch_criteria(criterion: Any) -> list[Any]:
    """Return the criteria inside one that hold a box loss and a class loss."""
    return [leaf for _, leaf in branches(criterion)]


def is_one_to_one(branch: str, leaf: Any) -> bool:
    """Return whether a criterion is that of a one-to-one head, which keeps the settings of its assigner."""
    if isinstance(leaf, DETRLoss):
        return False
    return branch == ONE_TO_ONE or topk2_of(leaf.assigner) < leaf.assigner.topk


def banner(selection: Selection, criterion: Any, mark: Mark = str) -> str:
    """Return the line that says what a criterion runs; `mark` is applied to what differs from stock."""
    return banner_line(selection, running_first(criterion), mark)


def running_first(criterion: Any) -> dict[str, Any]:
    """Return what a criterion runs, by key; of an end-to-end head its one-to-many branch, of classify nothing."""
    leaves = sorted(branches(criterion), key=lambda pair: is_one_to_one(*pair))
    return running(leaves[0][1]) if leaves else {}


def banner_line(selection: Selection, actual: Mapping[str, Any], mark: Mark = str) -> str:
    """Return what a selection and the values that run, by key, are in words; what differs from stock is marked."""
    cls = f"class {actual.get('cls_loss', selection.cls)}"
    if selection.cls_smoothing:
        cls += f" smoothing={selection.cls_smoothing}"
    if selection.cls_weights:
        cls += f" weights={selection.cls_weights}"
    cls = cls if selection.has_stock_class_loss else mark(cls)
    parts = [cls]
    if actual:
        box = f"box {actual['loss']}"
        parts = [box if selection.has_stock_box_loss else mark(box), cls, _assignment(selection, actual, mark)]
        if selection.nms_iou != NAMES["nms_iou"]:
            parts.append(mark(f"nms {selection.nms_iou}"))
        if selection.report:
            parts.append(mark(f"report {FILE}"))
    engine = actual.get("loss_engine", choice.REFERENCE)
    parts.append(f"engine {engine}")
    parts.append(f"ultralytics {ultralytics.__version__}")
    if getattr(engine, "is_unmeasured", False):
        parts.append(choice.ADVICE)
    return " · ".join(parts)


def _assignment(selection: Selection, actual: Mapping[str, Any], mark: Mark) -> str:
    if "tal_topk" not in actual:
        return "matcher host's"
    shown = ("topk", "alpha", "beta", *([] if selection.tal_min_side is None else ["min_side"]), "iou")
    numbers = ", ".join(_number(selection, actual, key, mark) for key in shown)
    return f"assigner tal({numbers})"


def _number(selection: Selection, actual: Mapping[str, Any], name: str, mark: Mark) -> str:
    key = f"tal_{name}"
    default = NUMBERS[key].default if key in NUMBERS else NAMES[key]
    text = f"{name}={actual[key]:g}" if key == "tal_min_side" else f"{name}={actual[key]}"
    return text if getattr(selection, key) == default else mark(text)

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which overlap the host's non-maximum suppression measures: the key `nms_iou` of predict, val and track."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Callable

from ultralytics.utils import DEFAULT_CFG_DICT

from yolo_lossplug.nms import diou_nms
from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import CLAIMED, NMS_OVERLAPS, choose
from yolo_lossplug.ultralytics_hook.console import say
from yolo_lossplug.ultralytics_hook.patching import held

STOCK = NMS_OVERLAPS[0]
KEEP_ALL = 1.0
"""A threshold that no IoU exceeds: the host filters and sorts, and suppresses nothing."""
LEADING = ("prediction", "conf_thres", "iou_thres", "classes", "agnostic")
"""Parameters of the host's NMS that it gives by position."""
DEFAULTS = {"iou_thres": 0.45, "agnostic": False, "max_det": 300, "max_nms": 30000, "max_wh": 7680}
"""Its defaults, which are not read from it: somebody may have put a function without a signature there."""
FOREIGN = ("ultralytics.models.rtdetr", "ultralytics.models.sam", "ultralytics.models.nas")
NO_NMS = "an end-to-end head has no NMS"
TASKS = ("detect", "segment", "pose")

_overlap: ContextVar[str] = ContextVar("nms_iou", default=STOCK)


def postprocess(stock: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a predictor's or validator's own post-processing with the overlap that its arguments name."""
    with held(_overlap, choose("nms_iou", vars(self.args), NMS_OVERLAPS)):
        return stock(self, *args, **kwargs)


def suppress(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run the host's NMS; with another overlap its filters alone, and then ours.

    Raises:
        LossPlugError: If the predictions are those of an end-to-end head, or rotated.
    """
    if _overlap.get() == STOCK:
        return stock(*args, **kwargs)
    given = {**DEFAULTS, **dict(zip(LEADING, args)), **kwargs}
    prediction = given["prediction"][0] if isinstance(given["prediction"], (list, tuple)) else given["prediction"]
    if given.get("end2end") or prediction.shape[-1] == 6:
        raise LossPlugError(f"nms_iou=diou has no effect here: {NO_NMS}. Remove it.")
    if given.get("rotated"):
        raise LossPlugError("nms_iou=diou cannot be used with rotated boxes. Remove it.")
    at = LEADING.index("iou_thres")
    kwargs = {**kwargs, "max_det": given["max_nms"]}
    if len(args) > at:
        args = (*args[:at], KEEP_ALL, *args[at + 1 :])
    else:
        kwargs["iou_thres"] = KEEP_ALL
    result = stock(*args, **kwargs)
    images, indices = result if given.get("return_idxs") else (result, None)
    for i, rows in enumerate(images):
        apart = rows[:, :4] + rows[:, 5:6] * (given["max_wh"] * (not given["agnostic"]))
        kept = diou_nms(apart, rows[:, 4], given["iou_thres"])[: given["max_det"]]
        images[i] = rows[kept]
        if indices is not None:
            indices[i] = indices[i][kept]
    return result


def check_overlap(model: Any, mode: str, given: dict[str, Any]) -> None:
    """Check the key where a model is asked to predict, validate or track, and say which overlap its NMS measures.

    Raises:
        LossPlugError: If the value is unknown, or the model has no such NMS.
    """
    if "nms_iou" in CLAIMED or (value := given.get("nms_iou")) is None:
        return
    chosen = choose("nms_iou", given, NMS_OVERLAPS)
    reason = ""
    if type(model).__module__.startswith(FOREIGN):
        reason = f"{type(model).__name__} has no NMS of this kind"
    elif model.task not in TASKS:
        reason = f"task={model.task} has no NMS of horizontal boxes"
    elif not has_nms(getattr(model, "model", None), given):
        reason = NO_NMS
    if reason:
        raise LossPlugError(f"nms_iou={value} has no effect with mode={mode} here: {reason}. Remove it.")
    if given.get("mode", mode) == mode:  # track calls predict, with its own mode
        say(f"nms {chosen} · mode {mode}")


def check_training(model: Any, overlap: str, given: dict[str, Any]) -> None:
    """Check the selected overlap before the first epoch, for the validations of a training of an unwrapped model.

    Raises:
        LossPlugError: If its validations call no NMS.
    """
    if overlap != STOCK and not has_nms(model, given):
        raise LossPlugError(f"nms_iou={overlap} has no effect in validation here: {NO_NMS}. Remove it.")


def has_nms(model: Any, given: dict[str, Any]) -> bool:
    """Return whether the host calls NMS on what a model predicts with these arguments, else with its defaults.

    The model may be the name of an exported one, whose head is unknown before it is loaded.
    """
    head = (getattr(model, "model", None) or [None])[-1]
    if getattr(head, "one2one_cv2", None) is None and not getattr(head, "end2end", False):
        return True
    if getattr(head, "cv2", None) is None:  # fused: the one-to-many head is gone
        return False
    if given.get("end2end") is not None:  # in some releases an argument, in newer ones an old name of nms=False
        return not given["end2end"]
    nms = given.get("nms", DEFAULT_CFG_DICT.get("nms"))
    return nms is not False if is_nms_the_default() else bool(nms)


def is_nms_the_default() -> bool:
    """Return whether the host runs the one-to-many head, and NMS, unless `nms=False`; older ones default to that."""
    return "nms" in DEFAULT_CFG_DICT and DEFAULT_CFG_DICT["nms"] is None

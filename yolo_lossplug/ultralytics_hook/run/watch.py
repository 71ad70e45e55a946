# SPDX-License-Identifier: AGPL-3.0-or-later
"""Counting of what an assigner assigns, in a meter."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor, nn

from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import REPORT
from yolo_lossplug.ultralytics_hook.attached import ATTRIBUTE, OnAssigner, on_assigner
from yolo_lossplug.ultralytics_hook.counts import Meter
from yolo_lossplug.ultralytics_hook.derived import Derived, derive


class WatchedMixin(Derived):
    """An assigner of the host whose selected anchors are counted before conflicts are resolved."""

    def select_highest_overlaps(self, mask_pos: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return what the host's method does, of the selected anchors (b, n, A)."""
        attached = on_assigner(self)
        if attached.meter is not None:
            attached.claims.append(mask_pos.sum(-2).flatten())
        return super().select_highest_overlaps(mask_pos, *args, **kwargs)  # type: ignore[misc]


def watch(assigner: Any, meter: Optional[Meter]) -> None:
    """Count what an assigner assigns; without a meter nothing is counted.

    The fast engine does not call the assigner, or calls it without gradients; it adds to the meter itself.

    Raises:
        LossPlugError: If it is not a module, and cannot have a hook.
    """
    if not isinstance(assigner, nn.Module):
        raise LossPlugError(
            f"{REPORT} cannot be used with {type(assigner).__name__}, which is not an nn.Module; remove it."
        )
    on_assigner(assigner).meter = meter
    if hasattr(assigner, "select_highest_overlaps"):
        derive(WatchedMixin, assigner)
    if count_outputs not in assigner._forward_hooks.values():
        assigner.register_forward_pre_hook(forget)
        assigner.register_forward_hook(count_outputs)


def meter_of(assigner: Any) -> Optional[Meter]:
    """Return the meter of an assigner, None if nothing is counted."""
    attached = getattr(assigner, ATTRIBUTE, None)
    return attached.meter if isinstance(attached, OnAssigner) else None


def take_claims(assigner: Any) -> Optional[Tensor]:
    """Return the numbers of gts that selected each anchor in the last call, and forget them; None if unknown."""
    claims = on_assigner(assigner).claims
    taken = torch.cat(claims) if claims else None
    claims.clear()
    return taken


def forget(assigner: Any, _: Any) -> None:
    """Forget the claims of an earlier call, such as one of a validation, before a call of the assigner."""
    on_assigner(assigner).claims.clear()


def count_outputs(assigner: Any, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
    """Count the outputs of an assigner of the host, in a hook because its `forward` runs without gradients."""
    if (meter := meter_of(assigner)) is None or not torch.is_grad_enabled():
        return  # the fast engine takes the claims of a call without gradients
    pred_boxes, labels, gt_boxes, mask = inputs[1].flatten(0, 1), inputs[3], inputs[4], inputs[5]
    first = torch.arange(len(gt_boxes), device=gt_boxes.device).unsqueeze(1) * gt_boxes.shape[1]
    slot, is_positive = (outputs[4].long() + first).flatten(), outputs[3].flatten().bool()
    if pred_boxes.device.type == "cpu":  # a GPU would have to sync, and the other anchors cost it little
        index = is_positive.nonzero().squeeze(1)
        slot, is_positive, pred_boxes = slot[index], is_positive[index], pred_boxes[index]
    meter.add(gt_boxes, mask, slot, is_positive, pred_boxes, labels, take_claims(assigner))

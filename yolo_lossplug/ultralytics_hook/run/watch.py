# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which assigner counts what it assigns, and in which meter."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import nn

from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import REPORT
from yolo_lossplug.ultralytics_hook.attached import ATTRIBUTE, OnAssigner, on_assigner
from yolo_lossplug.ultralytics_hook.run.counts import Meter


def watch(assigner: Any, meter: Optional[Meter]) -> None:
    """Count what an assigner assigns; without a meter nothing is counted.

    The fast engine assigns without asking the assigner, or asks it where no gradient is: it adds to the meter itself.

    Raises:
        LossPlugError: If it is no module, and cannot be watched.
    """
    if not isinstance(assigner, nn.Module):
        raise LossPlugError(f"{REPORT} cannot be used with {type(assigner).__name__}, which is no module; remove it.")
    on_assigner(assigner).meter = meter
    if record not in assigner._forward_hooks.values():
        assigner.register_forward_hook(record)


def meter_of(assigner: Any) -> Optional[Meter]:
    """Return the meter of an assigner, None if nothing is counted."""
    attached = getattr(assigner, ATTRIBUTE, None)
    return attached.meter if isinstance(attached, OnAssigner) else None


def record(assigner: Any, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
    """Count what an assigner of the host has answered; its own `forward` knows no gradient, what is around it does."""
    meter = meter_of(assigner)
    if meter is None:
        return
    found, objects, mask = inputs[1].flatten(0, 1), inputs[4], inputs[5]
    first = torch.arange(len(objects), device=objects.device).unsqueeze(1) * objects.shape[1]
    place, is_positive = (outputs[4].long() + first).flatten(), outputs[3].flatten().bool()
    if found.device.type == "cpu":  # a GPU would have to be waited for, and takes no time for the other anchors
        index = is_positive.nonzero().squeeze(1)
        place, is_positive, found = place[index], is_positive[index], found[index]
    meter.add(objects, mask, place, is_positive, found)

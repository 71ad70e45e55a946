# SPDX-License-Identifier: AGPL-3.0-or-later
"""How long the comparisons that `lossplug inspect` advises take, by a training step that is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

from torch.optim import SGD

from yolo_lossplug.tools.inspect.facts import Pace
from yolo_lossplug.ultralytics_hook.console import quiet
from yolo_lossplug.ultralytics_hook.host import device_of
from yolo_lossplug.ultralytics_hook.trial import one_step, timing

MAX_IMGSZ_CPU, IMAGES_CPU = 320, 2
"""Side and images of a step on a CPU; longer sides take longer by their area."""
STEPS = 3


def pace(args: Mapping[str, Any], imgsz: int, images: int) -> Optional[Pace]:
    """Return how fast a model trains on the device that a comparison would take; None if no step can be taken.

    Args:
        args: ``model``, ``data``, ``batch`` and ``device``, as `yolo train` takes them.
        imgsz: Side of the input.
        images: Images of an epoch.
    """
    device = device_of(args.get("device"))
    is_cpu = device.type == "cpu"
    size, batch = (min(imgsz, MAX_IMGSZ_CPU), IMAGES_CPU) if is_cpu else (imgsz, int(args.get("batch", 16)))
    try:
        with quiet():
            one = one_step.trial({**args, "imgsz": size, "batch": batch, "device": args.get("device")})
            criterion, optimizer = one_step.criterion_of(one, is_stock=True), SGD(one.model.parameters(), lr=0.0)
            takes = (timing.training_step(one.model, optimizer, criterion, one.batch, not is_cpu) for _ in range(STEPS))
            seconds = min([*takes][1:])
    except Exception:  # of a model or data with which only a training shows that it cannot
        return None
    return Pace(seconds / batch / size**2, images, "this CPU" if is_cpu else str(device))

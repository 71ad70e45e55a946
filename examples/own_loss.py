# SPDX-License-Identifier: AGPL-3.0-or-later
"""A user-defined box loss, with an option that is a training key.

    python examples/own_loss.py
    yolo train model=yolov8n.yaml data=coco128.yaml loss=examples/own_loss.py:log_cosh log_cosh_scale=2

You should see `LossPlug: box log-cosh(log_cosh_scale=2.0) · ...` before the first epoch, with the second command the
path of the file in place of the name.
"""

import math
import sys
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F

from yolo_lossplug import Option, box_loss


@box_loss("log-cosh", formula="mean ln cosh(s·(p − t))")
def log_cosh(
    pred: torch.Tensor,
    target: torch.Tensor,
    *,
    log_cosh_scale: Annotated[float, Option("factor of the distance in grid cells", above=0)] = 1.0,
) -> torch.Tensor:
    """Log-cosh = mean over the four coordinates of ln cosh(s·(p − t)): a smooth L1 without a kink."""
    d = log_cosh_scale * (pred - target).abs()
    return (d + F.softplus(-2 * d) - math.log(2)).mean(-1)  # ln cosh d without overflow


if __name__ == "__main__":
    from ultralytics import YOLO
    from ultralytics.cfg import smart_value

    data = Path(__file__).parent.parent / "configs" / "data" / "shapes128.yaml"
    cli_args = {key: smart_value(value) for key, value in (word.split("=", 1) for word in sys.argv[1:])}
    keys = {"epochs": 1, "imgsz": 96, "plots": False, **cli_args}
    YOLO("yolov8n.yaml").train(data=str(data), loss="log-cosh", log_cosh_scale=2.0, **keys)

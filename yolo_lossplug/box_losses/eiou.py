# SPDX-License-Identifier: AGPL-3.0-or-later
"""Zhang et al., Focal and Efficient IOU Loss for Accurate Bounding Box Regression, Neurocomputing 2022."""

from __future__ import annotations

from torch import Tensor

from yolo_lossplug.boxes import Pair, ratio
from yolo_lossplug.forms import BoxKernel, BoxKind
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import overlap_loss

PAPER = Paper(
    "https://arxiv.org/abs/2101.08158",
    "Zhang, Yi-Fan and Ren, Weiqiang and Zhang, Zhang and Jia, Zhen and Wang, Liang and Tan, Tieniu",
    "Focal and Efficient IOU Loss for Accurate Bounding Box Regression",
    "Neurocomputing",
    2022,
    journal="Neurocomputing",
    volume="506",
    pages="146--157",
    doi="10.1016/j.neucom.2022.07.042",
)


@overlap_loss(
    "eiou",
    aliases=("efficient-iou",),
    formula="1 − IoU + ρ²/c² + (w − W)²/cw² + (h − H)²/ch²",
    latex=r"L = 1 - \text{IoU} + \frac{\rho^2}{c^2} + \frac{(w - W)^2}{c_w^2} + \frac{(h - H)^2}{c_h^2}",
    paper=PAPER,
    note="Efficient IoU; other libraries use the same abbreviation for Extended IoU, a different loss.",
    kernel=lambda: BoxKernel(BoxKind.EIOU),
)
def eiou(pair: Pair) -> tuple[Tensor, ...]:
    """EIoU loss = 1 − IoU + ρ²/c² + (w − W)²/cw² + (h − H)²/ch², in [0, 4), with cw, ch the enclosing sides.

    The penalties are the distance of the centres and the differences of widths and heights. Nothing is detached.
    """
    width, height = ratio((pair.size - pair.target_size).square(), pair.hull_size.square()).unbind(-1)
    return pair.centre_distance, width, height

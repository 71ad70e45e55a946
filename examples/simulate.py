# SPDX-License-Identifier: AGPL-3.0-or-later
"""The regression experiment of the DIoU paper: boxes take gradient steps towards their targets under several losses.

    python examples/simulate.py loss=iou,giou,diou,ciou,eiou points=50 file=simulate.png

After Zheng et al., AAAI 2020: anchor points lie uniformly in a disc of radius 3 around (10, 10), 5,000 in the paper.
Each has boxes of 7 areas and 7 aspect ratios, and each of these moves to 7 targets of area 1 at (10, 10) by 200 steps

    B ← B − η·(2 − IoU)·∂L/∂B with B = (x, y, w, h), centre and size,

with η = 0.1, from step 160 on 0.01, and from 180 on 0.001. Gradients are those of the formulas, by automatic
differentiation; those in the authors' program differ, and so does its order of the losses.

You should see the mean error of each loss in grid cells, and a plot of it against the step. That of iou stays above 3:
it does not move a box that does not overlap its target. None of this tells which loss trains a better detector.
"""

import math
import sys
from pathlib import Path

import torch

from yolo_lossplug import charts, create_box_loss

CENTRE, RADIUS, STEPS = 10.0, 3.0, 200
AREAS = (0.5, 0.67, 0.75, 1.0, 1.33, 1.5, 2.0)
ASPECTS = (1 / 4, 1 / 3, 1 / 2, 1.0, 2.0, 3.0, 4.0)
STRIDE, IMGSZ = 8.0, 160.0
"""Pixels of a cell, and side of the image in pixels, for losses that need them."""
MIN_SIDE = 1e-3
"""Smallest side of a box, in cells; in the authors' program, boxes turn inside out."""
IOU_LOSS = create_box_loss("iou")


def draw_boxes(points, seed=0):
    """Return boxes and their targets by x, y, w, h, (4, N) each: all shapes at each of the anchor points."""
    generator = torch.Generator().manual_seed(seed)
    distance, angle = torch.rand(2, points, generator=generator)
    distance, angle = RADIUS * distance.sqrt(), 2 * math.pi * angle
    kinds = torch.arange(float(points)), torch.tensor(AREAS), torch.tensor(ASPECTS), torch.tensor(ASPECTS)
    point, area, aspect, aspect_of_target = torch.cartesian_prod(*kinds).t()
    x, y = CENTRE + distance[point.long()] * torch.stack((angle.cos(), angle.sin()))[:, point.long()]
    centre = torch.full_like(x, CENTRE)
    boxes = torch.stack((x, y, (area * aspect).sqrt(), (area / aspect).sqrt()))
    return boxes, torch.stack((centre, centre, aspect_of_target.sqrt(), aspect_of_target.rsqrt()))


def corners(boxes):
    """Return boxes x, y, w, h (4, N) as x1, y1, x2, y2 (N, 4)."""
    return torch.cat((boxes[:2] - boxes[2:] / 2, boxes[:2] + boxes[2:] / 2)).t()


def step(loss, boxes, targets, rate):
    """Return boxes (4, N) after one step of gradient descent."""
    boxes = boxes.detach().requires_grad_()
    values = loss(corners(boxes), corners(targets), stride=STRIDE, imgsz=IMGSZ)
    (gradient,) = torch.autograd.grad(values.sum(), boxes)
    with torch.no_grad():
        factor = rate * (1 + IOU_LOSS(corners(boxes), corners(targets)))
        moved = boxes - factor * gradient
        moved[2:].clamp_(min=MIN_SIDE)
    return moved


def errors(name, boxes, targets):
    """Return the mean of |Δx| + |Δy| + |Δw| + |Δh| before the first step and after each."""
    loss, found = create_box_loss(name), []
    for i in range(STEPS + 1):
        found.append((boxes - targets).abs().sum(0).mean().item())
        rate = 0.1 if i < 0.8 * STEPS else 0.01 if i < 0.9 * STEPS else 0.001
        boxes = step(loss, boxes, targets, rate)
    return found


def main(loss="iou,giou,diou,ciou,eiou", points="50", file="simulate.png"):
    """Move the boxes with each loss, print the errors, and draw them."""
    torch.set_num_threads(1)  # threads wait for each other longer than such short operations take
    boxes, targets = draw_boxes(int(points))
    figure, ((axes,),) = charts.figure(1, 1, 6.4, 4.8)
    names = loss.split(",")
    for i, (name, style) in enumerate(zip(names, charts.styles())):
        found = errors(name, boxes, targets)
        print(f"{name:<12} " + "  ".join(f"step {at}: {found[at]:.4f}" for at in (0, 50, 100, STEPS)))
        axes.plot(found, label=name, markevery=(3 * i % 20, 20), **style)
    axes.set(xlabel="step", ylabel="mean error (cells)", yscale="log")
    axes.grid(alpha=0.3, which="both")
    figure.suptitle(f"|Δx| + |Δy| + |Δw| + |Δh| of {boxes.shape[1]:,} boxes on the way to their targets", fontsize=11)
    charts.legend_below(figure, axes, charts.legend_columns(names, 70))
    print(f"written to {charts.save(figure, Path(file))}")


if __name__ == "__main__":
    main(**dict(word.split("=", 1) for word in sys.argv[1:]))

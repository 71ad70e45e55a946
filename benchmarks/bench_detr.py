# SPDX-License-Identifier: AGPL-3.0-or-later
"""Cost of the hook in the criterion of RT-DETR, and that of another loss: python benchmarks/bench_detr.py.

A step is the criterion's forward and backward to the outputs of the head, on one thread: 7 layers of 300 queries and of
denoising, 80 classes, 4 images with 7 objects each. All sides alternate in one process; numbers are medians.

First the steps: what they cost more than the stock step is the hook and the loss. "giou" and "varifocal", which the
host has itself and which therefore stay its own in a run, go through our methods here.

Then the hook alone: the time of a method less that of its loss on ready corners or targets, times the calls in a step,
over the stock step. The host's methods prepare boxes and targets as well, which is the "host's" of a row; the "hook" is
what ours need more.
"""

import statistics
import time
from unittest import mock

import torch
import torch.nn.functional as F
import ultralytics
from torch.autograd import grad
from ultralytics.models.utils.loss import RTDETRDetectionLoss
from ultralytics.utils.metrics import bbox_iou

from yolo_lossplug.selection.select import select
from yolo_lossplug.ultralytics_hook import detr
from yolo_lossplug.ultralytics_hook.attached import on_criterion
from yolo_lossplug.ultralytics_hook.criterion import plug

IMAGES, OBJECTS, CLASSES, LAYERS, QUERIES, GROUPS = 4, 7, 80, 7, 300, 14
STEPS, CALLS, SIZE = 60, 300, (640, 640)


def draw():
    """Return the arguments of a step, as the model calls its criterion, and the outputs of the head."""
    n = IMAGES * OBJECTS
    boxes = torch.rand(n, 4) * 0.3 + torch.tensor([0.3, 0.3, 0.05, 0.05])
    batch = {"cls": torch.randint(CLASSES, (n,)), "bboxes": boxes, "gt_groups": [OBJECTS] * IMAGES}
    preds = torch.rand(LAYERS, IMAGES, QUERIES, 4) * 0.5 + 0.1, torch.randn(LAYERS, IMAGES, QUERIES, CLASSES) - 3
    repeated = boxes.view(IMAGES, OBJECTS, 4).repeat(1, GROUPS, 1)
    dn_boxes = (repeated * (1 + 0.1 * torch.randn(LAYERS, *repeated.shape))).clamp(0, 1)
    dn_scores = torch.randn(LAYERS, *repeated.shape[:2], CLASSES) - 3
    meta = {
        "dn_pos_idx": [torch.arange(OBJECTS * GROUPS)] * IMAGES,
        "dn_num_group": GROUPS,
        "dn_gt_idx": [torch.arange(OBJECTS)] * IMAGES,
    }
    leaves = [leaf.requires_grad_() for leaf in (*preds, dn_boxes, dn_scores)]
    return {"preds": preds, "batch": batch, "dn_bboxes": dn_boxes, "dn_scores": dn_scores, "dn_meta": meta}, leaves


def stock():
    """Return the host's criterion."""
    return RTDETRDetectionLoss(nc=CLASSES, use_vfl=True)


def ours(**keys):
    """Return a criterion with the selected losses, also with those that the host has itself."""
    with mock.patch.object(detr, "is_hosts", lambda *args: False):
        return plug(stock(), select({**keys, "task": "rtdetr"}))


def medians(functions, n):
    """Return the median seconds of functions that alternate, by name."""
    rows = [[timed(function) for function in functions.values()] for _ in range(n + 5)][5:]
    return dict(zip(functions, map(statistics.median, zip(*rows))))


def timed(function):
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def step(made):
    """Return a step of a criterion."""
    args, leaves = PROBLEM
    return lambda: grad(sum(made(**args).values()), leaves)


def box_calls(n):
    """Return the box method on n pairs with backward, ours and the host's, and the same without preparation."""
    made, hosts = ours(loss="giou"), stock()
    loss = on_criterion(made).terms.others
    on_criterion(made).terms.is_last = False
    pred, target = (torch.rand(n, 4) * 0.3 + 0.2).requires_grad_(), torch.rand(n, 4) * 0.3 + 0.2
    scale = detr.DetrLosses().scale_of(pred)
    p, t = detr.pixel_corners(pred.detach(), scale).requires_grad_(), detr.pixel_corners(target, scale)

    def method(criterion):
        return lambda: grad(list(criterion._get_loss_bbox(pred, target).values()), [pred])

    def bare(function):
        def call():
            l1 = 5 * F.l1_loss(pred, target, reduction="sum") / n
            return grad([l1, function(p, t).sum() / n * 2], [pred, p])

        return call

    return {
        "ours": method(made),
        "our loss": bare(loss),
        "stock": method(hosts),
        "stock loss": bare(lambda p, t: 1 - bbox_iou(p, t, xywh=False, GIoU=True)),
    }


def class_calls(n_queries):
    """Return the class method with backward, ours and the host's, and the same without preparation."""
    made, hosts, n = ours(cls_loss="varifocal", cls_vfl_alpha=0.25, cls_vfl_gamma=1.5), stock(), IMAGES * OBJECTS
    logits = (torch.randn(IMAGES, n_queries, CLASSES) - 3).requires_grad_()
    classes, scores = torch.full((IMAGES, n_queries), CLASSES), torch.zeros(IMAGES, n_queries)
    classes[:, :OBJECTS], scores[:, :OBJECTS] = 3, 0.6
    soft = detr.soft_targets(classes, scores, CLASSES)
    hard = (soft > 0).long()

    def method(criterion):
        return lambda: grad(list(criterion._get_loss_class(logits, classes, scores, n).values()), [logits])

    return {
        "ours": method(made),
        "our loss": lambda: grad(detr.per_object(on_criterion(made).terms.cls(logits, soft), n), [logits]),
        "stock": method(hosts),
        "stock loss": lambda: grad(hosts.vfl(logits, soft, hard) / n * n_queries, [logits]),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    PROBLEM = draw()
    print(f"ultralytics {ultralytics.__version__} · torch {torch.__version__} · 1 thread")
    sides = {
        "stock": stock(),
        "loss=giou": ours(loss="giou"),
        "loss=eiou": ours(loss="eiou"),
        "loss=ciou+nwd": ours(loss="ciou+nwd"),
        "cls_loss=varifocal": ours(cls_loss="varifocal", cls_vfl_alpha=0.25, cls_vfl_gamma=1.5),
        "cls_loss=mal": ours(cls_loss="mal"),
    }
    with detr.input_size(*SIZE):
        steps = medians({name: step(made) for name, made in sides.items()}, STEPS)
        for name, seconds in steps.items():
            print(f"{name:24} {seconds * 1e3:7.2f} ms {seconds / steps['stock'] - 1:+7.1%}")
        for kind, calls_of, sizes in (
            ("box", box_calls, (IMAGES * OBJECTS, IMAGES * OBJECTS * GROUPS)),
            ("class", class_calls, (QUERIES, OBJECTS * GROUPS)),
        ):
            found = [medians(calls_of(size), CALLS) for size in sizes]
            ours_alone = LAYERS * sum(row["ours"] - row["our loss"] for row in found)
            hosts_alone = LAYERS * sum(row["stock"] - row["stock loss"] for row in found)
            print(
                f"{kind} method without loss   {ours_alone * 1e3:6.2f} ms, host's {hosts_alone * 1e3:6.2f} ms, "
                f"hook {(ours_alone - hosts_alone) / steps['stock']:+.1%} of the stock step"
            )

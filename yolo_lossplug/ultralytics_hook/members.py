# SPDX-License-Identifier: AGPL-3.0-or-later
"""Our losses as members of a criterion of Ultralytics: `bbox_loss` and `bce`, and the criterion of classify."""

from __future__ import annotations

import functools
from typing import Any, Callable, Optional

import torch
from torch import Tensor, nn

from yolo_lossplug.selection.keys import STOCK_BOX
from yolo_lossplug.selection.loss import Loss, create_box_loss
from yolo_lossplug.selection.select import Selection
from yolo_lossplug.ultralytics_hook.originals import BboxLoss


class PluggedBboxLoss(nn.Module):
    """The host's box loss with another IoU term; its DFL (or L1) term stays the host's.

    Args:
        stock: The host's module.
        loss: Box loss to use.
        stride: Strides of the pyramid levels in pixels.
    """

    def __init__(self, stock: BboxLoss, loss: Loss, stride: Tensor) -> None:
        super().__init__()
        self.stock, self.loss, self.stride = stock, loss, stride
        if loss.state is not None:  # all ranks have the same state tensors from the first step on
            empty = stride.new_zeros((0, 4)).float()
            with torch.no_grad():
                loss(empty, empty)

    def forward(
        self,
        pred_dist: Tensor,
        pred_bboxes: Tensor,
        anchor_points: Tensor,
        target_bboxes: Tensor,
        target_scores: Tensor,
        target_scores_sum: Tensor,
        fg_mask: Tensor,
        *extra: Any,
    ) -> tuple[Tensor, Tensor]:
        """Return the IoU and the DFL term, as the host's module does; boxes are in grid cells of their level."""
        # The host's CIoU of the detached boxes is discarded: simpler than a copy of its DFL for every release.
        others = anchor_points, target_bboxes, target_scores, target_scores_sum, fg_mask, *extra
        dfl = self.stock(pred_dist, pred_bboxes.detach(), *others)[1]
        rows = fg_mask.nonzero(as_tuple=True)
        weight = target_scores[rows].sum(-1)
        per_box = self.loss(pred_bboxes[rows], target_bboxes[rows], **self.context(anchor_points, rows[1]))
        return (per_box * weight).sum() / target_scores_sum, dfl

    def context(self, anchor_points: Tensor, anchors: Tensor) -> dict[str, Tensor]:
        """Return stride (N, 1) and network input size (2,) in pixels, from the anchors, if the loss needs them."""
        if not self.loss.context & {"stride", "imgsz"}:
            return {}
        # Older releases do not pass them. Every level starts at the cell centre (0.5, 0.5), and only there.
        level = (anchor_points == 0.5).all(-1).cumsum(0) - 1
        stride = self.stride.to(anchor_points.device)[level].unsqueeze(-1)
        imgsz = ((anchor_points + 0.5) * stride).amax(0).flip(0)
        return {"stride": stride[anchors], "imgsz": imgsz}


class PluggedClassLoss(nn.Module):
    """A class loss in place of the host's elementwise BCE.

    Args:
        loss: Class loss to use.
        smoothing: ε of label smoothing: targets of assigned anchors become y·(1 − ε/2) + (1 − y)·ε/2.
        is_weighted: Whether the host multiplies the result by its own class weights.
        weights: Weights of the classes (classes,), None for none.
    """

    def __init__(
        self, loss: Loss, smoothing: float = 0.0, is_weighted: bool = False, weights: Optional[Tensor] = None
    ) -> None:
        super().__init__()
        self.loss, self.smoothing, self.is_weighted, self.weights = loss, smoothing, is_weighted, weights
        self.lossplug: Optional[Callable[[Tensor, Tensor], Optional[Tensor]]] = None

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each element; `pred` are logits (b, anchors, classes), `target` their soft targets."""
        silenced = None if getattr(self.loss, "state", None) is None else self.lossplug and self.lossplug(pred, target)
        if self.smoothing:
            # Only assigned anchors: smoothing the other 8,000 negatives of every class would dominate the sum.
            assigned = target.amax(-1, keepdim=True) > 0
            target = torch.where(assigned, target * (1 - self.smoothing) + self.smoothing / 2, target)
        if silenced is None:
            result = self.loss(pred, target)
        else:  # a loss that keeps statistics does not see what is silenced
            losses = self.loss(pred[~silenced], target[~silenced])
            result = losses.new_zeros(pred.shape).masked_scatter(~silenced, losses)
        if self.weights is not None:
            return result * self.weights
        # The host multiplies in place, which autograd forbids on a result that backward reads, as that of an exp.
        return result.clone() if self.is_weighted else result


class PluggedSoftmaxLoss:
    """The criterion of the classify task with another loss, and weights of the classes (classes,), None for none."""

    def __init__(self, stock: Any, selection: Selection, weights: Optional[list[float]]) -> None:
        self.stock, self.lossplug, self.loss, self.weights = stock, selection, selection.cls, weights

    def __call__(self, preds: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Any]:
        """Return the mean loss of the images, weighted as `torch.nn.CrossEntropyLoss` does, and what is logged."""
        items = self.stock(preds, batch)[1]
        logits, labels = preds[1] if isinstance(preds, (list, tuple)) else preds, batch["cls"]
        count, smoothing = logits.shape[-1], self.lossplug.cls_smoothing
        targets = torch.nn.functional.one_hot(labels.long(), count) * (1 - smoothing) + smoothing / count
        terms = self.loss(logits, targets.to(logits.dtype))
        if self.weights is None:
            loss = terms.sum(-1).mean()
        else:
            weights = torch.tensor(self.weights, dtype=terms.dtype, device=terms.device)
            loss = (terms * weights).sum() / weights[labels.long()].sum().clamp(min=1e-12)
        return loss, dict.fromkeys(items, loss.detach()) if isinstance(items, dict) else loss.detach()


def box_loss_error() -> float:
    """Return the maximum relative error of our CIoU in the host's criterion, against the host's own, on random boxes.

    It shows whether the host still calls its box loss, weights and sums it, and represents boxes as we expect.
    """
    return _box_loss_error(BboxLoss.forward)


@functools.lru_cache(maxsize=4)
@torch.no_grad()
def _box_loss_error(forward: Any) -> float:
    rng = torch.Generator().manual_seed(0)
    anchors = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="xy"), -1).view(-1, 2) + 0.5
    low = anchors - torch.rand(2, 64, 2, generator=rng) * 3
    boxes = torch.cat((low, low + 1 + torch.rand(2, 64, 2, generator=rng) * 4), -1)
    targets = boxes + torch.randn(2, 64, 4, generator=rng) * 0.1
    scores = torch.rand(2, 64, 3, generator=rng)
    foreground = torch.rand(2, 64, generator=rng) > 0.5
    args: tuple[Any, ...] = (torch.randn(2, 64, 64, generator=rng), boxes, anchors, targets, scores, scores.sum())
    stock = BboxLoss(16)
    extra: tuple[Any, ...] = (torch.tensor([64.0, 64.0]), torch.full((64, 1), 8.0))
    try:
        expected = stock(*args, foreground, *extra)
    except TypeError:  # older releases take fewer arguments
        extra = ()
        expected = stock(*args, foreground)
    actual = PluggedBboxLoss(stock, create_box_loss(STOCK_BOX), torch.tensor([8.0]))(*args, foreground, *extra)
    return max(float((a - b).abs() / a.abs().clamp(min=1e-9)) for a, b in zip(expected, actual))

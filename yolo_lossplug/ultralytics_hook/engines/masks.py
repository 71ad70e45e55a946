# SPDX-License-Identifier: AGPL-3.0-or-later
"""The mask term of segment models inside boxes, in place of the host's `calculate_segmentation_loss`."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils import loss as host_loss
from ultralytics.utils.ops import xyxy2xywh

from yolo_lossplug.sparse.distance_term import gather
from yolo_lossplug.sparse.mask_term import MaskedObjects, mask_sum
from yolo_lossplug.ultralytics_hook import patching
from yolo_lossplug.ultralytics_hook.derived import Derived, derive, has_stock_methods
from yolo_lossplug.ultralytics_hook.engines.agreement import relative_error
from yolo_lossplug.ultralytics_hook.engines.fast import uncompiled
from yolo_lossplug.ultralytics_hook.originals import v8SegmentationLoss

SEAMS = ("calculate_segmentation_loss", "single_mask_loss")
"""Methods that make the host's mask term what it is."""


class MaskMixin(Derived):
    """A segment criterion whose masks are drawn inside boxes only."""

    overlap: bool

    @uncompiled
    def calculate_segmentation_loss(
        self,
        fg_mask: Tensor,
        masks: Tensor,
        target_gt_idx: Tensor,
        target_bboxes: Tensor,
        batch_idx: Tensor,
        proto: Tensor,
        pred_masks: Tensor,
        imgsz: Tensor,
        *extra: Any,
    ) -> Tensor:
        """Return the mask term, as the host's method does; `extra` are further arguments of older releases."""
        # Older releases leave out images beyond the number of objects where masks may overlap.
        if not fg_mask.any() or not (self.overlap or len(masks) >= len(proto)):
            inputs = fg_mask, masks, target_gt_idx, target_bboxes, batch_idx, proto, pred_masks, imgsz
            return super().calculate_segmentation_loss(*inputs, *extra)  # type: ignore[misc]
        anchor, slot, count = positives_by_gt(fg_mask, target_gt_idx)
        image, first = anchor // fg_mask.shape[1], count.cumsum(0) - count
        height, width = proto.shape[-2:]
        # The host's operations in their order, since a rounding may move a side over the centre of a pixel.
        boxes = target_bboxes.flatten(0, 1)[anchor] / imgsz[[1, 0, 1, 0]]
        area = xyxy2xywh(boxes)[:, 2:].prod(1)
        boxes = boxes * torch.tensor([width, height, width, height], device=proto.device)
        rectangles = pixels_inside(boxes, image, masks)
        number = slot[first] + 1 if self.overlap else None
        plane = image[first] if self.overlap else planes(batch_idx, image[first], slot[first])
        objects = MaskedObjects(
            count, image[first], rectangles[first], plane, number, 1 / (area[first] * (height * width))
        )
        return mask_sum(gather(pred_masks.transpose(1, 2), anchor), proto, masks, objects) / fg_mask.sum()


def positives_by_gt(fg_mask: Tensor, target_gt_idx: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return positives (n,) among the anchors of all images, and gt slots (n,), by image and slot; and counts (O,)."""
    anchor = fg_mask.flatten().nonzero().squeeze(1)
    slot = target_gt_idx.flatten()[anchor].long()
    key = anchor // fg_mask.shape[1] * (slot.max() + 1) + slot
    order = key.argsort(stable=True)
    _, count = key[order].unique_consecutive(return_counts=True)
    return anchor[order], slot[order], count


def pixels_inside(boxes: Tensor, image: Tensor, masks: Tensor) -> Tensor:
    """Return the rectangles (n, 4) of pixels that the host's crop keeps: first column and row, last plus 1 of both.

    Releases round in different ways, some of them depending on the number of boxes, so the host is asked, with masks of
    one column and of one row.

    Args:
        boxes: Boxes (n, 4) in pixels of the masks, ordered by image.
        image: Their images (n,).
        masks: Gt masks (m, H, W).
    """
    height, width = masks.shape[-2:]
    parts = []
    for group in boxes.split(image.unique_consecutive(return_counts=True)[1].tolist()):
        sides = []
        for axis, size in enumerate((width, height)):
            shape = (len(group), 1, size) if axis == 0 else (len(group), size, 1)
            line = group.clone()
            line[:, [1 - axis, 3 - axis]] = line.new_tensor([0.0, 1.0])
            is_kept = host_loss.crop_mask(line.new_ones(shape), line).flatten(1) > 0
            start = (is_kept.cumsum(1) == 0).sum(1)
            sides.append((start, start + is_kept.sum(1)))
        parts.append(torch.stack((sides[0][0], sides[1][0], sides[0][1], sides[1][1]), 1))
    return torch.cat(parts)


def planes(batch_idx: Tensor, image: Tensor, slot: Tensor) -> Tensor:
    """Return the masks (O,) of gts in images (O,) and slots (O,), where each gt of a batch has its own."""
    images = batch_idx.flatten().long()
    order = images.argsort(stable=True)
    first = torch.searchsorted(images[order], image)
    return order[first + slot]


def can_have_masks(criterion: Any) -> bool:
    """Return whether masks of a criterion may be drawn inside boxes: it is a segment one with the host's mask term."""
    return has_stock_methods(criterion, v8SegmentationLoss, SEAMS)


@functools.cache
@torch.inference_mode(False)  # the first step may be a validation step
@torch.enable_grad()
def mask_errors(device: str) -> tuple[float, float]:
    """Return the maximum relative error of the mask term, and of its gradients in norm, on random problems."""
    rng = torch.Generator().manual_seed(0)
    parameters, errors = patching.parameters_of(v8SegmentationLoss.calculate_segmentation_loss), []
    takes_overlap = any(parameter.name == "overlap" for parameter in parameters)  # in releases before 8.4
    for overlap, n in ((True, 3), (False, 3), (True, 30)):
        criterion = v8SegmentationLoss.__new__(v8SegmentationLoss)
        criterion.overlap = overlap
        fixed, inputs = drawn_masks(overlap, n, rng, device)
        size, results = torch.tensor([96.0, 128.0], device=device), []
        for is_ours in (False, True):
            leaves = [tensor.clone().requires_grad_() for tensor in inputs]
            if is_ours:
                derive(MaskMixin, criterion)
            with torch.autocast(torch.device(device).type, enabled=False):
                extra = (overlap,) if takes_overlap else ()
                loss = criterion.calculate_segmentation_loss(*fixed, *leaves, size, *extra)
            results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
        errors.append([relative_error(one, other) for one, other in zip(*results)])
    return max(error[0] for error in errors), max(max(error[1:]) for error in errors)


def drawn_masks(overlap: bool, n: int, rng: torch.Generator, device: str) -> tuple[list[Tensor], list[Tensor]]:
    """Return what the mask term takes for two images with n objects each: what is fixed, and prototypes and weights."""
    inputs = [torch.randn(2, 8, 24, 32, generator=rng), torch.randn(2, 64, 8, generator=rng)]
    slots = torch.randint(n, (2, 64), generator=rng)
    gts = torch.rand(2, n, 2, 2, generator=rng).mul_(140).sub_(10).sort(2).values.flatten(2)
    masks = torch.randint(n + 1, (2 if overlap else 2 * n, 24, 32), generator=rng).float()
    fixed = [
        torch.rand(2, 64, generator=rng) < 0.9,
        masks if overlap else masks.clamp(max=1),
        slots,
        gts.gather(1, slots.unsqueeze(-1).expand(-1, -1, 4)),
        torch.arange(2).repeat_interleave(n).view(-1, 1),
    ]
    return [tensor.to(device) for tensor in fixed], [tensor.to(device) for tensor in inputs]

# SPDX-License-Identifier: AGPL-3.0-or-later
"""The keypoint terms of pose models at positives only: the host decodes the keypoints of every anchor."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from yolo_lossplug.sparse.distance_term import gather
from yolo_lossplug.ultralytics_hook import patching
from yolo_lossplug.ultralytics_hook.attached import on_criterion
from yolo_lossplug.ultralytics_hook.derived import Derived, derive, has_stock_methods
from yolo_lossplug.ultralytics_hook.engines.agreement import relative_error
from yolo_lossplug.ultralytics_hook.engines.fast import uncompiled
from yolo_lossplug.ultralytics_hook.originals import KeypointLoss, v8PoseLoss

SEAMS = ("loss", "kpts_decode", "calculate_keypoints_loss")
"""Methods that make the host's keypoint terms what they are."""
PARAMETERS = ("masks", "target_gt_idx", "keypoints", "stride_tensor", "target_bboxes", "pred_kpts")
"""What the host's method takes that can be called for positives of all images as for those of one."""


class KeypointMixin(Derived):
    """A pose criterion that decodes the keypoints of positives only."""

    def kpts_decode(self, anchor_points: Tensor, pred_kpts: Tensor) -> Tensor:
        """Return the outputs of the head as they are, and keep the anchor centres (A, 2) for the positives."""
        on_criterion(self).points = anchor_points
        return pred_kpts

    @uncompiled
    def calculate_keypoints_loss(
        self,
        masks: Tensor,
        target_gt_idx: Tensor,
        keypoints: Tensor,
        stride_tensor: Tensor,
        target_bboxes: Tensor,
        pred_kpts: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the location and the visibility term, as the host's method does.

        Positives are `masks` (b, A), with gt slots (b, A) and boxes (b, A, 4) in pixels. Keypoints are those of gts
        (b, n, K, 3) in pixels, and predicted are outputs of the head (b, A, K, d).
        """
        anchor = masks.flatten().nonzero().squeeze(1)
        image, cell = anchor // masks.shape[1], anchor % masks.shape[1]
        rows = gather(pred_kpts.flatten(2).transpose(1, 2), anchor).unflatten(1, pred_kpts.shape[2:])
        points = on_criterion(self).points[cell]
        slot = image * keypoints.shape[1] + target_gt_idx.flatten()[anchor]
        return super().calculate_keypoints_loss(  # type: ignore[misc]
            torch.ones_like(cell, dtype=torch.bool).unsqueeze(0),
            slot.unsqueeze(0),
            keypoints.flatten(0, 1).unsqueeze(0),
            stride_tensor[cell],
            target_bboxes.flatten(0, 1)[anchor].unsqueeze(0),
            super().kpts_decode(points, rows).unsqueeze(0),  # type: ignore[misc]
        )


def can_have_keypoints(criterion: object) -> bool:
    """Return whether a criterion is a pose one with the host's keypoint terms, which take the positives alone."""
    if not has_stock_methods(criterion, v8PoseLoss, SEAMS) or not all(hasattr(v8PoseLoss, name) for name in SEAMS):
        return False
    parameters = patching.parameters_of(v8PoseLoss.calculate_keypoints_loss)
    return tuple(parameter.name for parameter in parameters[1:]) == PARAMETERS


@functools.cache
@torch.inference_mode(False)  # the first step may be a validation step
@torch.enable_grad()
def keypoint_errors(device: str) -> tuple[float, float]:
    """Return the maximum relative error of the keypoint terms, and of their gradient in norm, on a random problem."""
    rng = torch.Generator().manual_seed(0)
    criterion = v8PoseLoss.__new__(v8PoseLoss)
    criterion.keypoint_loss = KeypointLoss(torch.full((5,), 0.2, device=device))
    criterion.bce_pose = nn.BCEWithLogitsLoss()
    slots, sides = torch.randint(3, (2, 64), generator=rng), torch.rand(2, 3, 2, generator=rng) * 60 + 4
    gts = torch.cat((torch.rand(2, 3, 2, generator=rng) * 60, sides), -1)
    gts[..., 2:] += gts[..., :2]
    points = torch.rand(2, 3, 5, 3, generator=rng) * 64
    points[..., 2] = torch.randint(3, (2, 3, 5), generator=rng)
    given = (
        torch.rand(2, 64, generator=rng) < 0.6,
        slots,
        points,
        torch.full((64, 1), 8.0),
        gts.gather(1, slots.unsqueeze(-1).expand(-1, -1, 4)),
    )
    outputs, centres = torch.randn(2, 64, 5, 3, generator=rng), torch.rand(64, 2, generator=rng).to(device) * 8
    results = []
    for is_ours in (False, True):
        leaf = outputs.to(device).requires_grad_()
        if is_ours:
            derive(KeypointMixin, criterion)
        with torch.autocast(torch.device(device).type, enabled=False):
            inputs = [tensor.to(device).clone() for tensor in given]
            terms = torch.stack(criterion.calculate_keypoints_loss(*inputs, criterion.kpts_decode(centres, leaf)))
        results.append((terms.detach(), *torch.autograd.grad(terms.sum(), leaf)))
    error, grad_error = (relative_error(one, other) for one, other in zip(*results))
    return error, grad_error

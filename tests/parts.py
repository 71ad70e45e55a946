# SPDX-License-Identifier: AGPL-3.0-or-later
"""Criteria with parts that somebody else has put in, each of which changes the loss."""

import torch
from torch import nn
from ultralytics.utils.loss import BboxLoss, v8DetectionLoss
from ultralytics.utils.tal import TaskAlignedAssigner


class Doubled(nn.BCEWithLogitsLoss):
    def forward(self, pred, target):
        return super().forward(pred, target) * 2


class Halved(BboxLoss):
    def forward(self, *args, **kwargs):
        return tuple(term / 2 for term in super().forward(*args, **kwargs))


class Shifted(v8DetectionLoss):
    def bbox_decode(self, anchor_points, pred_dist):
        return super().bbox_decode(anchor_points, pred_dist) + 0.25


class Smaller(v8DetectionLoss):
    def preprocess(self, targets, batch_size, scale_tensor):
        return super().preprocess(targets, batch_size, scale_tensor) * 0.9


class Pickier(TaskAlignedAssigner):
    def select_candidates_in_gts(self, *args, **kwargs):
        mask = super().select_candidates_in_gts(*args, **kwargs)
        return mask & (torch.arange(mask.shape[-1], device=mask.device) % 2 == 0)


class Softer(TaskAlignedAssigner):
    def forward(self, *args, **kwargs):
        labels, boxes, scores, *others = super().forward(*args, **kwargs)
        return labels, boxes, scores / 2 + 0.01, *others


class Smudger(TaskAlignedAssigner):
    def forward(self, *args, **kwargs):
        labels, boxes, *others = super().forward(*args, **kwargs)
        return labels, boxes * 0.95, *others


ASSIGNERS = {"assigner": Pickier, "soft targets": Softer, "other boxes": Smudger}


def with_part(part, made):
    """Return the criterion of a model, in which a part is another."""
    criterion = {"bbox_decode": Shifted, "preprocess": Smaller}.get(part, v8DetectionLoss)(made)
    if part == "bce":
        criterion.bce = Doubled(reduction="none")
    if part == "bbox_loss":
        criterion.bbox_loss = Halved(16).to(criterion.device)
    if part in ASSIGNERS:
        criterion.assigner = ASSIGNERS[part](10, 3, 0.5)
    return criterion

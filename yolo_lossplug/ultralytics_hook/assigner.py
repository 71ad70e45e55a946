# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ultralytics' task-aligned assigner on candidates only, and with a selectable overlap."""

from __future__ import annotations

import functools
from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn.functional import pad

from yolo_lossplug.selection.keys import STOCK_BOX, STOCK_ROTATED
from yolo_lossplug.selection.loss import Loss, assigner_overlap
from yolo_lossplug.selection.select import select
from yolo_lossplug.sparse.assign import Assignment, Measure, assign_pairs
from yolo_lossplug.sparse.grid import Level, levels_of_shapes, points_of_levels, shapes_of_points
from yolo_lossplug.sparse.topk import Gts, is_exact
from yolo_lossplug.ultralytics_hook import originals
from yolo_lossplug.ultralytics_hook.attached import on_assigner
from yolo_lossplug.ultralytics_hook.derived import Derived, derive, layers
from yolo_lossplug.ultralytics_hook.min_side import candidate_boxes, floor_of
from yolo_lossplug.ultralytics_hook.rotated import pair_shape, rotated_candidates

MIN_SPARSE = {"cpu": 300_000}
"""Minimum elements of (images, gts, anchors) at which the sparse form is faster, by device type."""
DENSE_ON_GPU = 30_000_000
"""The same for a GPU: up to there it holds the dense form easily, and is faster with it."""


class OverlapMixin(Derived):
    """An assigner that measures overlap with another IoU, and takes a `topk` above the number of anchors."""

    def iou_calculation(self, gt_bboxes: Tensor, pd_bboxes: Tensor) -> Tensor:
        """Return the overlap (N,) >= 0 of boxes (N, 4), x1 y1 x2 y2 in pixels; the host's own CIoU unless replaced."""
        overlap = on_assigner(self).overlap
        if overlap is None:
            return super().iou_calculation(gt_bboxes, pd_bboxes)  # type: ignore[misc]
        return overlap(pd_bboxes, gt_bboxes).to(pd_bboxes.dtype)

    def select_topk_candidates(self, metrics: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return which anchors are the best `topk` of each object (b, n, A), all of an image with fewer anchors.

        Args:
            metrics: Metrics (b, n, A), >= 0.
            *args: Further arguments of the host's method.
            **kwargs: The same by name.
        """
        n_anchors = metrics.shape[-1]
        missing = max(0, self.topk - n_anchors)  # type: ignore[attr-defined]
        if missing:  # `torch.topk` fails where it cannot select k
            metrics = pad(metrics, (0, missing), value=-1.0)
        selected: Tensor = super().select_topk_candidates(metrics, *args, **kwargs)  # type: ignore[misc]
        return selected[..., :n_anchors]


class TaskAlignedAssigner(OverlapMixin, originals.TaskAlignedAssigner):
    """Ultralytics' task-aligned assigner, on the anchors inside gt boxes only: same results, less time and memory.

    Falls back to the host's own form where that is faster (tiny problems) and where its result depends on more than the
    candidates: anchors that form no grids, boxes other than float32, metrics that are not finite, images so small that
    ties are broken in another way.

    Args:
        *args: Arguments of Ultralytics' assigner.
        iou: Overlap: ``ciou`` (the host's own), ``iou``, ``giou``, ``diou``, ``eiou`` or ``siou``, clamped at 0.
        **kwargs: Keyword arguments of Ultralytics' assigner.

    Raises:
        LossPlugError: If the overlap is unknown.
    """

    def __init__(self, *args: Any, iou: str = "ciou", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        set_overlap(self, select({"tal_iou": iou}).overlap)
        self._shapes: Optional[tuple[tuple[int, int], ...]] = None

    @torch.no_grad()
    def forward(
        self,
        pd_scores: Tensor,
        pd_bboxes: Tensor,
        anc_points: Tensor,
        gt_labels: Tensor,
        gt_bboxes: Tensor,
        mask_gt: Tensor,
        **extra: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Assign anchors to gts.

        Args:
            pd_scores: Scores (b, A, classes) in [0, 1].
            pd_bboxes: Boxes (b, A, 4), x1 y1 x2 y2 in pixels.
            anc_points: Anchor centres (A, 2) in pixels.
            gt_labels: Classes (b, n, 1).
            gt_bboxes: Boxes (b, n, 4) in pixels.
            mask_gt: Which slots hold a gt (b, n, 1).
            **extra: What a subclass of the host's assigner takes besides.

        Returns:
            Classes (b, A), boxes (b, A, 4), scores (b, A, classes), foreground (b, A) and gt slots (b, A) of anchors.
        """
        assignment = None
        n_dense = pd_scores.shape[0] * gt_bboxes.shape[1] * len(anc_points)
        if (
            n_dense >= MIN_SPARSE.get(pd_scores.device.type, DENSE_ON_GPU)
            and not extra
            and is_sparse(self, {pd_bboxes.dtype, gt_bboxes.dtype}, anc_points)
        ):
            levels = self._levels(anc_points)
            if levels is not None:
                gts = gts_of(mask_gt, len(anc_points))
                slot, begin, n_classes = gts.slot, gts.begin, pd_scores.shape[-1]
                scores, boxes, gt_boxes = pd_scores.flatten(), pd_bboxes.flatten(0, 1), gt_bboxes.flatten(0, 1)[slot]
                first = begin * n_classes + gt_labels.flatten().long()[slot]

                def measure(row: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
                    return metric_of(
                        self, scores[first[row] + anchor * n_classes], gt_boxes[row], boxes[begin[row] + anchor]
                    )

                assignment = sparse_assignment(self, gts, measure, levels, gt_bboxes, mask_gt)
        if assignment is None:
            return super().forward(pd_scores, pd_bboxes, anc_points, gt_labels, gt_bboxes, mask_gt, **extra)
        self.bs, self.n_max_boxes = gt_bboxes.shape[:2]
        return dense_outputs(assignment, gt_labels, gt_bboxes, pd_scores.shape)

    def _levels(self, points: Tensor) -> Optional[tuple[Level, ...]]:
        """Return the grids that the points form. The cached grids of the last call are tried first."""
        for is_cached in (True, False):
            if not is_cached:
                self._shapes = shapes_of_points(points)
            if self._shapes is None or sum(h * w for h, w in self._shapes) != len(points):
                continue
            levels = levels_of_shapes(points, self._shapes)
            is_sorted = all((side.diff() > 0).all() for level in levels for side in (level.x, level.y))
            if is_sorted and torch.equal(points_of_levels(levels), points):
                return levels
        return None


def set_overlap(assigner: originals.TaskAlignedAssigner, loss: Optional[Loss]) -> None:
    """Make an assigner measure overlap as 1 minus a loss, None for the host's own; what else it overrides stays."""
    derive(OverlapMixin, assigner)
    attached = on_assigner(assigner)
    attached.overlap_loss, attached.overlap = loss, None if loss is None else assigner_overlap(loss)


def set_topk(assigner: originals.TaskAlignedAssigner, topk: int) -> None:
    """Set how many anchors an assigner selects for an object at most; all where an image has fewer."""
    derive(OverlapMixin, assigner)
    assigner.topk = topk
    if hasattr(assigner, "topk2"):
        assigner.topk2 = topk


HOOKS = (
    "_forward",
    "get_box_metrics",
    "get_pos_mask",
    "get_targets",
    "pair_overlaps",
    "select_candidates_in_gts",
    "select_highest_overlaps",
)
"""Methods that make the host's assignment what it is; those that a release lacks are left out."""
OVERLAPS = {"SegTaskAlignedAssigner": "{} and mask IoU", "PoseTaskAlignedAssigner": "OKS, {} without keypoints"}
"""What assigners of newer releases measure, by their class, with the overlap of boxes."""
OURS = {"forward": TaskAlignedAssigner, "iou_calculation": OverlapMixin, "select_topk_candidates": OverlapMixin}
"""More of them, which we override ourselves, and the class that does."""


def is_sparse(assigner: Any, dtypes: set[torch.dtype], points: Tensor) -> bool:
    """Return whether the sparse assignment is that of an assigner.

    Args:
        assigner: Any assigner of the host, or one derived from it.
        dtypes: Types of the boxes.
        points: Anchor centres (A, 2).
    """
    k = max(assigner.topk, topk2_of(assigner))
    return (
        not has_own_hooks(assigner)
        and dtypes == {torch.float32}
        and is_exact(k, len(points), points.device.type)
        and fills_up_in_order(points.device.type)
        and (not is_rotated(assigner) or pair_shape(assigner) is not None)
    )


def is_rotated(assigner: Any) -> bool:
    """Return whether an assigner is that of rotated boxes."""
    return isinstance(assigner, originals.RotatedTaskAlignedAssigner)


def overlap_name(assigner: Any) -> str:
    """Return the overlap that an assigner measures, in words."""
    loss = on_assigner(assigner).overlap_loss
    box = loss.name if loss else STOCK_ROTATED if is_rotated(assigner) else STOCK_BOX
    names = (cls.__name__ for cls in type(assigner).__mro__)
    return next((OVERLAPS[name] for name in names if name in OVERLAPS), "{}").format(box)


def has_own_hooks(assigner: Any) -> bool:
    """Return whether an assigner overrides what makes the host's assignment what it is, otherwise than we do."""
    cls = layers(type(assigner))[0]  # a derived class hides what that overrides
    stock = originals.RotatedTaskAlignedAssigner if is_rotated(assigner) else originals.TaskAlignedAssigner
    return any(getattr(cls, name, None) is not getattr(stock, name, None) for name in HOOKS) or any(
        getattr(cls, name) not in (getattr(stock, name), getattr(ours, name)) for name, ours in OURS.items()
    )


def topk2_of(assigner: Any) -> int:
    """Return how many anchors a gt keeps at most; older releases do not have this setting."""
    return getattr(assigner, "topk2", assigner.topk)


@functools.cache
def fills_up_in_order(device_type: str) -> bool:
    """Return whether `torch.topk` of this build fills up with zeros at the first k positions, as we assume."""
    rows = torch.zeros(8, 1024, device=device_type)
    rows[torch.arange(8), torch.arange(100, 900, 100)] = 1
    return bool((rows.topk(10).indices.sort().values[:, :9] < 10).all())


def gts_of(mask_gt: Tensor, n_anchors: int) -> Gts:
    """Return the gts of a mask (b, n, 1), in which slots may be empty."""
    image, slot = mask_gt.squeeze(-1).nonzero(as_tuple=True)
    return Gts(image, slot, mask_gt.shape[0], mask_gt.shape[1], n_anchors)


def sparse_assignment(
    assigner: Any,
    gts: Gts,
    measure: Measure,
    levels: tuple[Level, ...],
    gt_bboxes: Tensor,
    mask_gt: Tensor,
) -> Optional[Assignment]:
    """Return what an assigner assigns, None if it depends on more than the candidates.

    Args:
        assigner: The assigner.
        gts: The G gts.
        measure: Takes gts (P,) and anchors (P,) of their images; returns metric and overlap (P,).
        levels: The anchors.
        gt_bboxes: Boxes (b, n, 4), rotated ones (b, n, 5).
        mask_gt: Which slots hold a gt (b, n, 1).
    """
    if is_rotated(assigner):
        boxes, inside = rotated_candidates(assigner, gt_bboxes[gts.image, gts.image_slot], points_of_levels(levels))
    else:
        boxes, inside = candidate_boxes(gt_bboxes, mask_gt, floor_of(assigner))[gts.image, gts.image_slot], None
    return assign_pairs(
        boxes,
        gts,
        levels,
        measure,
        topk=min(assigner.topk, gts.n_anchors),
        topk2=min(topk2_of(assigner), gts.n_anchors),
        eps=assigner.eps,
        inside=inside,
    )


def metric_of(assigner: Any, scores: Tensor, gt_bboxes: Tensor, pd_bboxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return metric and overlap (P,) of pairs, from scores (P,), gt boxes (P, 4) and predicted boxes (P, 4)."""
    overlap = assigner.iou_calculation(gt_bboxes, pd_bboxes)
    return scores.pow(assigner.alpha) * overlap.pow(assigner.beta), overlap


def assigned_targets(assignment: Assignment, gt_bboxes: Tensor, n_anchors: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return foreground (b, A), gt slots (b, A) and gt boxes (b, A, 4); other anchors have those of slot 0."""
    b, n_slots = gt_bboxes.shape[:2]
    foreground = torch.zeros(b * n_anchors, dtype=torch.bool, device=gt_bboxes.device)
    foreground[assignment.anchor] = True
    index = assignment.anchor.new_zeros(b * n_anchors)
    index[assignment.anchor] = assignment.slot % max(1, n_slots)
    foreground, index = foreground.view(b, -1), index.view(b, -1)
    if not n_slots:
        return foreground, index, gt_bboxes.new_zeros(b, n_anchors, gt_bboxes.shape[-1])
    return foreground, index, gt_bboxes.gather(1, index.unsqueeze(-1).expand(-1, -1, gt_bboxes.shape[-1]))


def dense_outputs(
    assignment: Assignment, gt_labels: Tensor, gt_bboxes: Tensor, shape: torch.Size
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return an assignment as the five tensors of the host's assigner; `shape` is (b, A, classes)."""
    b, n_anchors, n_classes = shape
    foreground, index, boxes = assigned_targets(assignment, gt_bboxes, n_anchors)
    labels = gt_labels.long().squeeze(-1).gather(1, index).clamp_(0)
    scores = assignment.score.new_zeros(b * n_anchors, n_classes)
    scores[assignment.anchor, labels.flatten()[assignment.anchor]] = assignment.score
    return labels, boxes, scores.view(shape), foreground, index

# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a model's assigner makes of the objects of a dataset: one forward of every image, without training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor
from ultralytics.cfg import get_cfg

from yolo_lossplug.registry import LossPlugError
from yolo_lossplug.selection.keys import TASKS
from yolo_lossplug.ultralytics_hook.console import explained
from yolo_lossplug.ultralytics_hook.counts import overlaps
from yolo_lossplug.ultralytics_hook.dataset import labels
from yolo_lossplug.ultralytics_hook.dataset.changes import Change, Listener, Outcome, changed_assigners, outcomes
from yolo_lossplug.ultralytics_hook.family import refuse_rtdetr
from yolo_lossplug.ultralytics_hook.host import device_of, load_model, moved, network_of
from yolo_lossplug.ultralytics_hook.running import branches, is_one_to_one

WITHOUT = "inspect the data without model="
"""What to do about a model whose assignment cannot be inspected."""
NONE: Mapping[Change, Any] = MappingProxyType({})
"""No other assigners."""


class Model(NamedTuple):
    """A model in training mode with its criterion, in the host's own engine; one that is not trained is random."""

    host: Any
    criterion: Any
    device: torch.device
    strides: tuple[float, ...]
    is_trained: bool

    @property
    def task(self) -> str:
        """Task of the model."""
        return str(self.host.task)

    def assigner(self) -> Any:
        """Return the assigner of the criterion, of an end-to-end head that of its one-to-many branch."""
        return sorted(branches(self.criterion), key=lambda pair: is_one_to_one(*pair))[0][1].assigner


class AssignedObjects(NamedTuple):
    """What one image's n objects get in one branch of a criterion.

    Attributes:
        branch: ``main``, or one of an end-to-end head.
        image: Index of the image.
        row: Index of each object among those of the image (n,); what the criterion drops is left out.
        boxes: Boxes (n, 4 or 5) in pixels of the input.
        candidates: Anchors that are a candidate (n, A), bool.
        wanted: Anchors that the object selects (n, A), bool, before conflicts are resolved.
        owner: Object (A,) that an anchor is assigned to, -1 for none.
        best_iou: IoU (n,) of the best candidate's predicted box; NaN without a candidate.
        score: Score (n,) of the object's class there; NaN without a candidate.
        overlap: Sum (n,) of the IoU of the assigned anchors' boxes.
        others: What they get with other numbers of the assigner.
    """

    branch: str
    image: int
    row: np.ndarray
    boxes: np.ndarray
    candidates: np.ndarray
    wanted: np.ndarray
    owner: np.ndarray
    best_iou: np.ndarray
    score: np.ndarray
    overlap: np.ndarray
    others: Mapping[Change, Outcome] = NONE

    @property
    def positives(self) -> np.ndarray:
        """Number of anchors (n,) assigned to each object."""
        return np.bincount(self.owner[self.owner >= 0], minlength=len(self.boxes))

    @property
    def conflicts(self) -> int:
        """Number of anchors that two or more objects select."""
        return int((self.wanted.sum(0) > 1).sum())

    @property
    def outcome(self) -> Outcome:
        """How many objects get an anchor, and the anchors that they select."""
        return Outcome(int((self.positives > 0).sum()), self.conflicts, int(self.wanted.any(0).sum()))


def load(args: dict[str, Any], data: dict[str, Any]) -> Model:
    """Return a model with the classes of a dataset, by ``model``, ``device``, ``seed``, and keys of ours.

    Raises:
        LossPlugError: If it cannot be loaded, or has no boxes.
    """
    device = device_of(args.get("device", "cpu"))
    refuse_rtdetr(args["model"], None, WITHOUT)
    torch.manual_seed(int(args.get("seed", 0)))
    made = load_model(args["model"], args.get("task"))
    refuse_rtdetr(args["model"], made.model, WITHOUT)
    if made.task not in TASKS:
        raise LossPlugError(f"model={args['model']} is for task={made.task}, which has no boxes to inspect.")
    keys = {key: value for key, value in args.items() if key.startswith("tal_") or key == "data"}
    cfg = get_cfg(overrides={**keys, "mode": "train", "task": made.task, "loss_engine": "reference"})
    host = network_of(made, cfg, data).to(device).train()
    with explained(f"model={args['model']} cannot be used"):
        return Model(host, host.init_criterion(), device, tuple(float(s) for s in host.stride), bool(made.ckpt))


def assigned(
    model: Model,
    args: dict[str, Any],
    imgsz: int,
    batch: int,
    images: Optional[Sequence[int]] = None,
    is_changed: bool = False,
) -> Iterator[list[AssignedObjects]]:
    """Yield what the objects of one batch after another get, as a training step without augmentation assigns it.

    Batch normalisation is that of training, over the images of a batch. The arguments say ``data``, ``split`` and
    ``fraction``; images are given by index, and objects have their positions in this list. If it is changed, other
    numbers of the assigner are tried, in the branch with most anchors.
    """
    data, path = labels.described(args)
    host = labels.dataset(data, path, {**args, "task": model.task}, imgsz)
    images = range(len(host)) if images is None else images
    others = changed_assigners(model.assigner()) if is_changed else {}
    for first in range(0, len(images), batch):
        rows = images[first : first + batch]
        yield assign_batch(model, host.collate_fn([host[i] for i in rows]), first, others)


@torch.no_grad()
def assign_batch(
    model: Model, batch: dict[str, Any], first: int = 0, others: Mapping[Change, Any] = NONE
) -> list[AssignedObjects]:
    """Return what the objects of a batch get, branch after branch, image after image; `first` is its first image.

    Other assigners, copies of the model's with other numbers, are tried as well.
    """
    on_device = moved(batch, model.device)
    on_device["img"] = on_device["img"].float() / 255
    seen: list[AssignedObjects] = []
    leaves = list(branches(model.criterion))
    assigners, main = [leaf.assigner for _, leaf in leaves], model.assigner()
    try:
        for branch, leaf in leaves:
            tried = others if leaf.assigner is main else {}
            leaf.assigner = RecordingAssigner(leaf.assigner, branch, first, seen, tried)
        model.criterion(model.host(on_device["img"]), on_device)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise LossPlugError(
            "one image at this imgsz is not enough for batch normalisation; give a larger imgsz."
        ) from error
    finally:
        for (_, leaf), assigner in zip(leaves, assigners):
            leaf.assigner = assigner
    return _with_rows(seen, on_device, first)


class RecordingAssigner:
    """An assigner in the place of another, image by image, which bounds its memory; records what objects get.

    The objects of each image that has any go to `seen`; other assigners are tried on the same inputs.
    """

    def __init__(
        self, assigner: Any, branch: str, first: int, seen: list[AssignedObjects], others: Mapping[Change, Any] = NONE
    ) -> None:
        self.assigner, self.branch, self.first, self.seen, self.others = assigner, branch, first, seen, others

    def __getattr__(self, name: str) -> Any:
        return getattr(self.assigner, name)

    def __call__(
        self, scores: Tensor, boxes: Tensor, points: Tensor, cls: Tensor, gts: Tensor, mask: Tensor, **extra: Any
    ) -> Any:
        """Assign, as the assigner does; its arguments are those of the host."""
        if not gts.shape[1]:
            return self.assigner(scores, boxes, points, cls, gts, mask, **extra)
        outputs = []
        for i in range(len(scores)):
            n = max(1, int((mask[i].squeeze(-1) > 0).nonzero().max()) + 1) if mask[i].any() else 1
            rows = slice(i, i + 1)
            more = {key: _of_image(value, i, len(scores)) for key, value in extra.items()}
            inputs = (scores[rows], boxes[rows], points, cls[rows, :n], gts[rows, :n], mask[rows, :n])
            with Listener(self.assigner) as heard:
                outputs.append(self.assigner(*inputs, **more))
            is_gt = mask[i, :n, 0].bool()
            if is_gt.any():
                objects = _objects(self.branch, self.first + i, inputs, outputs[-1], heard, is_gt)
                self.seen.append(objects._replace(others=outcomes(self.others, inputs, more, is_gt)))
        return tuple(torch.cat(part) for part in zip(*outputs))


def _of_image(value: Any, i: int, count: int) -> Any:
    """Return the part of an image of a batch-first tensor; one number for each anchor stays."""
    return value[i : i + 1] if isinstance(value, Tensor) and value.dim() > 1 and len(value) == count else value


def _objects(
    branch: str, image: int, inputs: tuple[Tensor, ...], outputs: tuple, heard: Listener, is_gt: Tensor
) -> AssignedObjects:
    scores, boxes, _, cls, gts, _ = (part[0] if part.dim() > 2 else part for part in inputs)
    slot = torch.where(outputs[3][0].bool(), outputs[4][0].long(), -1)
    positive = (slot >= 0).nonzero().squeeze(1)
    overlap = overlaps(boxes[positive].float(), gts[slot[positive]].float())
    total = overlap.new_zeros(len(gts)).index_add_(0, slot[positive], overlap)
    best = overlaps(boxes[heard.anchor].float(), gts.float())
    score = scores[heard.anchor, cls[:, 0].long()].float()
    has_candidate = heard.candidates.any(-1)
    best, score = (value.masked_fill(~has_candidate, torch.nan) for value in (best, score))
    columns = (gts, heard.candidates, heard.wanted, best, score, total)
    rows, candidates, wanted, *found = (column[is_gt].cpu().numpy() for column in columns)
    rank = is_gt.long().cumsum(0) - 1
    owner = torch.where(slot >= 0, rank[slot.clamp(min=0)], -1).cpu().numpy()
    about = branch, image, np.arange(len(rows)), rows, candidates, wanted, owner
    return AssignedObjects._make((*about, *found, NONE))


def _with_rows(seen: list[AssignedObjects], batch: dict[str, Any], first: int) -> list[AssignedObjects]:
    """Return the objects with their indices in the labels: a criterion drops some, and keeps the order."""
    image = batch["batch_idx"].view(-1).long().cpu().numpy()
    boxes, (height, width) = batch["bboxes"].float(), batch["img"].shape[-2:]
    labelled = (boxes[:, :4] * boxes.new_tensor([width, height, width, height])).cpu().numpy()
    return [_with_row(objects, labelled[image == objects.image - first]) for objects in seen]


def _with_row(objects: AssignedObjects, labelled: np.ndarray) -> AssignedObjects:
    """Return the objects of an image with their indices in its labels: centre x, centre y, width, height (n, 4)."""
    if len(labelled) == len(objects.boxes):
        return objects
    low, high = objects.boxes[:, :2], objects.boxes[:, 2:4]
    is_rotated = objects.boxes.shape[1] == 5
    targets = objects.boxes[:, :4] if is_rotated else np.concatenate(((low + high) / 2, high - low), 1)
    row, rows = 0, []
    for target in targets:
        while row < len(labelled) - 1 and np.abs(labelled[row] - target).max() > 1e-2:
            row += 1
        rows.append(row)
        row += 1
    return objects._replace(row=np.array(rows))

# SPDX-License-Identifier: AGPL-3.0-or-later
"""A criterion's step by Triton kernels, with the fast engine as its oracle; the host waits for nothing on the GPU.

Objects are taken as they come, in rows of whatever image, so that no number of them must be known.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor
from ultralytics.utils.loss import BboxLoss, v8DetectionLoss

from yolo_lossplug.forms import BoxKernel, BoxKind, ClassKernel
from yolo_lossplug.kernels.assignment import Assigned, AssignerConfig, GtRows, KernelAnchors, assign, describe
from yolo_lossplug.kernels.box_term import NO_LOSS, BoxTermConfig, decode, listed
from yolo_lossplug.kernels.class_term import ClassTargets
from yolo_lossplug.kernels.step import Step, losses
from yolo_lossplug.selection.loss import Loss
from yolo_lossplug.ultralytics_hook.assigner import floor_of, has_own_hooks, topk2_of
from yolo_lossplug.ultralytics_hook.attached import on_assigner, on_criterion
from yolo_lossplug.ultralytics_hook.console import warn_once
from yolo_lossplug.ultralytics_hook.engines import fast
from yolo_lossplug.ultralytics_hook.run.counts import Meter
from yolo_lossplug.ultralytics_hook.run.watch import meter_of

LARGEST_DECODED = 2**24
"""Elements of the head's outputs that are decoded at a time where the host decodes."""
MOST_TRIED = 16
"""Images on which both are compared."""
MOST_SIZES = 64
"""Image sizes whose anchors are kept: multi-scale training has some dozens."""


class Types(NamedTuple):
    """Where the host leaves float32, which autocast decides.

    Attributes:
        product: Type of the product of a softmax of the head's outputs with the bins.
        power: Type of the power of a score.
    """

    product: torch.dtype
    power: torch.dtype


class Known(NamedTuple):
    """Anchors of an image size.

    Attributes:
        host: As the host has them.
        anchors: As the kernels read them.
    """

    host: fast.Anchors
    anchors: KernelAnchors


class TritonKernels:
    """Kernels for the steps of one criterion, and what they need to know of it.

    Args:
        criterion: The criterion.
        is_trial: Whether to fail where otherwise another engine goes on.
    """

    def __init__(self, criterion: Any, is_trial: bool = False) -> None:
        self.is_trial = is_trial
        self.known: dict[tuple, Known] = {}
        self.rehearsed: set[tuple] = set()
        loss = getattr(criterion.bbox_loss, "loss", None)
        self.is_box_loss_pointwise = loss is not None and is_pointwise(loss)

    def step(self, criterion: Any, preds: dict[str, Tensor], batch: dict[str, Any]) -> Optional[tuple]:
        """Return what the host's step returns, None where the kernels do not compute that.

        Args:
            criterion: The criterion.
            preds: Outputs of the head: ``boxes`` (b, 4·R, A), ``scores`` (b, classes, A), ``feats``.
            batch: The batch.
        """
        types = types_of(criterion.assigner.alpha, preds["scores"])
        why = unknown(criterion, preds, types)
        if why and not self.is_trial:
            warn_once(f"the kernels cannot take the steps of this run: {why}; it goes on without.")
            return None
        try:
            with torch.cuda.device_of(preds["scores"]):  # which Triton does not ask for
                return self._step(criterion, preds, batch, types)
        except Exception as error:
            # The compiler's own errors have no other name before any step was taken; others come again without kernels.
            is_own = isinstance(error, RuntimeError) and not isinstance(error, torch.cuda.OutOfMemoryError)
            is_compilers = type(error).__module__.startswith("triton") or (is_own and not self.rehearsed)
            if self.is_trial or not is_compilers:
                raise
            warn_once(f"a kernel does not compile, and the run goes on without: {' '.join(str(error).split())[:300]}")
            on_criterion(criterion).kernels = None
            return None

    def _step(self, criterion: Any, preds: dict[str, Tensor], batch: dict[str, Any], types: Types) -> tuple:
        outputs, scores, assigner = preds["boxes"].contiguous(), preds["scores"].contiguous(), criterion.assigner
        known = self._known(criterion, preds["feats"], scores.dtype)
        image, label, boxes = (batch[key].to(scores.device).contiguous() for key in ("batch_idx", "cls", "bboxes"))
        wanted = wanted_of(criterion, types)
        with torch.no_grad():
            anchors, floor = known.anchors, floor_of(assigner)
            objects = describe(image.view(-1), label.view(-1), boxes, (len(scores), scores.shape[1]), anchors, floor)
            grid = decoded(criterion, outputs.detach(), known, wanted, types)
            assigned = assign(objects, scores.detach(), grid, anchors, numbers_of(assigner, types))
        targets, formula = class_terms_of(criterion, assigned)
        gains = float(criterion.hyp.box), float(criterion.hyp.cls), float(criterion.hyp.dfl)
        step = Step(objects.boxes, assigned, grid, anchors, wanted, targets, formula, gains)
        if wanted.kind == NO_LOSS:
            step = self._with_box_loss(criterion, step, known, needs_slopes(outputs))
        if needs_slopes(outputs):
            self._rehearse(outputs, scores, step)
        loss, factors = losses(outputs, scores, step)
        if formula is None:
            loss = torch.stack((loss[0], class_sum_of(criterion, scores, assigned) * factors[1], loss[2]))
        meter = meter_of(assigner)
        if meter is not None:
            count(meter, objects, assigned, grid * anchors.strides.repeat(len(scores)).unsqueeze(1))
        names = getattr(criterion, "loss_names", None)
        items = loss.detach() if names is None else dict(zip(names, loss.detach()))
        return assignment_outputs(criterion, image.view(-1), objects, assigned, known), loss, items

    def _known(self, criterion: Any, feats: Any, dtype: torch.dtype) -> Known:
        """Return the anchors of a criterion; the host waits for those of a new image size."""
        shapes = tuple((feat.shape[2], feat.shape[3]) for feat in feats)
        key = (shapes, dtype, feats[0].dtype, feats[0].device, torch.is_inference_mode_enabled())
        if key not in self.known:
            if len(self.known) >= MOST_SIZES:
                self.known.clear()
            host = fast.anchors_of(criterion, feats, dtype)
            levels, first = [], 0
            for height, width in shapes:
                levels.append((first, height, width))
                first += height * width
            self.known[key] = Known(
                host,
                KernelAnchors(
                    (host.points * host.strides).float().contiguous(),
                    host.points.float().contiguous(),
                    host.strides.float().flatten(),
                    torch.tensor(levels, dtype=torch.int32, device=feats[0].device),
                    host.imgsz.float().flip(0),
                ),
            )
        return self.known[key]

    def _with_box_loss(self, criterion: Any, step: Step, known: Known, is_sloped: bool) -> Step:
        """Return a step with the sum of a box loss that no kernel has, and its gradients by slot."""
        loss, assigned, slots = criterion.bbox_loss.loss, step.assigned, None
        if self.is_box_loss_pointwise:  # it may be asked of as many boxes as there may be at most
            slots = listed(assigned, step.boxes, step.grid, step.anchors)
            predicted, targets, scores, strides = slots
        else:
            index = (assigned.row >= 0).nonzero().squeeze(1)
            strides = step.anchors.strides[index % len(step.anchors.strides)].unsqueeze(1)
            predicted, scores = step.grid[index], assigned.score[index]
            targets = step.boxes[assigned.row[index].long()] / strides
        predicted.requires_grad_(is_sloped)
        terms = loss(predicted, targets, stride=strides, imgsz=known.host.imgsz)
        total = torch.where(scores == 0, 0.0, terms * scores).sum()
        slopes = None
        if is_sloped:
            (slopes,) = torch.autograd.grad(total, predicted)
            if slots is None:
                by_slot = slopes.new_zeros(len(assigned.slots), 4)
                by_slot[len(by_slot) - assigned.chosen[index].long()] = slopes
                slopes = by_slot
        return step._replace(box_sum=total.detach(), box_grad=slopes)

    def _rehearse(self, outputs: Tensor, scores: Tensor, step: Step) -> None:
        """Take a step backward on one image where that is the first of its kind: what fails is to fail here."""
        targets = step.targets
        key = (outputs.dtype, step.box_config, step.class_kernel, targets.smoothing > 0, targets.weights is None)
        if key in self.rehearsed:
            return
        n = scores.shape[2]
        assigned = step.assigned._replace(
            **{field: getattr(step.assigned, field)[:n] for field in ("row", "label", "score", "chosen")}
        )
        first = step._replace(assigned=assigned, targets=targets._replace(label=assigned.label, score=assigned.score))
        given = outputs[:1].detach().requires_grad_(), scores[:1].detach().requires_grad_()
        torch.autograd.grad(losses(*given, first)[0].sum(), given, allow_unused=True)
        self.rehearsed.add(key)


def unknown(criterion: Any, preds: dict[str, Tensor], types: Types) -> Optional[str]:
    """Return which part of a criterion's step the kernels do not know, since somebody has put it in; None if none."""
    boxes, scores, assigner = preds["boxes"], preds["scores"], criterion.assigner
    attached = on_assigner(assigner)
    if has_own_hooks(assigner) or (attached.overlap is not None and attached.overlap_loss is None):
        return f"the assigner {type(assigner).__name__} is not Ultralytics' own"
    for method in ("bbox_decode", "preprocess"):
        if getattr(type(criterion), method) is not getattr(v8DetectionLoss, method):
            return f"{type(criterion).__name__} has a {method} of its own"
    if type(fast.stock_bbox_loss(criterion.bbox_loss)) is not BboxLoss:
        return f"the box loss {type(criterion.bbox_loss).__name__} is not Ultralytics' own"
    if scores.dtype not in (torch.float32, torch.float16, torch.bfloat16) or not (
        boxes.dtype == scores.dtype == types.product
    ):
        return f"boxes are {boxes.dtype}, scores {scores.dtype}, and decoded as {types.product}"
    if max(assigner.topk, topk2_of(assigner)) > scores.shape[2]:
        return f"an image has {scores.shape[2]} anchors only"
    return None


def needs_slopes(outputs: Tensor) -> bool:
    """Return whether gradients are wanted."""
    return torch.is_grad_enabled() and outputs.requires_grad


def types_of(alpha: float, scores: Tensor) -> Types:
    """Return the types that the host's operations have under the autocast of now."""
    kind = scores.device.type
    autocast = torch.get_autocast_dtype(kind) if fast.is_autocast(kind) else None
    return _types_of(scores.device, scores.dtype, autocast, alpha)


@functools.cache
def _types_of(device: torch.device, dtype: torch.dtype, autocast: Optional[torch.dtype], alpha: float) -> Types:
    one = torch.ones(1, 1, dtype=dtype, device=device)
    return Types(one.softmax(1).matmul(one[0]).dtype, one.pow(alpha).dtype)


def wanted_of(criterion: Any, types: Types) -> BoxTermConfig:
    """Return the box term of a criterion as the kernels know it."""
    module = criterion.bbox_loss
    n_bins = int(criterion.reg_max) if criterion.use_dfl else 1
    is_rounded = types.product != torch.float32
    is_host = module is fast.stock_bbox_loss(module)
    kernel = BoxKernel(BoxKind.STOCK) if is_host else module.loss.kernel or BoxKernel(NO_LOSS)
    return BoxTermConfig(kernel.kind, kernel.theta, n_bins, is_rounded)


def numbers_of(assigner: Any, types: Types) -> AssignerConfig:
    """Return what an assigner is set to."""
    loss = on_assigner(assigner).overlap_loss
    overlap = BoxKernel(BoxKind.STOCK) if loss is None else loss.kernel
    assert isinstance(overlap, BoxKernel)  # each of those that `tal_iou` takes has one
    return AssignerConfig(
        int(assigner.topk),
        int(topk2_of(assigner)),
        float(assigner.alpha),
        float(assigner.beta),
        float(assigner.eps),
        overlap.kind,
        overlap.theta,
        types.power != torch.float32,
    )


def class_terms_of(criterion: Any, assigned: Assigned) -> tuple[ClassTargets, Optional[ClassKernel]]:
    """Return targets and formula of a criterion's class term; None for a loss that the kernels do not know."""
    loss, module = fast.class_loss_of(criterion), criterion.bce
    weights = fast.weights_of(criterion)
    targets = ClassTargets(
        assigned.label,
        assigned.score,
        float(getattr(module, "smoothing", 0.0)),
        None if weights is None else weights.float().contiguous(),
    )
    return targets, loss.kernel if loss is not None and isinstance(loss.kernel, ClassKernel) else None


def class_sum_of(criterion: Any, scores: Tensor, assigned: Assigned) -> Tensor:
    """Return the sum of a class loss that the kernels do not know, from the targets of all anchors."""
    every = torch.arange(len(assigned.row), device=scores.device)
    is_smooth = getattr(criterion.bce, "smoothing", 0.0) > 0
    term = fast.dense_class_term if is_smooth else fast.class_term
    return term(criterion, scores, every, assigned.label.long(), assigned.score)


def decoded(criterion: Any, outputs: Tensor, known: Known, wanted: BoxTermConfig, types: Types) -> Tensor:
    """Return predicted boxes (b·A, 4) in cells as the host decodes them, by the kernel if that gives the same bits."""
    if is_decoded_exactly(criterion, outputs, known, wanted, types):
        return decode(outputs, known.anchors, wanted)
    size = max(1, LARGEST_DECODED // outputs[0].numel())
    parts = (
        criterion.bbox_decode(known.host.points, some.permute(0, 2, 1).contiguous()) for some in outputs.split(size)
    )
    return torch.cat([part.float().flatten(0, 1) for part in parts])


_exact: dict[tuple, bool] = {}


def is_decoded_exactly(criterion: Any, outputs: Tensor, known: Known, wanted: BoxTermConfig, types: Types) -> bool:
    """Return whether the kernel decodes as the host does, bit for bit: found out on random outputs of some images."""
    key = (outputs.device, outputs.dtype, outputs.shape, types)
    if key not in _exact:
        rng = torch.Generator(outputs.device).manual_seed(0)
        shape = (min(len(outputs), MOST_TRIED), *outputs.shape[1:])
        given = (torch.randn(shape, generator=rng, device=outputs.device) * 3).to(outputs.dtype)
        expected = criterion.bbox_decode(known.host.points, given.permute(0, 2, 1).contiguous())
        _exact[key] = torch.equal(expected.float().flatten(0, 1), decode(given, known.anchors, wanted))
    return _exact[key]


def is_pointwise(loss: Loss) -> bool:
    """Return whether the loss of a pair depends on nothing but that pair; found out by trial."""
    if loss.state is not None:
        return False
    rng = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 24, 2, generator=rng) * 8
    pred, target = (torch.cat((c, c + 1 + torch.rand(24, 2, generator=rng) * 4), -1) for c in corners)
    stride, imgsz = torch.full((24, 1), 8.0), torch.tensor([64.0, 96.0])
    order = torch.arange(24).flip(0)
    try:
        whole = loss(pred, target, stride=stride, imgsz=imgsz)
        parts = [loss(pred[i], target[i], stride=stride[i], imgsz=imgsz) for i in order.split(5)]
    except Exception:  # one of the user's own that wants the whole batch
        return False
    return torch.allclose(whole[order], torch.cat(parts), rtol=1e-5, atol=1e-7)


def count(meter: Meter, objects: GtRows, assigned: Assigned, found: Tensor) -> None:
    """Count what was assigned, for the report; `found` are the boxes (b·A, 4) of all anchors in pixels."""
    boxes = objects.boxes.unsqueeze(0)
    is_object = boxes.sum(2, keepdim=True) > 0
    meter.add(boxes, is_object, assigned.row.clamp(min=0).long(), assigned.row >= 0, found)


def assignment_outputs(criterion: Any, image: Tensor, objects: GtRows, assigned: Assigned, known: Known) -> tuple:
    """Return what tasks that add terms of their own read: foreground, objects, their boxes, anchors and strides."""
    if not fast.reads_assignment(criterion):
        return (None,) * 5
    n, n_images = len(objects.boxes), len(objects.first)
    row = assigned.row.view(n_images, -1).long()
    foreground = row >= 0
    if not n:
        return (
            foreground,
            row.clamp(min=0),
            objects.boxes.new_zeros(*row.shape, 4),
            known.host.points,
            known.host.strides,
        )
    # The host numbers the objects of an image in their order; anchors without one are given the first.
    order = image.long().argsort(stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(n, device=order.device))
    first = (n - objects.first.long()).clamp(max=n - 1).unsqueeze(1)
    place = torch.where(foreground, rank[row.clamp(min=0)] - rank[first], 0)
    boxes = objects.boxes[torch.where(foreground, row, first)] * (objects.first > 0).view(-1, 1, 1)
    return foreground, place, boxes, known.host.points, known.host.strides

# SPDX-License-Identifier: AGPL-3.0-or-later
"""A criterion's step by Triton kernels, with the fast engine as its oracle.

Where every loss has a kernel, a step does not synchronise with the GPU: gts stay in the order of the batch, whichever
image they belong to, so that no count has to be read from it.
"""

from __future__ import annotations

import functools
from itertools import accumulate
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from yolo_lossplug.forms import BoxKernel, BoxKind, ClassKernel
from yolo_lossplug.kernels.assignment import AnchorGts, AssignerConfig, assign_rows
from yolo_lossplug.kernels.box_term import positive_slots
from yolo_lossplug.kernels.class_term import ClassTargets
from yolo_lossplug.kernels.decoding import NO_LOSS, BoxTermConfig, decode
from yolo_lossplug.kernels.gt_rows import GtRows, KernelAnchors, describe_gts
from yolo_lossplug.kernels.step import StepInputs, step_losses
from yolo_lossplug.selection.loss import Loss
from yolo_lossplug.ultralytics_hook.assigner import has_own_hooks, topk2_of
from yolo_lossplug.ultralytics_hook.attached import on_assigner, on_criterion
from yolo_lossplug.ultralytics_hook.console import warn_once
from yolo_lossplug.ultralytics_hook.engines import fast, terms
from yolo_lossplug.ultralytics_hook.min_side import floor_of
from yolo_lossplug.ultralytics_hook.originals import BboxLoss, v8DetectionLoss
from yolo_lossplug.ultralytics_hook.run.watch import meter_of

MAX_DECODED = 2**24
"""Maximum number of elements of the head's outputs per call of the host's decoder."""
MAX_COMPARED = 16
"""Maximum number of images on which both decoders are compared."""
MAX_SIZES = 64
"""Maximum number of image sizes whose anchors are cached: multi-scale training has some dozens."""


class Types(NamedTuple):
    """Types, which autocast decides, of the product of a softmax with the bins, and of the power of a score."""

    product: torch.dtype
    power: torch.dtype


class CachedAnchors(NamedTuple):
    """Anchors of an image size, as the host has them, and as the kernels read them."""

    host: terms.Anchors
    anchors: KernelAnchors


class TritonKernels:
    """Kernels for the steps of one criterion, and what they cache of it.

    In a trial they raise where a run would continue without kernels.
    """

    def __init__(self, criterion: Any, is_trial: bool = False) -> None:
        self.is_trial = is_trial
        self.cached: dict[tuple, CachedAnchors] = {}
        self.rehearsed: set[tuple] = set()
        loss = getattr(criterion.bbox_loss, "loss", None)
        self.is_box_loss_pointwise = loss is not None and is_box_loss_pointwise(loss)

    def step(self, criterion: Any, preds: dict[str, Tensor], batch: dict[str, Any]) -> Optional[tuple]:
        """Return what the host's step returns, None where the kernels do not compute that; see `fast.fast_step`."""
        types = types_of(criterion.assigner.alpha, preds["scores"])
        if (why := why_no_kernel(criterion, preds, types)) and not self.is_trial:
            warn_once(f"the kernels cannot take the steps of this run: {why}; it continues without kernels.")
            return None
        try:
            with torch.cuda.device_of(preds["scores"]):  # Triton launches on the current device
                return self._step(criterion, preds, batch, types)
        except Exception as error:
            # Before the first step a RuntimeError may be the compiler's; others would be raised without kernels too.
            is_own = isinstance(error, RuntimeError) and not isinstance(error, torch.cuda.OutOfMemoryError)
            is_compilers = type(error).__module__.startswith("triton") or (is_own and not self.rehearsed)
            if self.is_trial or not is_compilers:
                raise
            text = " ".join(str(error).split())[:300]
            warn_once(f"a kernel does not compile, and the run continues without kernels: {text}")
            on_criterion(criterion).kernels = None
            return None

    def _step(self, criterion: Any, preds: dict[str, Tensor], batch: dict[str, Any], types: Types) -> tuple:
        outputs, scores, assigner = preds["boxes"].contiguous(), preds["scores"].contiguous(), criterion.assigner
        cached = self._anchors(criterion, preds["feats"], scores.dtype)
        image, label, boxes = (batch[key].to(scores.device).contiguous() for key in ("batch_idx", "cls", "bboxes"))
        box_config = box_config_of(criterion, types)
        with torch.no_grad():
            anchors, floor = cached.anchors, floor_of(assigner)
            gts = describe_gts(image.view(-1), label.view(-1), boxes, (len(scores), scores.shape[1]), anchors, floor)
            grid = decoded(criterion, outputs.detach(), cached, box_config, types)
            assigned = assign_rows(gts, scores.detach(), grid, anchors, assigner_config_of(assigner, types))
        targets, formula = class_terms_of(criterion, assigned)
        gains = float(criterion.hyp.box), float(criterion.hyp.cls), float(criterion.hyp.dfl)
        step = StepInputs(gts.boxes, assigned, grid, anchors, box_config, targets, formula, gains)
        with_grad = torch.is_grad_enabled() and outputs.requires_grad
        if box_config.kind == NO_LOSS:
            step = self._with_box_loss(criterion, step, cached, with_grad)
        if with_grad:
            self._rehearse(outputs, scores, step)
        loss, factors = step_losses(outputs, scores, step)
        if formula is None:
            loss = torch.stack((loss[0], class_sum_of(criterion, scores, assigned) * factors[1], loss[2]))
        if (meter := meter_of(assigner)) is not None:
            rows, slot, is_positive = gts.boxes.unsqueeze(0), assigned.row.clamp(min=0).long(), assigned.row >= 0
            is_gt, pred_boxes = rows.sum(2, keepdim=True) > 0, grid * anchors.strides.repeat(len(scores)).unsqueeze(1)
            meter.add(rows, is_gt, slot, is_positive, pred_boxes, label.view(1, -1, 1), assigned.claims)
        names = getattr(criterion, "loss_names", None)
        items = loss.detach() if names is None else dict(zip(names, loss.detach()))
        return kernel_assignment_outputs(criterion, image.view(-1), gts, assigned, cached), loss, items

    def _anchors(self, criterion: Any, feats: Any, dtype: torch.dtype) -> CachedAnchors:
        """Return the anchors of a criterion; those of a new image size synchronise with the GPU."""
        shapes = tuple((feat.shape[2], feat.shape[3]) for feat in feats)
        key = (shapes, dtype, feats[0].dtype, feats[0].device, torch.is_inference_mode_enabled())
        if key not in self.cached:
            if len(self.cached) >= MAX_SIZES:
                self.cached.clear()
            host = fast.anchors_of(criterion, feats, dtype)
            first = accumulate((height * width for height, width in shapes), initial=0)
            levels = [(start, *shape) for start, shape in zip(first, shapes)]
            anchors = KernelAnchors(
                (host.points * host.strides).float().contiguous(),
                host.points.float().contiguous(),
                host.strides.float().flatten(),
                torch.tensor(levels, dtype=torch.int32, device=feats[0].device),
                host.imgsz.float().flip(0),
            )
            self.cached[key] = CachedAnchors(host, anchors)
        return self.cached[key]

    def _with_box_loss(self, criterion: Any, step: StepInputs, cached: CachedAnchors, with_grad: bool) -> StepInputs:
        """Return a step with the sum of a box loss that has no kernel, and its gradients by slot."""
        loss, assigned, slots = criterion.bbox_loss.loss, step.assigned, None
        if self.is_box_loss_pointwise:  # it may be evaluated on the maximum number of boxes
            slots = positive_slots(assigned, step.boxes, step.grid, step.anchors)
            predicted, targets, scores, strides = slots
        else:
            index = (assigned.row >= 0).nonzero().squeeze(1)
            strides = step.anchors.strides[index % len(step.anchors.strides)].unsqueeze(1)
            predicted, scores = step.grid[index], assigned.score[index]
            targets = step.boxes[assigned.row[index].long()] / strides
        predicted.requires_grad_(with_grad)
        per_box = loss(predicted, targets, stride=strides, imgsz=cached.host.imgsz)
        total = torch.where(scores == 0, 0.0, per_box * scores).sum()
        grads = None
        if with_grad:
            (grads,) = torch.autograd.grad(total, predicted)
            if slots is None:
                by_slot = grads.new_zeros(len(assigned.slots), 4)
                by_slot[len(by_slot) - assigned.chosen[index].long()] = grads
                grads = by_slot
        return step._replace(box_sum=total.detach(), box_grad=grads)

    def _rehearse(self, outputs: Tensor, scores: Tensor, step: StepInputs) -> None:
        """Run backward on one image before the first step of its kind, so that a kernel that fails, fails here."""
        targets = step.targets
        key = (outputs.dtype, step.box_config, step.class_kernel, targets.smoothing > 0, targets.weights is None)
        if key in self.rehearsed:
            return
        n = scores.shape[2]
        cut = {field: getattr(step.assigned, field)[:n] for field in ("row", "label", "score", "chosen")}
        assigned = step.assigned._replace(**cut)
        first = step._replace(assigned=assigned, targets=targets._replace(label=assigned.label, score=assigned.score))
        inputs = outputs[:1].detach().requires_grad_(), scores[:1].detach().requires_grad_()
        torch.autograd.grad(step_losses(*inputs, first)[0].sum(), inputs, allow_unused=True)
        self.rehearsed.add(key)


def why_no_kernel(criterion: Any, preds: dict[str, Tensor], types: Types) -> Optional[str]:
    """Return which third-party part of a criterion's step has no kernel, None if all have one."""
    boxes, scores, assigner = preds["boxes"], preds["scores"], criterion.assigner
    attached = on_assigner(assigner)
    if has_own_hooks(assigner) or (attached.overlap is not None and attached.overlap_loss is None):
        return f"the assigner {type(assigner).__name__} is not Ultralytics' own"
    for method in ("bbox_decode", "preprocess"):
        if getattr(type(criterion), method) is not getattr(v8DetectionLoss, method):
            return f"{type(criterion).__name__} overrides {method}"
    if type(terms.stock_bbox_loss(criterion.bbox_loss)) is not BboxLoss:
        return f"the box loss {type(criterion.bbox_loss).__name__} is not Ultralytics' own"
    is_known = scores.dtype in (torch.float32, torch.float16, torch.bfloat16)
    if not (is_known and boxes.dtype == scores.dtype == types.product):
        return f"boxes are {boxes.dtype}, scores {scores.dtype}, and decoded as {types.product}"
    if max(assigner.topk, topk2_of(assigner)) > scores.shape[2]:
        return f"an image has only {scores.shape[2]} anchors"
    return None


def types_of(alpha: float, scores: Tensor) -> Types:
    """Return the types of the host's operations under the current autocast."""
    kind = scores.device.type
    autocast = torch.get_autocast_dtype(kind) if terms.is_autocast(kind) else None
    return _types_of(scores.device, scores.dtype, autocast, alpha)


@functools.cache
def _types_of(device: torch.device, dtype: torch.dtype, autocast: Optional[torch.dtype], alpha: float) -> Types:
    ones = torch.ones(1, 1, dtype=dtype, device=device)
    return Types(ones.softmax(1).matmul(ones[0]).dtype, ones.pow(alpha).dtype)


def box_config_of(criterion: Any, types: Types) -> BoxTermConfig:
    """Return the box term of a criterion as the kernels take it."""
    module = criterion.bbox_loss
    is_host = module is terms.stock_bbox_loss(module)
    kernel = BoxKernel(BoxKind.STOCK) if is_host else module.loss.kernel or BoxKernel(NO_LOSS)
    return BoxTermConfig(kernel.kind, kernel.theta, int(criterion.reg_max) if criterion.use_dfl else 1)


def assigner_config_of(assigner: Any, types: Types) -> AssignerConfig:
    """Return the settings of an assigner as the kernels take them."""
    loss = on_assigner(assigner).overlap_loss
    overlap = BoxKernel(BoxKind.STOCK) if loss is None else loss.kernel
    numbers = float(assigner.alpha), float(assigner.beta), float(assigner.eps)
    assert isinstance(overlap, BoxKernel)  # each of those that `tal_iou` takes has one
    return AssignerConfig(int(assigner.topk), int(topk2_of(assigner)), *numbers, *overlap, types.power != torch.float32)


def class_terms_of(criterion: Any, assigned: AnchorGts) -> tuple[ClassTargets, Optional[ClassKernel]]:
    """Return targets and formula of a criterion's class term; None for a loss without a kernel."""
    loss, module = terms.class_loss_of(criterion), criterion.bce
    weights, smoothing = terms.criterion_class_weights(criterion), float(getattr(module, "smoothing", 0.0))
    weights = None if weights is None else weights.float().contiguous()
    targets = ClassTargets(assigned.label, assigned.score, smoothing, weights)
    return targets, loss.kernel if loss is not None and isinstance(loss.kernel, ClassKernel) else None


def class_sum_of(criterion: Any, scores: Tensor, assigned: AnchorGts) -> Tensor:
    """Return the sum of a class loss without a kernel, from the targets of all anchors."""
    every = torch.arange(len(assigned.row), device=scores.device)
    is_smooth = getattr(criterion.bce, "smoothing", 0.0) > 0
    term = terms.dense_class_term if is_smooth else terms.class_term
    return term(criterion, scores, every, assigned.label.long(), assigned.score)


def decoded(criterion: Any, outputs: Tensor, cached: CachedAnchors, box_config: BoxTermConfig, types: Types) -> Tensor:
    """Return predicted boxes (b·A, 4) in cells as the host decodes them, by the kernel if that gives the same bits."""
    if is_decoded_exactly(criterion, outputs, cached, box_config, types):
        return decode(outputs, cached.anchors, box_config, criterion.proj)
    chunks = outputs.split(max(1, MAX_DECODED // outputs[0].numel()))
    return torch.cat([_decoded_by_host(criterion, chunk, cached) for chunk in chunks])


def _decoded_by_host(criterion: Any, outputs: Tensor, cached: CachedAnchors) -> Tensor:
    boxes = criterion.bbox_decode(cached.host.points, outputs.permute(0, 2, 1).contiguous())
    return boxes.float().flatten(0, 1)


_exact: dict[tuple, bool] = {}


def is_decoded_exactly(
    criterion: Any, outputs: Tensor, cached: CachedAnchors, box_config: BoxTermConfig, types: Types
) -> bool:
    """Return whether the kernel decodes as the host does, bit for bit: tested on random outputs of some images."""
    key = (outputs.device, outputs.dtype, outputs.shape, types)
    if key not in _exact:
        rng = torch.Generator(outputs.device).manual_seed(0)
        shape = (min(len(outputs), MAX_COMPARED), *outputs.shape[1:])
        sample = (torch.randn(shape, generator=rng, device=outputs.device) * 3).to(outputs.dtype)
        ours = decode(sample, cached.anchors, box_config, criterion.proj)
        _exact[key] = torch.equal(_decoded_by_host(criterion, sample, cached), ours)
    return _exact[key]


def is_box_loss_pointwise(loss: Loss) -> bool:
    """Return whether the loss of a pair depends on nothing but that pair; tested on parts of a batch."""
    rng = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 24, 2, generator=rng) * 8
    pred, target = (torch.cat((c, c + 1 + torch.rand(24, 2, generator=rng) * 4), -1) for c in corners)
    stride, imgsz = torch.full((24, 1), 8.0), torch.tensor([64.0, 96.0])
    return terms.is_pointwise(loss, lambda i: loss(pred[i], target[i], stride=stride[i], imgsz=imgsz))


def kernel_assignment_outputs(
    criterion: Any, image: Tensor, gts: GtRows, assigned: AnchorGts, cached: CachedAnchors
) -> tuple:
    """Return what tasks with additional terms read: foreground, gt indices, gt boxes, anchors and strides."""
    if not fast.reads_assignment(criterion):
        return (None,) * 5
    n, n_images = len(gts.boxes), len(gts.first)
    row = assigned.row.view(n_images, -1).long()
    foreground, host = row >= 0, cached.host[:2]
    if not n:
        return foreground, row.clamp(min=0), gts.boxes.new_zeros(*row.shape, 4), *host
    # The host numbers the gts of an image in their order; anchors without a gt have the index of the first.
    order = image.long().argsort(stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(n, device=order.device))
    first = (n - gts.first.long()).clamp(max=n - 1).unsqueeze(1)
    slot = torch.where(foreground, rank[row.clamp(min=0)] - rank[first], 0)
    boxes = gts.boxes[torch.where(foreground, row, first)] * (gts.first > 0).view(-1, 1, 1)
    return foreground, slot, boxes, *host

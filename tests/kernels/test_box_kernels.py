# SPDX-License-Identifier: AGPL-3.0-or-later
"""The box kernels against the losses themselves, and against Ultralytics' decoding and box terms."""

from types import SimpleNamespace

import pytest
import torch
import triton
import triton.language as tl
from ultralytics.utils.loss import BboxLoss, v8DetectionLoss
from ultralytics.utils.metrics import bbox_iou

from tests.pairs import boxes as degenerate
from yolo_lossplug import create_box_loss
from yolo_lossplug.kernels.assignment import AnchorGts
from yolo_lossplug.kernels.box_maths import STOCK_CIOU, pair_loss, pair_overlap
from yolo_lossplug.kernels.box_term import box_gradient, box_sums, positive_slots
from yolo_lossplug.kernels.decoding import NO_LOSS, BoxTermConfig, decode
from yolo_lossplug.kernels.gt_rows import KernelAnchors
from yolo_lossplug.kernels.launching import launch
from yolo_lossplug.registry import OVERLAP, REGISTRY

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of masked elements, in the interpreter


@triton.jit
def _evaluate(pred_ptr, target_ptr, out_ptr, n, KIND: tl.constexpr, THETA: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    mask = i < n
    x1, y1 = tl.load(pred_ptr + i * 4, mask=mask, other=0.0), tl.load(pred_ptr + i * 4 + 1, mask=mask, other=0.0)
    x2, y2 = tl.load(pred_ptr + i * 4 + 2, mask=mask, other=1.0), tl.load(pred_ptr + i * 4 + 3, mask=mask, other=1.0)
    X1, Y1 = tl.load(target_ptr + i * 4, mask=mask, other=0.0), tl.load(target_ptr + i * 4 + 1, mask=mask, other=0.0)
    X2 = tl.load(target_ptr + i * 4 + 2, mask=mask, other=1.0)
    Y2 = tl.load(target_ptr + i * 4 + 3, mask=mask, other=1.0)
    loss, g1, g2, g3, g4 = pair_loss(KIND, THETA, x1, y1, x2, y2, X1, Y1, X2, Y2, out_ptr)
    tl.store(out_ptr + i * 6, loss, mask=mask)
    tl.store(out_ptr + i * 6 + 1, g1, mask=mask)
    tl.store(out_ptr + i * 6 + 2, g2, mask=mask)
    tl.store(out_ptr + i * 6 + 3, g3, mask=mask)
    tl.store(out_ptr + i * 6 + 4, g4, mask=mask)
    tl.store(out_ptr + i * 6 + 5, pair_overlap(KIND, THETA, X1, Y1, X2, Y2, x1, y1, x2, y2, out_ptr), mask=mask)


def evaluated(kind, theta, pred, target):
    out = torch.empty(len(pred), 6, device=pred.device)
    block = triton.next_power_of_2(len(pred))
    launch(_evaluate, (1,), (pred, target, out, len(pred)), {"KIND": kind, "THETA": theta, "BLOCK": block})
    return out[:, 0], out[:, 1:5], out[:, 5]


def pairs(device, n=200):
    rng = torch.Generator().manual_seed(1)
    corner = torch.rand(2, n, 2, generator=rng) * 10
    pred, target = (torch.cat((c, c + torch.rand(n, 2, generator=rng) * 8), -1) for c in corner)
    target[:10] = pred[:10]
    target[10:20, :2], target[20:30, 2:] = pred[10:20, :2], pred[20:30, 2:]
    return pred.to(device), target.to(device)


@pytest.mark.parametrize("name", [spec.name for spec in REGISTRY if spec.kind == OVERLAP and spec.kernel])
def test_our_formulas(name, kernel_device):
    loss = create_box_loss(name)
    for pred, target in (pairs(kernel_device), degenerate(device=kernel_device)):
        x = pred.clone().requires_grad_()
        expected = loss(x, target)
        (grad,) = torch.autograd.grad(expected.sum(), x)
        value, gradient, shared = evaluated(*loss.kernel, pred, target)
        torch.testing.assert_close(value, expected.detach(), rtol=1e-6, atol=1e-6)
        assert gradient.isfinite().all()
        has_sides = (pred[:, 2:] != pred[:, :2]).all(
            1
        )  # at a side of 0, clamp has a gradient or not, by torch's release
        error = (gradient - grad).norm(dim=1)[has_sides]
        assert (error <= 2e-4 * grad.norm(dim=1)[has_sides] + 1e-5).all()
        torch.testing.assert_close(shared, (1 - expected.detach()).clamp(0), rtol=1e-6, atol=1e-6)


def test_the_exponent_of_siou_and_the_formula_of_ultralytics(kernel_device):
    pred, target = pairs(kernel_device)
    for theta in (1.0, 2.0, 5.5):
        loss = create_box_loss("siou", siou_theta=theta)
        assert loss.kernel.theta == theta
        torch.testing.assert_close(evaluated(*loss.kernel, pred, target)[0], loss(pred, target), rtol=1e-5, atol=1e-6)
    pred, target = pairs(kernel_device)
    x = pred.clone().requires_grad_()
    expected = bbox_iou(x, target, xywh=False, CIoU=True).squeeze(-1)
    (grad,) = torch.autograd.grad((1 - expected).sum(), x)
    value, gradient, shared = evaluated(STOCK_CIOU.value, 0.0, pred, target)
    torch.testing.assert_close(value, 1 - expected.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, grad, rtol=1e-4, atol=1e-5)
    forward = bbox_iou(target, pred, xywh=False, CIoU=True).squeeze(-1).clamp(0)
    torch.testing.assert_close(shared, forward, rtol=1e-6, atol=1e-7)


class Scene:
    """Two images of 64 x 96 pixels, with a head's outputs, gts, and an assignment."""

    def __init__(self, device, n_bins=16, dtype=torch.float32):
        rng = torch.Generator().manual_seed(2)
        shapes, strides = [(8, 12), (4, 6)], torch.tensor([8.0, 16.0])
        grids = [torch.cartesian_prod(torch.arange(h), torch.arange(w)).flip(1) + 0.5 for h, w in shapes]
        points, each = torch.cat(grids), torch.cat([torch.full((len(g),), float(s)) for g, s in zip(grids, strides)])
        levels = torch.tensor([(0, 8, 12), (96, 4, 6)], dtype=torch.int32)
        scale = torch.tensor([96.0, 64.0])
        tensors = (points * each.unsqueeze(1), points, each, levels, scale)
        self.anchors = KernelAnchors(*(tensor.to(device) for tensor in tensors))
        n = len(points)
        outputs = torch.randn(2, 4 * n_bins, n, generator=rng)
        self.outputs = (outputs.abs() * 3 if n_bins == 1 else outputs * 2).to(device, dtype)
        corner = torch.rand(6, 2, generator=rng) * 40
        self.boxes = torch.cat((corner, corner + 4 + torch.rand(6, 2, generator=rng) * 50), 1).to(device)
        row = torch.randint(6, (2 * n,), generator=rng).masked_fill(torch.rand(2 * n, generator=rng) > 0.15, -1)
        row[:70] = -1  # so that one program has no positive
        self.is_positive = (row >= 0).to(device)
        slots = torch.full((100,), -1)
        slots[torch.randperm(100, generator=rng)[: int((row >= 0).sum())]] = (row >= 0).nonzero().squeeze(1)
        chosen = torch.zeros(2 * n, dtype=torch.long)
        chosen[slots[slots >= 0]] = 100 - (slots >= 0).nonzero().squeeze(1)
        slots[(slots < 0).nonzero()[0]] = slots[slots >= 0][0]  # an anchor that two rows selected
        score = torch.rand(2 * n, generator=rng) * (row >= 0)
        made = (row.int(), row.clamp(min=0).int(), score, score.view(1, -1).sum(1), slots.int(), chosen.int())
        self.assigned = AnchorGts(*(tensor.to(device) for tensor in made))
        self.head = SimpleNamespace(use_dfl=n_bins > 1, proj=torch.arange(float(n_bins), device=device))

    def decoded(self, outputs):
        points = self.anchors.points.to(outputs.dtype)
        return v8DetectionLoss.bbox_decode(self.head, points, outputs.permute(0, 2, 1).contiguous())

    def terms(self, outputs, n_bins):
        assigned, anchors, dtype = self.assigned, self.anchors, outputs.dtype
        target = self.boxes[assigned.row.clamp(min=0).long()].view(2, -1, 4) / anchors.strides.view(1, -1, 1)
        return BboxLoss(n_bins).to(outputs.device)(
            outputs.permute(0, 2, 1).contiguous(),
            self.decoded(outputs),
            anchors.points.to(dtype),
            target,
            assigned.score.view(2, -1, 1),
            torch.tensor(1.0, device=outputs.device),
            self.is_positive.view(2, -1),
            anchors.scale.flip(0).to(dtype),
            anchors.strides.unsqueeze(1).to(dtype),
        )


@pytest.mark.parametrize("n_bins", [16, 1, 32, 7])
def test_terms_of_ultralytics(n_bins, kernel_device):
    scene = Scene(kernel_device, n_bins)
    x = scene.outputs.clone().requires_grad_()
    expected = scene.terms(x, n_bins)
    (grad,) = torch.autograd.grad(2 * expected[0] + 3 * expected[1], x)
    config = BoxTermConfig(STOCK_CIOU.value, 0.0, n_bins)
    grid = decode(scene.outputs, scene.anchors, config, scene.head.proj)
    torch.testing.assert_close(grid.view(2, -1, 4), scene.decoded(scene.outputs), rtol=1e-5, atol=1e-5)
    args = (scene.outputs, scene.boxes, scene.assigned, grid, scene.anchors, config)
    for sums, one in zip(box_sums(*args), expected):
        torch.testing.assert_close(sums.sum(), one.detach(), rtol=1e-5, atol=1e-5)
    scales = tuple(torch.tensor(factor, device=kernel_device) for factor in (2.0, 3.0))
    torch.testing.assert_close(box_gradient(*args, scales, None), grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n_bins", [16, 1])
def test_roundings_of_ultralytics(n_bins, dtype, kernel_device):
    scene = Scene(kernel_device, n_bins, dtype)
    grid = decode(scene.outputs, scene.anchors, BoxTermConfig(STOCK_CIOU.value, 0.0, n_bins), scene.head.proj)
    expected = scene.decoded(scene.outputs).float().flatten(0, 1)
    is_equal = grid == expected
    assert is_equal.float().mean() > 0.995  # the product is torch's own, of shares whose exponentials round otherwise
    torch.testing.assert_close(grid, expected, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


def test_a_loss_evaluated_outside_the_kernels(kernel_device):
    """Its boxes are listed by slot, each anchor once, and its gradients return to the outputs."""
    scene = Scene(kernel_device)
    config = BoxTermConfig(STOCK_CIOU.value, 0.0, 16)
    grid = decode(scene.outputs, scene.anchors, config, scene.head.proj)
    predicted, targets, scores, strides = positive_slots(scene.assigned, scene.boxes, grid, scene.anchors)
    n = int(scene.is_positive.sum())
    assert int((scores > 0).sum()) == n < len(scores) == 100
    assert scores.sum().item() == pytest.approx(scene.assigned.score.sum().item(), rel=1e-5)
    assert {8.0, 16.0} <= set(strides.flatten().tolist())
    predicted.requires_grad_()
    loss = 1 - bbox_iou(predicted, targets, xywh=False, CIoU=True).squeeze(-1)
    total = (loss * scores).sum()
    (grads,) = torch.autograd.grad(total, predicted)
    args = (scene.outputs, scene.boxes, scene.assigned, grid, scene.anchors)
    scales = tuple(torch.tensor(factor, device=kernel_device) for factor in (2.0, 3.0))
    box, dfl = box_sums(*args, config)
    assert total.item() == pytest.approx(box.sum().item(), rel=1e-5)
    elsewhere = config._replace(kind=NO_LOSS)
    assert not box_sums(*args, elsewhere)[0].any()
    torch.testing.assert_close(box_sums(*args, elsewhere)[1], dfl)
    expected = box_gradient(*args, config, scales, None)
    torch.testing.assert_close(box_gradient(*args, elsewhere, scales, grads), expected, rtol=1e-4, atol=1e-6)

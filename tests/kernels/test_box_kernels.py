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
from yolo_lossplug.kernels.assignment import Anchors, Assigned
from yolo_lossplug.kernels.box_maths import HOST, box_loss, overlap
from yolo_lossplug.kernels.box_term import NO_LOSS, Wanted, box_gradient, box_sums, decode, listed
from yolo_lossplug.kernels.rounding import EXACT
from yolo_lossplug.registry import OVERLAP, REGISTRY

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of masked places, in the interpreter


@triton.jit
def _evaluate(pred_ptr, target_ptr, out_ptr, n, KIND: tl.constexpr, THETA: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    mask = i < n
    x1, y1 = tl.load(pred_ptr + i * 4, mask=mask, other=0.0), tl.load(pred_ptr + i * 4 + 1, mask=mask, other=0.0)
    x2, y2 = tl.load(pred_ptr + i * 4 + 2, mask=mask, other=1.0), tl.load(pred_ptr + i * 4 + 3, mask=mask, other=1.0)
    X1, Y1 = tl.load(target_ptr + i * 4, mask=mask, other=0.0), tl.load(target_ptr + i * 4 + 1, mask=mask, other=0.0)
    X2 = tl.load(target_ptr + i * 4 + 2, mask=mask, other=1.0)
    Y2 = tl.load(target_ptr + i * 4 + 3, mask=mask, other=1.0)
    loss, g1, g2, g3, g4 = box_loss(KIND, THETA, x1, y1, x2, y2, X1, Y1, X2, Y2, out_ptr)
    tl.store(out_ptr + i * 6, loss, mask=mask)
    tl.store(out_ptr + i * 6 + 1, g1, mask=mask)
    tl.store(out_ptr + i * 6 + 2, g2, mask=mask)
    tl.store(out_ptr + i * 6 + 3, g3, mask=mask)
    tl.store(out_ptr + i * 6 + 4, g4, mask=mask)
    tl.store(out_ptr + i * 6 + 5, overlap(KIND, THETA, X1, Y1, X2, Y2, x1, y1, x2, y2, out_ptr), mask=mask)


def evaluated(kind, theta, pred, target):
    """Return loss (N,), gradient (N, 4) and overlap (N,) of a formula."""
    out = torch.empty(len(pred), 6, device=pred.device)
    block = triton.next_power_of_2(len(pred))
    _evaluate[(1,)](pred, target, out, len(pred), KIND=kind, THETA=theta, BLOCK=block, **EXACT)
    return out[:, 0], out[:, 1:5], out[:, 5]


def pairs(place, n=200):
    """Return boxes of every kind, among them equal ones, and ones with equal edges."""
    rng = torch.Generator().manual_seed(1)
    corner = torch.rand(2, n, 2, generator=rng) * 10
    pred, target = (torch.cat((c, c + torch.rand(n, 2, generator=rng) * 8), -1) for c in corner)
    target[:10] = pred[:10]
    target[10:20, :2], target[20:30, 2:] = pred[10:20, :2], pred[20:30, 2:]
    return pred.to(place), target.to(place)


@pytest.mark.parametrize("name", [spec.name for spec in REGISTRY if spec.kind == OVERLAP and spec.kernel])
def test_our_formulas(name, place):
    loss = create_box_loss(name)
    for pred, target in (pairs(place), degenerate(device=place)):
        x = pred.clone().requires_grad_()
        expected = loss(x, target)
        (slope,) = torch.autograd.grad(expected.sum(), x)
        value, gradient, shared = evaluated(*loss.kernel, pred, target)
        torch.testing.assert_close(value, expected.detach(), rtol=1e-6, atol=1e-6)
        assert gradient.isfinite().all()
        has_sides = (pred[:, 2:] != pred[:, :2]).all(
            1
        )  # at a side of 0, clamp has a gradient or not, by torch's release
        error = (gradient - slope).norm(dim=1)[has_sides]
        assert (error <= 2e-4 * slope.norm(dim=1)[has_sides] + 1e-5).all()
        torch.testing.assert_close(shared, (1 - expected.detach()).clamp(0), rtol=1e-6, atol=1e-6)


def test_the_exponent_of_siou(place):
    pred, target = pairs(place)
    for theta in (1.0, 2.0, 5.5):
        loss = create_box_loss("siou", siou_theta=theta)
        assert loss.kernel.theta == theta
        torch.testing.assert_close(evaluated(*loss.kernel, pred, target)[0], loss(pred, target), rtol=1e-5, atol=1e-6)


def test_the_hosts_formula(place):
    pred, target = pairs(place)
    x = pred.clone().requires_grad_()
    expected = bbox_iou(x, target, xywh=False, CIoU=True).squeeze(-1)
    (slope,) = torch.autograd.grad((1 - expected).sum(), x)
    value, gradient, shared = evaluated(HOST.value, 0.0, pred, target)
    torch.testing.assert_close(value, 1 - expected.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-5)
    forward = bbox_iou(target, pred, xywh=False, CIoU=True).squeeze(-1).clamp(0)
    torch.testing.assert_close(shared, forward, rtol=1e-6, atol=1e-7)


class Scene:
    """Two images of 64 x 96 pixels, with a head's outputs, objects, and anchors that have one."""

    def __init__(self, place, n_bins=16, dtype=torch.float32):
        rng = torch.Generator().manual_seed(2)
        shapes, strides = [(8, 12), (4, 6)], torch.tensor([8.0, 16.0])
        grids = [torch.cartesian_prod(torch.arange(h), torch.arange(w)).flip(1) + 0.5 for h, w in shapes]
        points, each = torch.cat(grids), torch.cat([torch.full((len(g),), float(s)) for g, s in zip(grids, strides)])
        levels = torch.tensor([(0, 8, 12), (96, 4, 6)], dtype=torch.int32)
        scale = torch.tensor([96.0, 64.0])
        tensors = (points * each.unsqueeze(1), points, each, levels, scale)
        self.anchors = Anchors(*(tensor.to(place) for tensor in tensors))
        n = len(points)
        outputs = torch.randn(2, 4 * n_bins, n, generator=rng)
        self.outputs = (outputs.abs() * 3 if n_bins == 1 else outputs * 2).to(place, dtype)
        corner = torch.rand(6, 2, generator=rng) * 40
        self.boxes = torch.cat((corner, corner + 4 + torch.rand(6, 2, generator=rng) * 50), 1).to(place)
        row = torch.randint(6, (2 * n,), generator=rng).masked_fill(torch.rand(2 * n, generator=rng) > 0.15, -1)
        row[:70] = -1  # so that a program has nothing to do
        self.is_positive = (row >= 0).to(place)
        slots = torch.full((100,), -1)
        slots[torch.randperm(100, generator=rng)[: int((row >= 0).sum())]] = (row >= 0).nonzero().squeeze(1)
        chosen = torch.zeros(2 * n, dtype=torch.long)
        chosen[slots[slots >= 0]] = 100 - (slots >= 0).nonzero().squeeze(1)
        slots[(slots < 0).nonzero()[0]] = slots[slots >= 0][0]  # one that another row has selected too
        score = torch.rand(2 * n, generator=rng) * (row >= 0)
        made = (row.int(), row.clamp(min=0).int(), score, score.view(1, -1).sum(1), slots.int(), chosen.int())
        self.assigned = Assigned(*(tensor.to(place) for tensor in made))
        self.head = SimpleNamespace(use_dfl=n_bins > 1, proj=torch.arange(float(n_bins), device=place))

    def decoded(self, outputs):
        """Return the boxes (b, A, 4) that the host decodes."""
        points = self.anchors.points.to(outputs.dtype)
        return v8DetectionLoss.bbox_decode(self.head, points, outputs.permute(0, 2, 1).contiguous())

    def terms(self, outputs, n_bins):
        """Return both terms as the host computes them."""
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
def test_terms_of_the_host(n_bins, place):
    scene = Scene(place, n_bins)
    x = scene.outputs.clone().requires_grad_()
    expected = scene.terms(x, n_bins)
    (slope,) = torch.autograd.grad(2 * expected[0] + 3 * expected[1], x)
    wanted = Wanted(HOST.value, 0.0, n_bins)
    grid = decode(scene.outputs, scene.anchors, wanted)
    torch.testing.assert_close(grid.view(2, -1, 4), scene.decoded(scene.outputs), rtol=1e-5, atol=1e-5)
    given = (scene.outputs, scene.boxes, scene.assigned, grid, scene.anchors, wanted)
    for sums, one in zip(box_sums(*given), expected):
        torch.testing.assert_close(sums.sum(), one.detach(), rtol=1e-5, atol=1e-5)
    scales = tuple(torch.tensor(factor, device=place) for factor in (2.0, 3.0))
    torch.testing.assert_close(box_gradient(*given, scales, None), slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n_bins", [16, 1])
def test_roundings_of_the_host(n_bins, dtype, place):
    scene = Scene(place, n_bins, dtype)
    grid = decode(scene.outputs, scene.anchors, Wanted(HOST.value, 0.0, n_bins, True))
    expected = scene.decoded(scene.outputs).float().flatten(0, 1)
    is_equal = grid == expected
    assert is_equal.float().mean() > 0.98  # the host adds up in another order, which a rounding may show
    torch.testing.assert_close(grid, expected, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


def test_a_loss_that_is_evaluated_elsewhere(place):
    """Its boxes are listed by slot, each anchor once, and its gradients find their way back."""
    scene = Scene(place)
    wanted = Wanted(HOST.value, 0.0, 16)
    grid = decode(scene.outputs, scene.anchors, wanted)
    predicted, targets, scores, strides = listed(scene.assigned, scene.boxes, grid, scene.anchors)
    n = int(scene.is_positive.sum())
    assert int((scores > 0).sum()) == n < len(scores) == 100
    assert scores.sum().item() == pytest.approx(scene.assigned.score.sum().item(), rel=1e-5)
    assert {8.0, 16.0} <= set(strides.flatten().tolist())
    predicted.requires_grad_()
    loss = 1 - bbox_iou(predicted, targets, xywh=False, CIoU=True).squeeze(-1)
    total = (loss * scores).sum()
    (slopes,) = torch.autograd.grad(total, predicted)
    given = (scene.outputs, scene.boxes, scene.assigned, grid, scene.anchors)
    scales = tuple(torch.tensor(factor, device=place) for factor in (2.0, 3.0))
    box, dfl = box_sums(*given, wanted)
    assert total.item() == pytest.approx(box.sum().item(), rel=1e-5)
    elsewhere = wanted._replace(kind=NO_LOSS)
    assert not box_sums(*given, elsewhere)[0].any()
    torch.testing.assert_close(box_sums(*given, elsewhere)[1], dfl)
    expected = box_gradient(*given, wanted, scales, None)
    torch.testing.assert_close(box_gradient(*given, elsewhere, scales, slopes), expected, rtol=1e-4, atol=1e-6)

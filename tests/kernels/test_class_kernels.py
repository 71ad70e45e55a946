# SPDX-License-Identifier: AGPL-3.0-or-later
"""The class kernels against the losses themselves on dense targets, by value and by gradient."""

import pytest
import torch

from tests.checks import choices
from tests.runs import slow
from yolo_lossplug import create_class_loss
from yolo_lossplug.kernels.class_term import ClassTargets, class_gradient, class_sums
from yolo_lossplug.registry import CLASS, REGISTRY

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # which is intended

NAMES = [spec.name for spec in REGISTRY if spec.kind == CLASS and spec.kernel]
CHOICES = [
    (name, options)
    for name in NAMES
    for options in choices(create_class_loss(name))
    if create_class_loss(name, **options).kernel
]


def problem(device, shape=(2, 5, 70), dtype=torch.float32):
    """Return logits of all magnitudes, and classes and scores of the anchors, most of them 0."""
    rng = torch.Generator().manual_seed(3)
    b, n_classes, n_anchors = shape
    logits = torch.randn(shape, generator=rng) * 4 - 2
    extremes = torch.tensor([0.0, 40, -40, 90, -90, 1e-4, 15, -15])[: logits.numel()]
    logits.view(-1)[: len(extremes)] = extremes
    label = torch.randint(n_classes, (b * n_anchors,), generator=rng)
    score = torch.rand(b * n_anchors, generator=rng) * (torch.rand(b * n_anchors, generator=rng) < 0.2)
    return logits.to(device, dtype), label.int().to(device), score.to(device)


def compared(loss, inputs, smoothing=0.0, weights=None, rtol=1e-5):
    logits, label, score = inputs
    b, n_classes, n_anchors = logits.shape
    dense = torch.zeros(b * n_anchors, n_classes, device=logits.device)
    dense[torch.arange(b * n_anchors, device=logits.device), label.long()] = score.to(logits.dtype).float()
    if smoothing:
        smooth = (dense.to(logits.dtype) * (1 - smoothing) + smoothing / 2).float()
        dense = torch.where(dense.amax(1, keepdim=True) > 0, smooth, dense)
    x = logits.float().requires_grad_()
    terms = loss(x, dense.view(b, n_anchors, n_classes).permute(0, 2, 1))
    expected = (terms if weights is None else terms * weights.view(1, -1, 1)).double().sum()
    (grad,) = torch.autograd.grad(expected, x)

    targets, kernel = ClassTargets(label, score, smoothing, weights), loss.kernel
    sums = class_sums(logits, targets, kernel)
    torch.testing.assert_close(sums.sum().double(), expected.detach(), rtol=rtol, atol=1e-6)
    actual = class_gradient(logits, targets, kernel, torch.tensor(2.0, device=logits.device))
    assert actual.dtype == logits.dtype
    power = 15 * kernel.gamma * torch.finfo(torch.float32).eps  # a power multiplies the error of its base
    rtol, atol = (2e-5 + power, 1e-6) if logits.dtype == torch.float32 else (1e-2, 1e-3)
    torch.testing.assert_close(actual.float(), 2 * grad, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name,options", CHOICES, ids=str)
def test_every_formula(name, options, kernel_device):
    compared(create_class_loss(name, **options), problem(kernel_device))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name, dtype, kernel_device):
    compared(create_class_loss(name), problem(kernel_device, dtype=dtype))
    compared(create_class_loss(name), problem(kernel_device, dtype=dtype), smoothing=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_smoothing_and_weights(name, kernel_device):
    weights = torch.tensor([0.0, 1, 2, 3, 0.5], device=kernel_device)
    compared(create_class_loss(name), problem(kernel_device), smoothing=0.2)
    compared(create_class_loss(name), problem(kernel_device), weights=weights)
    compared(create_class_loss(name), problem(kernel_device), smoothing=0.1, weights=weights)


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 1, 1100), slow((1, 21, 300)), slow((1, 80, 33))], ids=str)
def test_shapes(shape, kernel_device):
    for name in ("bce", "qfl"):
        compared(create_class_loss(name), problem(kernel_device, shape))


@pytest.mark.parametrize("logit", [-11.5, slow(-30.0), slow(-3.0)])
def test_small_losses_add_up(logit, kernel_device):
    """A new head has equal logits far below 0, whose losses are small each and large in sum."""
    logits = torch.full((1, 16, 1000), logit, device=kernel_device)
    zero = torch.zeros(1000, device=kernel_device)
    x = torch.tensor(logit, dtype=torch.float64)
    for name in NAMES:
        loss = create_class_loss(name)
        p = x.sigmoid() ** (loss.background.exponent or 0)
        expected = 16_000 * loss.background.weight * p * torch.nn.functional.softplus(x)
        sums = class_sums(logits, ClassTargets(zero.int(), zero), loss.kernel)
        assert sums.sum().item() == pytest.approx(expected.item(), rel=5e-6)


def test_nan_stays_nan_and_a_loss_may_have_no_kernel(kernel_device):
    logits, label, score = problem(kernel_device)
    for name in NAMES:
        kernel = create_class_loss(name).kernel
        broken = logits.clone()
        broken[0, 2, 7] = float("nan")
        assert class_sums(broken, ClassTargets(label, score), kernel).sum().isnan()
        lost = score.clone()
        lost[3] = float("nan")
        assert class_sums(logits, ClassTargets(label, lost), kernel).sum().isnan()
    assert create_class_loss("poly").kernel is None

# SPDX-License-Identifier: AGPL-3.0-or-later
"""The class kernels against the losses themselves on dense targets, by value and by gradient."""

import pytest
import torch

from tests.checks import choices
from yolo_lossplug import create_class_loss
from yolo_lossplug.kernels.class_term import Targets, class_gradient, class_sums
from yolo_lossplug.registry import CLASS, REGISTRY

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # infinity is what is wanted

NAMES = [spec.name for spec in REGISTRY if spec.kind == CLASS and spec.kernel]
CHOICES = [(name, options) for name in NAMES for options in choices(create_class_loss(name))]


def problem(place, shape=(2, 5, 70), dtype=torch.float32):
    """Return logits of every size, and the class and the score of each anchor, most without one."""
    rng = torch.Generator().manual_seed(3)
    b, n_classes, n_anchors = shape
    logits = torch.randn(shape, generator=rng) * 4 - 2
    extremes = torch.tensor([0.0, 40, -40, 90, -90, 1e-4, 15, -15])[: logits.numel()]
    logits.view(-1)[: len(extremes)] = extremes
    label = torch.randint(n_classes, (b * n_anchors,), generator=rng)
    score = torch.rand(b * n_anchors, generator=rng) * (torch.rand(b * n_anchors, generator=rng) < 0.2)
    return logits.to(place, dtype), label.int().to(place), score.to(place)


def compared(loss, given, smoothing=0.0, weights=None, rtol=1e-5):
    """Assert that kernels and loss agree in the sum and in its gradient."""
    logits, label, score = given
    b, n_classes, n_anchors = logits.shape
    dense = torch.zeros(b * n_anchors, n_classes, device=logits.device)
    dense[torch.arange(b * n_anchors, device=logits.device), label.long()] = score.to(logits.dtype).float()
    if smoothing:
        smooth = (dense.to(logits.dtype) * (1 - smoothing) + smoothing / 2).float()
        dense = torch.where(dense.amax(1, keepdim=True) > 0, smooth, dense)
    x = logits.float().requires_grad_()
    terms = loss(x, dense.view(b, n_anchors, n_classes).permute(0, 2, 1))
    expected = (terms if weights is None else terms * weights.view(1, -1, 1)).double().sum()
    (slope,) = torch.autograd.grad(expected, x)

    targets, formula = Targets(label, score, smoothing, weights), loss.kernel
    sums = class_sums(logits, targets, formula)
    torch.testing.assert_close(sums.sum().double(), expected.detach(), rtol=rtol, atol=1e-6)
    found = class_gradient(logits, targets, formula, torch.tensor(2.0, device=logits.device))
    assert found.dtype == logits.dtype
    power = 15 * formula.gamma * torch.finfo(torch.float32).eps  # which multiplies the error of its base
    rtol, atol = (2e-5 + power, 1e-6) if logits.dtype == torch.float32 else (1e-2, 1e-3)
    torch.testing.assert_close(found.float(), 2 * slope, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name,options", CHOICES, ids=str)
def test_every_formula(name, options, place):
    compared(create_class_loss(name, **options), problem(place))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name, dtype, place):
    compared(create_class_loss(name), problem(place, dtype=dtype))
    compared(create_class_loss(name), problem(place, dtype=dtype), smoothing=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_smoothing_and_weights(name, place):
    weights = torch.tensor([0.0, 1, 2, 3, 0.5], device=place)
    compared(create_class_loss(name), problem(place), smoothing=0.2)
    compared(create_class_loss(name), problem(place), weights=weights)
    compared(create_class_loss(name), problem(place), smoothing=0.1, weights=weights)


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 1, 1100), (1, 21, 300), (1, 80, 33)], ids=str)
def test_shapes(shape, place):
    for name in ("bce", "qfl"):
        compared(create_class_loss(name), problem(place, shape))


@pytest.mark.parametrize("logit", [-11.5, -30.0, -3.0])
def test_no_small_number_is_lost(logit, place):
    """A fresh head has equal logits far below 0, of which each counts little and all together much."""
    logits = torch.full((1, 16, 1000), logit, device=place)
    zero = torch.zeros(1000, device=place)
    x = torch.tensor(logit, dtype=torch.float64)
    for name in NAMES:
        loss = create_class_loss(name)
        p = x.sigmoid() ** (loss.background.exponent or 0)
        expected = 16_000 * loss.background.weight * p * torch.nn.functional.softplus(x)
        sums = class_sums(logits, Targets(zero.int(), zero), loss.kernel)
        assert sums.sum().item() == pytest.approx(expected.item(), rel=5e-6)


def test_what_is_no_number_stays_none(place):
    logits, label, score = problem(place)
    for name in NAMES:
        formula = create_class_loss(name).kernel
        broken = logits.clone()
        broken[0, 2, 7] = float("nan")
        assert class_sums(broken, Targets(label, score), formula).sum().isnan()
        lost = score.clone()
        lost[3] = float("nan")
        assert class_sums(logits, Targets(label, lost), formula).sum().isnan()


def test_a_loss_without_a_formula():
    assert create_class_loss("poly").kernel is None

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Terms of the fast engine against the dense form: values, gradients and memory."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from ultralytics.utils.loss import DFLoss

from tests.checks import choices
from yolo_lossplug import create_class_loss, list_class_losses
from yolo_lossplug.registry import CLASS, REGISTRY
from yolo_lossplug.sparse import class_term, distance_term, huge_pages
from yolo_lossplug.sparse.class_term import class_sum
from yolo_lossplug.sparse.distance_term import distances, gather

CLOSED = [spec.name for spec in REGISTRY if spec.kind == CLASS and spec.background]
CHOICES = [(name, options) for name in CLOSED for options in choices(create_class_loss(name))]


class Sizes(TorchDispatchMode):
    """Records the size of every computed tensor."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        views = function.is_view or function in (torch.ops.aten.split.Tensor, torch.ops.aten._unsafe_view.default)
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and not views:
                self.sizes.append(tensor.numel())
        return result


def draw(b=3, classes=5, anchors=70, n=20, dtype=torch.float32, device="cpu"):
    """Return logits (b, classes, anchors), and indices and targets of a few of their elements."""
    rng = torch.Generator().manual_seed(3)
    logits = torch.randn(b, classes, anchors, generator=rng) * 4
    index = torch.randperm(logits.numel(), generator=rng)[:n]
    targets = torch.rand(n, generator=rng)
    targets[0] = 0
    return logits.to(device, dtype).requires_grad_(), index.to(device), targets.to(device, dtype)


def dense(logits, index, targets, loss, weights=None):
    """The sum with a target for every element."""
    full = torch.zeros_like(logits).flatten().scatter(0, index, targets).view_as(logits)
    value = loss(logits, full)
    return (value if weights is None else value * weights.view(1, -1, 1)).sum()


@pytest.mark.parametrize(("name", "options"), CHOICES, ids=str)
def test_closed_form_at_target_zero(name, options):
    loss = create_class_loss(name, **options)
    x = torch.linspace(-40, 40, 400, dtype=torch.float64).float().view(1, 2, 200)
    exact = x.double()  # in float32 the elementwise form cancels far from 0
    expected, grad = loss(exact, torch.zeros_like(exact)), class_term._grad(exact, torch.zeros_like(exact), loss)
    actual = class_term._at_zero(x, loss, loss.background, torch.empty_like(x))
    power = loss.background.exponent * torch.finfo(torch.float32).eps  # which multiplies the error of its base
    torch.testing.assert_close(actual.double(), expected, rtol=2e-5 + power, atol=2e-8)
    actual = class_term._grad_at_zero(x, loss, loss.background, torch.empty_like(x))
    # The error of 1 − p, times a logit.
    torch.testing.assert_close(actual.double(), grad, rtol=1e-4 + 40 * power, atol=2e-8)


ELEMENTWISE = [name for name in list_class_losses() if create_class_loss(name).state is None and name != "slide"]


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_class_sum_equals_the_dense_sum(name, device, monkeypatch):
    chunks = {"cpu": 400, "cuda": 400}  # of an image, and of the targets
    monkeypatch.setattr(class_term, "ELEMENTS_PER_CHUNK", chunks)
    loss, tolerances = create_class_loss(name), {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}
    for weights, dtype in product((None, torch.tensor([0.0, 1, 2, 0.5, 3], device=device)), tolerances):
        inputs = draw(dtype=dtype, device=device)
        expected = dense(*inputs, loss, weights)
        actual = class_sum(*inputs, loss, background=loss.background, weights=weights)
        torch.testing.assert_close(actual, expected.float(), rtol=2e-6, atol=1e-5)
        grads = [torch.autograd.grad(value * 0.3, inputs[0])[0] for value in (expected, actual)]
        assert grads[1].dtype == dtype
        torch.testing.assert_close(grads[1], grads[0], rtol=tolerances[dtype], atol=tolerances[dtype])


def test_class_sum_and_distances_of_nothing():
    loss = create_class_loss("bce")
    logits, _, _ = draw()
    none = torch.zeros(0, dtype=torch.long), torch.zeros(0)
    torch.testing.assert_close(class_sum(logits, *none, loss, background=loss.background), F.softplus(logits).sum())
    with torch.no_grad():
        assert not class_sum(logits, *none, loss).requires_grad
    strided = logits.detach().permute(0, 2, 1).contiguous().permute(0, 2, 1).requires_grad_()
    value = class_sum(strided, *none, loss, background=loss.background)
    torch.testing.assert_close(torch.autograd.grad(value, strided)[0], strided.detach().sigmoid())
    features = torch.randn(2, 64, 50, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    expected, dfl = distances(features, none, torch.zeros(0, 4))
    assert expected.shape == (0, 4) and dfl.shape == (0,)
    assert not torch.autograd.grad(expected.sum() + dfl.sum(), features)[0].any()
    assert not torch.autograd.grad(gather(features, none).sum(), features)[0].any()


def test_distances_equal_those_of_the_dense_form(device, monkeypatch):
    monkeypatch.setattr(distance_term, "ANCHORS_PER_CHUNK", {"cpu": 7, "cuda": 7})
    rng = torch.Generator().manual_seed(1)
    features = torch.randn(2, 64, 50, generator=rng).mul(3)
    features[1] *= 60  # where probabilities underflow
    features = features.to(device).requires_grad_()
    anchor = torch.randperm(100, generator=rng)[:30].sort().values.to(device)
    targets = (torch.rand(30, 4, generator=rng) * 18 - 2).clamp(0, 14.99).to(device)
    targets[0] = torch.tensor([0, 1, 14, 14.99])

    rows = features.permute(0, 2, 1).reshape(100, 64)[anchor].view(30, 4, 16)
    expected = rows.softmax(-1) @ torch.arange(16.0, device=device)
    dfl = DFLoss(16)(rows.view(-1, 16), targets.clone()).squeeze(-1)
    actual = distances(features, anchor, targets)
    torch.testing.assert_close(actual[0], expected)
    torch.testing.assert_close(actual[1], dfl)
    weights = torch.rand(30, 4, generator=rng).to(device), torch.rand(30, generator=rng).to(device)
    grads = [
        torch.autograd.grad((weights[0] * one.sin()).sum() + (weights[1] * other).sum(), features)[0]
        for one, other in ((expected, dfl), actual)
    ]
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-6)
    rows = features.permute(0, 2, 1).reshape(100, 64)[anchor].view(-1, 16)
    alone = DFLoss(16)(rows, targets.clone()), distances(features, anchor, targets)[1]
    grads = [torch.autograd.grad(value.sum(), features)[0] for value in alone]
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_gathered_features(dtype, device):
    features = torch.randn(2, 4, 50).to(device, dtype).requires_grad_()
    anchor = torch.tensor([0, 3, 49, 50, 99], device=device)
    rows = features.permute(0, 2, 1).reshape(100, 4)[anchor]
    actual = gather(features, anchor)
    assert torch.equal(actual, rows)
    weights = torch.arange(20.0, device=device).view(5, 4).to(dtype)
    assert torch.equal(*(torch.autograd.grad((x * weights).sum(), features)[0] for x in (actual, rows)))


def test_nothing_as_large_as_the_logits_is_allocated_but_gradients():
    loss = create_class_loss("focal")
    logits, index, targets = draw(b=16, classes=40, anchors=2000, n=50)
    features, anchor = torch.randn(16, 64, 2000, requires_grad=True), torch.arange(0, 32000, 640)
    with Sizes() as forward:
        total = class_sum(logits, index, targets, loss, background=loss.background)
        actual, dfl = distances(features, anchor, torch.rand(50, 4))
        total = total + actual.sum() + dfl.sum()
    assert max(forward.sizes) <= class_term.ELEMENTS_PER_CHUNK["cpu"] < logits.numel() / 2
    with Sizes() as backward:
        total.backward()
    large = [size for size in backward.sizes if size > class_term.ELEMENTS_PER_CHUNK["cpu"]]
    assert set(large) == {logits.numel(), features.numel()}


def test_huge_pages_change_no_value(monkeypatch):
    inputs = torch.randn(1500, 1500)
    assert inputs.numel() * 4 > huge_pages.MIN_BYTES
    assert huge_pages.empty_like(inputs.t()).is_contiguous()
    assert torch.equal(huge_pages.zeros(inputs.shape, like=inputs), torch.zeros(1500, 1500))
    monkeypatch.setattr(huge_pages.sys, "platform", "other")
    huge_pages._madvise.cache_clear()
    assert torch.equal(huge_pages.zeros(inputs.shape, like=inputs), torch.zeros(1500, 1500))
    huge_pages._madvise.cache_clear()

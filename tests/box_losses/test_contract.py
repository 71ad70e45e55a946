# SPDX-License-Identifier: AGPL-3.0-or-later
"""What every box loss promises, over the whole registry."""

import copy
import functools
import pickle

import pytest
import torch

from tests.pairs import KINDS, boxes
from yolo_lossplug import create_box_loss, list_box_losses
from yolo_lossplug.boxes import Pair, aspect_angle
from yolo_lossplug.registry import OVERLAP, REGISTRY

NAMES = [*list_box_losses(), "focal-alpha-ciou", "focal-alpha-giou"]
SHARP = {"alpha_power": 0.3, "focal_gamma": 0.2, "smooth_l1_beta": 1e-3, "siou_theta": 1.0, "riou_beta": 0.51}


def losses(name):
    """Yield a loss with its defaults, and with options that make it sharp."""
    default = create_box_loss(name)
    yield default
    if default.options:
        yield create_box_loss(name, **{key: SHARP[key] for key in default.options})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_finite_for_every_pair(name, dtype, device):
    pred, target = boxes(dtype, device)
    given = pred.clone(), target.clone()
    for loss in losses(name):
        pred.requires_grad_().grad = None
        value = loss(pred, target)
        assert value.shape == (len(KINDS),)
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        (value * 7.5).sum().backward()
        for kind, v, g in zip(KINDS, value.tolist(), pred.grad.float().tolist()):
            assert v == v and abs(v) < float("inf"), (kind, v)
            assert v >= -1e-6, (kind, v)
            if (
                dtype != torch.float16
            ):  # a gradient may be larger than float16 can hold: the host scales its loss for that
                assert all(x == x and abs(x) < float("inf") for x in g), (kind, g)
            assert all(x == x for x in g), (kind, g)
        assert torch.equal(pred.detach(), given[0]) and torch.equal(target, given[1]), "inputs were changed"


@pytest.mark.parametrize("name", NAMES)
def test_no_pair_at_all(name, device):
    pred = torch.zeros(0, 4, device=device, requires_grad=True)
    value = create_box_loss(name)(pred, torch.zeros(0, 4, device=device))
    assert value.shape == (0,)
    value.sum().backward()
    assert pred.grad.shape == (0, 4)


@pytest.mark.parametrize("name", NAMES)
def test_zero_at_identical_boxes(name):
    target = torch.tensor([[0.0, 0, 4, 2], [3, 5, 4, 90], [-7, -9, 11, -8], [0, 0, 1e-6, 2e-6], [0, 0, 1e5, 2e5]])
    pred = target.clone().requires_grad_()
    value = create_box_loss(name)(pred, target)
    torch.testing.assert_close(value, torch.zeros(5), rtol=0, atol=1e-6)


def near_pairs(seed):
    rng = torch.Generator().manual_seed(seed)
    target = torch.rand(9, 4, generator=rng, dtype=torch.float64) * 10
    target[:, 2:] += target[:, :2] + 2
    return (target + torch.randn(9, 4, generator=rng, dtype=torch.float64) * 0.6).requires_grad_(), target


def frozen(name, pred, target):
    """Return the loss with its detached factors held at their values at `pred`: the function that has its gradient."""
    *modifiers, base = name.split("-")
    pair = Pair(pred.detach(), target)
    v = 4 / torch.pi**2 * (aspect_angle(pair.target_size) - aspect_angle(pair.size)) ** 2
    trade_off, weight = v / (1 - pair.iou + v), pair.iou.sqrt() if "focal" in modifiers else 1.0
    power = 3.0 if "alpha" in modifiers else 1.0

    def loss(moved):
        pair = Pair(moved, target)
        penalties = REGISTRY.get(OVERLAP, base).function(pair)
        if base == "ciou":
            angle = aspect_angle(pair.target_size) - aspect_angle(pair.size)
            penalties = (pair.centre_distance, trade_off * 4 / torch.pi**2 * angle**2)
        return weight * (1 - pair.iou**power + sum(p.clamp(min=0) ** power for p in penalties))

    return loss


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    pred, target = near_pairs(1)
    if "focal" in name or "ciou" in name:  # finite differences would see what is detached move
        loss = frozen(name, pred, target)
        (expected,) = torch.autograd.grad(loss(pred).sum(), pred)
        (found,) = torch.autograd.grad(create_box_loss(name)(pred, target).sum(), pred)
        torch.testing.assert_close(found, expected)
    else:
        loss = functools.partial(create_box_loss(name), target=target)
    assert torch.autograd.gradcheck(loss, (pred,), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_pairs_and_place_in_the_image_do_not_matter(name):
    rng = torch.Generator().manual_seed(5)
    target = torch.rand(12, 4, generator=rng, dtype=torch.float64) * 10
    target[:, 2:] += target[:, :2] + 1
    pred = target + torch.randn(12, 4, generator=rng, dtype=torch.float64)
    loss = create_box_loss(name)
    value, order = loss(pred, target), torch.randperm(12, generator=rng)
    torch.testing.assert_close(loss(pred[order], target[order]), value[order])
    torch.testing.assert_close(loss(pred + 300, target + 300), value, rtol=1e-6, atol=1e-6)
    if name not in ("l1", "l2", "smooth-l1"):
        torch.testing.assert_close(loss(pred * 8, target * 8), value)


@pytest.mark.parametrize("name", NAMES)
def test_float32_under_autocast(name, device):
    pred, target = boxes(torch.float32, device)
    plain = create_box_loss(name)(pred, target)
    with torch.autocast(device, dtype=torch.bfloat16):
        half = create_box_loss(name)(pred, target)
    assert torch.equal(plain, half)


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_pickles(name):
    loss, (pred, target) = create_box_loss(name), boxes()
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert copied == loss
        assert torch.equal(copied(pred, target), loss(pred, target))


@pytest.mark.parametrize("name", NAMES)
def test_no_host_sync(name, device):
    pred, target = boxes(torch.float32, device)
    if device == "cpu":  # a meta tensor has no values: whatever would wait for one raises
        pred, target = pred.to("meta"), target.to("meta")
    else:
        torch.cuda.set_sync_debug_mode("error")
    try:
        create_box_loss(name)(pred.requires_grad_(), target).sum().backward()
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")

# SPDX-License-Identifier: AGPL-3.0-or-later
"""What every box loss promises, over the whole registry."""

import copy
import pickle
import random

import pytest
import torch

from tests.pairs import KINDS, boxes
from yolo_lossplug import create_box_loss, list_box_losses

NAMES = [*list_box_losses(), "focal-alpha-ciou", "inner-focaler-alpha-giou", "wise-focal-inner-shape-iou"]
SHARP = {
    "alpha_power": 0.3,
    "focal_gamma": 0.2,
    "smooth_l1_beta": 1e-3,
    "siou_theta": 1.0,
    "riou_beta": 0.51,
    "inner_ratio": 0.01,
    "focaler_d": 0.899,
    "focaler_u": 0.9,
    "shape_scale": 3.0,
    "piou_lambda": 10.0,
    "nwd_constant": 1e-3,
    "interp_alpha": 1e-3,
    "interp_low": 1e-3,
    "interp_high": 0.999,
    "wiou_gamma": 0.1,
    "wiou_alpha": 10.0,
    "wiou_delta": 0.01,
    "wiou_momentum": 1.0,
    "uiou_start": 100.0,
    "uiou_end": 0.01,
}
PREFIXES = ("focal", "wise", "alpha", "focaler", "inner")
SCALE_BOUND = ("l1", "l2", "smooth-l1", "nwd")
"""Losses whose value depends on the unit of the boxes."""


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


class Frozen:
    """A loss as a function whose detached parts stay what they were at one point: what has the loss's gradient."""

    def __init__(self, name, target):
        self.name, self.target, self.constants = name, target, None

    def __call__(self, pred):
        recorded, stock = [], torch.Tensor.detach
        replay = iter(self.constants or ())

        def detach(tensor):
            recorded.append(stock(tensor).clone())
            return next(replay, recorded[-1])

        torch.Tensor.detach = detach
        try:
            value = create_box_loss(self.name)(pred, self.target)
        finally:
            torch.Tensor.detach = stock
        self.constants = self.constants or recorded
        return value


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    pred, target = near_pairs(1)
    loss = Frozen(name, target)
    loss(pred)
    assert torch.autograd.gradcheck(loss, (pred,), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_pairs_and_place_in_the_image_do_not_matter(name):
    rng = torch.Generator().manual_seed(5)
    target = torch.rand(12, 4, generator=rng, dtype=torch.float64) * 10
    target[:, 2:] += target[:, :2] + 1
    pred = target + torch.randn(12, 4, generator=rng, dtype=torch.float64)

    def loss(pred, target):
        return create_box_loss(name)(pred, target)  # anew: some remember what they have seen

    value, order = loss(pred, target), torch.randperm(12, generator=rng)
    torch.testing.assert_close(loss(pred[order], target[order]), value[order])
    torch.testing.assert_close(loss(pred + 300, target + 300), value, rtol=1e-6, atol=1e-6)
    if name not in SCALE_BOUND and "mpdiou" not in name:
        torch.testing.assert_close(loss(pred * 8, target * 8), value)


@pytest.mark.parametrize("name", NAMES)
def test_a_pair_in_pixels_costs_the_same_on_every_level(name):
    """Boxes arrive in grid cells of their level, with its stride."""
    pred, target = near_pairs(4)
    pred, target, imgsz = pred.detach() * 16, target * 16, torch.tensor([480, 640])
    found = []
    for stride in (4, 8, 16, 32):
        strides = torch.full((len(pred), 1), float(stride), dtype=torch.float64)
        found.append(create_box_loss(name)(pred / stride, target / stride, stride=strides, imgsz=imgsz))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


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
        with torch.no_grad():
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


def test_random_stacks_of_random_boxes_are_finite():
    """Ten thousand draws of a stack, its options, and a pair of boxes of any size, place and kind."""
    rng = random.Random(0)
    singles = [name.split("-", 1)[0] for name in list_box_losses() if name.split("-", 1)[0] in PREFIXES]
    bases = sorted({name.split("-", 1)[1] for name in list_box_losses() if name.split("-", 1)[0] in PREFIXES})
    assert set(singles) == set(PREFIXES)
    for _ in range(250):
        base = rng.choice(bases)
        usable = [p for p in PREFIXES if f"{p}-{base}" in list_box_losses()]
        name = "-".join([*rng.sample(usable, rng.randint(0, len(usable))), base])
        options = {key: SHARP[key] for key in create_box_loss(name).options if rng.random() < 0.5}
        if options.get("focaler_d"):
            options["focaler_u"] = SHARP["focaler_u"]
        pred, target = (draw_boxes(rng, 40) for _ in range(2))
        for row in range(0, 40, 8):
            target[row] = pred[row]
        loss = create_box_loss(name, **options)(pred.requires_grad_(), target)
        loss.sum().backward()
        assert loss.isfinite().all() and pred.grad.isfinite().all(), (name, options)


def draw_boxes(rng, count):
    """Return boxes whose sides span thirty orders of magnitude, some of them empty or inverted."""
    rows = []
    for _ in range(count):
        x, y = (rng.choice((0.0, rng.uniform(-1, 1))) * 10 ** rng.uniform(-8, 8) for _ in range(2))
        w, h = (rng.choice((0.0, 1.0, 1.0, 1.0, -1.0)) * 10 ** rng.uniform(-15, 15) for _ in range(2))
        rows.append((x, y, x + w, y + h))
    return torch.tensor(rows)

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every box loss against a scalar formula, and against numbers that other people's implementations computed."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests import oracles
from tests.checks import random_pairs
from yolo_lossplug import create_box_loss, list_box_losses
from yolo_lossplug.box_losses.riou import hyperbola

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "box_losses.json").read_text(encoding="utf-8"))
ENTRIES = {entry["name"]: entry for entry in GOLDEN["losses"]}

PLAIN = """l1=l1 mse_l2=l2 smooth_l1_beta1=smooth-l1 iou_linear=iou iou_log=log-iou giou=giou diou=diou ciou=ciou
ciou_ultralytics=ciou eiou=eiou focal_eiou_gamma0.5=focal-eiou siou_theta4=siou wiou_v1=wiou mpdiou_640x640=mpdiou
inner_ciou_ratio0.7=inner-ciou inner_siou_ratio0.7=inner-siou focaler_iou_d0_u0.95=focaler-iou
shape_iou_scale0=shape-iou piou_v1=piou piou_v2_lambda1.3=piou-v2 nwd_C12.8=nwd wiou_v2_mean1=wiou-v2
wiou_v3_mean1=wiou-v3 wiou_v2_mean0.35=wiou-v2 wiou_v3_mean0.35=wiou-v3 uiou_ciou_ratio2=uiou
uiou_ciou_ratio1.25=uiou uiou_ciou_ratio0.5=uiou"""
"""Entries, and the losses that have their numbers without an option."""
COMPARED = {
    **{entry: (name, {}) for entry, _, name in (word.partition("=") for word in PLAIN.split())},
    "smooth_l1_beta0.1111": ("smooth-l1", {"smooth_l1_beta": 1 / 9}),
    "iou_square": ("alpha-iou", {"alpha_power": 2.0}),
    "focal_eiou_gamma1": ("focal-eiou", {"focal_gamma": 1.0}),
    **{f"inner_{base}_ratio1.25": (f"inner-{base}", {"inner_ratio": 1.25}) for base in ("ciou", "siou")},
    "focaler_iou_d0.2_u0.8": ("focaler-iou", {"focaler_d": 0.2, "focaler_u": 0.8}),
    "shape_iou_scale1": ("shape-iou", {"shape_scale": 1}),
    "nwd_C32": ("nwd", {"nwd_constant": 32}),
    **{
        f"alpha_{base}_alpha{power}": (f"alpha-{base}", {"alpha_power": power})
        for base in ("iou", "giou", "diou", "ciou")
        for power in (3, 2, 0.5)
    },
}
SOURCE_EPSILON = {
    "ciou": 1.3e-5,
    "inner_siou_ratio0.7": 1e-5,
    "inner_siou_ratio1.25": 1e-5,
    **{f"alpha_{base}_alpha0.5": 2e-4 for base in ("iou", "giou", "diou", "ciou")},
}
"""What the guard of a source that cannot be switched off shifts its numbers by; √1e-9 for roots of overlaps of 0."""

REMEMBERED = {"wiou_v2_mean0.35": 0.35, "wiou_v3_mean0.35": 0.35}
PROGRESS = {"uiou_ciou_ratio1.25": 150, "uiou_ciou_ratio0.5": 300}
DETACHED_BY_US = {"piou_v2_lambda1.3"}
"""Entries whose gradient differs by design: the docstring says why."""


def value_and_gradient(name, options, pred, target, entry_name=""):
    pred = pred.clone().requires_grad_()
    made = create_box_loss(name, **options)
    if entry_name in REMEMBERED:
        made.state.state.tensors["own.iou_loss.mean"] = torch.tensor(REMEMBERED[entry_name], dtype=torch.float64)
    if entry_name in PROGRESS:
        made.state.state.epoch, made.state.state.epochs = PROGRESS[entry_name], 300
    loss = made(pred, target)
    loss.sum().backward()
    return loss.detach(), pred.grad


@pytest.mark.parametrize("entry_name", sorted(COMPARED))
def test_equals_the_numbers_of_others(entry_name):
    name, options = COMPARED[entry_name]
    entry = ENTRIES[entry_name]
    pred = torch.tensor(GOLDEN["pred"], dtype=torch.float64)
    target = torch.tensor(GOLDEN["target"], dtype=torch.float64)
    usable = ~torch.tensor(GOLDEN["flags"]["degenerate"], dtype=torch.bool)
    nan = float("nan")
    values = entry.get("loss_eps_free") or entry["loss"]
    gradients = entry.get("grad_eps_free") or entry["grad"]
    expected = torch.tensor([nan if v is None else v for v in values], dtype=torch.float64)
    rows = [[nan if v is None else v for v in (g or [None] * 4)] for g in gradients]
    expected_gradient = torch.tensor(rows, dtype=torch.float64)
    # The guards of ours never act on these pairs. Those of some sources cannot be switched off: their tolerance.
    atol = 1e-9 if "loss_eps_free" in entry else SOURCE_EPSILON.get(entry_name, 1e-9)

    loss, gradient = value_and_gradient(name, options, pred, target, entry_name)
    compared = usable & expected.isfinite()
    assert compared.sum() > 55
    torch.testing.assert_close(loss[compared], expected[compared], rtol=1e-9, atol=atol)

    if atol > 1e-4 or entry_name in DETACHED_BY_US:
        return  # the derivative of a root next to 0 depends on where its guard sits
    smooth = compared & torch.tensor(entry["grad_comparable"]) & expected_gradient.isfinite().all(-1)
    assert smooth.sum() > 25
    torch.testing.assert_close(gradient[smooth], expected_gradient[smooth], rtol=1e-7, atol=max(atol, 1e-9))


def test_float32_neutral_options_and_small_sides():
    pred, target = torch.tensor(GOLDEN["pred"]), torch.tensor(GOLDEN["target"])
    for name, options in COMPARED.values():
        exact = create_box_loss(name, **options)(pred.double(), target.double()).detach()
        single = create_box_loss(name, **options)(pred, target)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), exact, rtol=5e-6, atol=5e-6)
    pred, target = random_pairs()
    for name in ("iou", "giou", "diou", "ciou", "eiou"):
        base = create_box_loss(name)(pred, target)
        torch.testing.assert_close(create_box_loss(f"alpha-{name}", alpha_power=1.0)(pred, target), base)
        torch.testing.assert_close(create_box_loss(f"focal-{name}", focal_gamma=0.0)(pred, target), base)
    pred = torch.tensor([[0, 0, 2, 1], [0, 0, 10, 10]], dtype=torch.float64)
    target = torch.tensor([[0, 0, 2, 2], [5, 5, 25, 15]], dtype=torch.float64)
    expected = torch.tensor([0.4282291584, 0.6377804650], dtype=torch.float64)  # D² = 0.3125 and 1.03125
    for unit in (1, 1e-4):  # it has none, for sides far below a pixel too
        torch.testing.assert_close(create_box_loss("gcd")(pred * unit, target * unit), expected, rtol=0, atol=1e-9)


def test_riou_has_the_published_shape():
    a, b, gap, k = hyperbola(0.95)
    c = 1 + gap
    assert c == pytest.approx(361 / 360, abs=1e-12)
    assert (a, b, k) == pytest.approx((2.05602949899, 0.00571119305276, 0.0057270574779), abs=1e-11)
    u = torch.linspace(0, 1, 100001, dtype=torch.float64)
    gradient = a * u + b - k / (c - u)
    assert gradient.min() > -1e-9
    assert gradient[0].item() == pytest.approx(0, abs=1e-9)
    assert gradient[-1].item() == pytest.approx(0, abs=1e-9)
    assert u[gradient.argmax()].item() == pytest.approx(0.95, abs=1e-4)

    sides = torch.linspace(0, 1, 1001)
    pred = torch.stack((torch.zeros(1001), torch.zeros(1001), sides, torch.ones(1001)), -1)
    for beta in (0.5001, 0.6, 0.999, 0.99999999):  # at the ends of its range too
        loss = create_box_loss("riou", riou_beta=beta)(pred, torch.tensor([0.0, 0, 1, 1]).expand(1001, 4))
        assert loss[0].item() == pytest.approx(1, abs=1e-5) and loss[-1].item() == pytest.approx(0, abs=1e-5)
        assert (loss.diff() <= 1e-6).all(), beta


def test_the_trade_off_of_ciou_and_the_weight_of_focal_are_detached():
    pred, target = random_pairs()
    v = 4 / math.pi**2 * (aspect(target) - aspect(pred.requires_grad_())).square()
    (slope,) = torch.autograd.grad(v.sum(), pred)
    _, distance = value_and_gradient("diou", {}, pred.detach(), target)
    _, found = value_and_gradient("ciou", {}, pred.detach(), target)
    alpha = v / (create_box_loss("iou")(pred, target) + v)
    torch.testing.assert_close(found, distance + alpha.detach().unsqueeze(-1) * slope)
    pred, target = random_pairs()
    plain, gradient = value_and_gradient("eiou", {}, pred, target)
    _, weighted = value_and_gradient("focal-eiou", {}, pred, target)
    iou = 1 - create_box_loss("iou")(pred, target)
    torch.testing.assert_close(weighted, gradient * iou.sqrt().unsqueeze(-1))
    assert plain.min() >= 0


def aspect(boxes):
    return torch.atan((boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1]))


def test_every_loss_has_an_oracle():
    assert all(oracles.box(name) for name in list_box_losses())
    assert oracles.box("nothing-of-the-kind") is None

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every class loss: scalar formula, numbers of others, and what the registry promises."""

import json
from pathlib import Path

import pytest
import torch

from tests import checks, oracles
from yolo_lossplug import create_class_loss, list_class_losses
from yolo_lossplug.class_losses.slide import weights

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "cls_losses.json").read_text(encoding="utf-8"))
ENTRIES = {entry["name"]: entry for entry in GOLDEN["losses"]}
COMPARED = {
    "bce_with_logits": ("bce", {}),
    "sigmoid_focal_alpha0.25_gamma2": ("focal", {}),
    "sigmoid_focal_alpha-1_gamma2": ("focal", {"cls_focal_alpha": None}),
    "sigmoid_focal_alpha0.25_gamma1.5": ("focal", {"cls_focal_gamma": 1.5}),
    "sigmoid_focal_alpha0.5_gamma0": ("focal", {"cls_focal_alpha": 0.5, "cls_focal_gamma": 0}),
    "qfl_beta2": ("qfl", {}),
    "qfl_beta1.5": ("qfl", {"cls_qfl_beta": 1.5}),
    "varifocal_alpha0.75_gamma2": ("varifocal", {}),
    "poly1_bce_eps1": ("poly", {}),
    "asl_gn4_gp1_clip0.05_weights_differentiated": ("asl", {}),
}


@pytest.mark.parametrize("name", list_class_losses())
def test_contract(name, device):
    for check in checks.CLASS:
        check(name)
    for check in checks.CLASS_ON_DEVICE:
        check(name, device)


@pytest.mark.parametrize("entry_name", sorted(COMPARED))
def test_equals_the_numbers_of_others(entry_name):
    name, options = COMPARED[entry_name]
    entry = ENTRIES[entry_name]
    rows = GOLDEN["hard_index"] if entry["elements"].startswith("hard_only") else range(len(GOLDEN["logit"]))
    logits = torch.tensor([GOLDEN["logit"][i] for i in rows], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([GOLDEN["target"][i] for i in rows], dtype=torch.float64)
    loss = create_class_loss(name, **options)(logits, targets)
    loss.sum().backward()
    expected = torch.tensor(entry["loss"], dtype=torch.float64)
    expected_gradient = torch.tensor(entry["grad"], dtype=torch.float64)
    exact = logits.detach().abs() < 18 if name == "asl" else slice(None)  # its source clamps scores below 1e-8
    torch.testing.assert_close(loss.detach()[exact], expected[exact], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(logits.grad[exact], expected_gradient[exact], rtol=1e-9, atol=1e-12)


def test_varifocal_holds_the_weight_of_negatives_constant_on_request():
    """As RT-DETR's authors do: the value stays, and the gradient of a negative is up to 1 + γ times smaller."""
    logits = torch.tensor([-9.0, -2, 0.5, 3, 20, -1, 2], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 0, 0, 0, 0, 0.3, 0.9], dtype=torch.float64)
    (plain, slope), (value, found) = (
        (loss.detach(), *torch.autograd.grad(loss.sum(), logits))
        for loss in (create_class_loss("varifocal", cls_vfl_detach=i)(logits, targets) for i in (0, 1))
    )
    weight = torch.where(targets > 0, targets, 0.75 * logits.detach().sigmoid() ** 2)
    published = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, weight=weight, reduction="none")
    torch.testing.assert_close(value, published.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found, *torch.autograd.grad(published.sum(), logits), rtol=1e-12, atol=0)
    assert torch.equal(value, plain) and torch.equal(found[5:], slope[5:])
    ratio = slope[:5] / found[:5]
    assert ratio[0].item() == pytest.approx(3, rel=1e-3) and ratio[4].item() == pytest.approx(1, rel=1e-3)
    assert (ratio.diff() < 0).all()


def test_mal_equals_values_computed_by_others():
    scores = torch.tensor([0.25, 0.125, 0.5], dtype=torch.float64)
    targets = torch.tensor([0.25, 0.25, 0], dtype=torch.float64)
    expected = torch.tensor([0.4250086085, 0.3767701613, 0.2450645359], dtype=torch.float64)
    logits = scores.logit().requires_grad_()
    found = create_class_loss("mal")(logits, targets)
    found.sum().backward()
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-9)
    assert logits.grad.tolist() == pytest.approx([0.125, 0, 0.5**2.5])  # p − y^γ, 0 at the minimum, and sg(p)^γ·p


@pytest.mark.parametrize("bins", [10, 30])
def test_ghm_equals_the_numbers_of_others(bins):
    entry = ENTRIES[f"ghmc_bins{bins}"]
    logits = torch.tensor(entry["logits"], dtype=torch.float64, requires_grad=True)
    loss = create_class_loss("ghm", cls_ghm_bins=bins, cls_ghm_momentum=0)(
        logits, torch.tensor(entry["targets"]).double()
    )
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(entry["loss"]).double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits.grad, torch.tensor(entry["grad"]).double(), rtol=1e-5, atol=1e-6)


def test_ghm_does_not_depend_on_the_size_of_a_batch():
    """Nor does what it remembers: batches of validation, and the last one of an epoch, weigh the same."""
    logits, targets = checks.grid()
    twice = torch.cat((logits, logits)), torch.cat((targets, targets))
    single, double = (create_class_loss("ghm") for _ in range(2))
    for _ in range(3):
        torch.testing.assert_close(double(*twice), single(logits, targets).repeat(2, 1))
    with torch.no_grad():
        for loss in (single, double):
            torch.testing.assert_close(loss(*twice), loss(logits, targets).repeat(2, 1))
    assert torch.equal(single.state.get("shares", torch.zeros(10)), double.state.get("shares", torch.zeros(10)))


@pytest.mark.parametrize("mean", [0.5, 0.3, 0.1])
def test_slide_equals_the_numbers_of_others(mean):
    entry = ENTRIES[f"slide_bce_mu{mean}"]
    logits = torch.tensor(GOLDEN["logit"], dtype=torch.float64)
    targets = torch.tensor(GOLDEN["target"], dtype=torch.float64)
    found = weights(targets, torch.tensor(mean, dtype=torch.float64)) * create_class_loss("bce")(logits, targets)
    torch.testing.assert_close(found, torch.tensor(entry["loss"], dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_neutral_options_oracles_and_calibration_on_soft_targets():
    logits, targets = checks.grid()
    expected = create_class_loss("bce")(logits, targets)
    for name, options in (("focal", {"cls_focal_gamma": 0, "cls_focal_alpha": None}), ("qfl", {"cls_qfl_beta": 0})):
        torch.testing.assert_close(create_class_loss(name, **options)(logits, targets), expected)
    assert set(list_class_losses()) == {*oracles.CLASS, *oracles.BATCH}
    logits = torch.linspace(-8, 8, 160001, dtype=torch.float64)
    for target in (0.25, 0.75):
        targets = torch.full_like(logits, target)
        names = ("qfl", "focal", "mal")
        best = {n: logits[create_class_loss(n)(logits, targets).argmin()].sigmoid().item() for n in names}
        assert best["mal"] == pytest.approx(target**1.5, abs=1e-3)
        assert best["qfl"] == pytest.approx(target, abs=1e-3)
        assert abs(best["focal"] - target) > 0.1

# SPDX-License-Identifier: AGPL-3.0-or-later
"""Losses of rotated boxes: numbers of others, matrices written out, and the promises of every loss."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests import checks, oracles, rotated_oracles
from tests.runs import refuses
from yolo_lossplug import create_box_loss
from yolo_lossplug.box_losses.rotated import Gaussian, gaussian, hellinger, wasserstein
from yolo_lossplug.registry import REGISTRY, ROTATED

NAMES = REGISTRY.names(ROTATED)
STACKS = ("alpha-probiou", "alpha-gwd", "alpha-kld", *(f"focal-{name}" for name in NAMES), "focal-alpha-kld")
GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "box_losses.json").read_text(encoding="utf-8"))[
    "rotated"
]
ENTRIES = {entry["name"]: entry for entry in GOLDEN["losses"]}


def widened(boxes):
    """Gaussians with the variance that Ultralytics adds to keep thin boxes apart."""
    g = gaussian(boxes, 12)
    return Gaussian(g.x, g.y, g.angle, g.first + 0.01, g.second + 0.01)


def distance(pred, target):
    return wasserstein(gaussian(pred, 4), gaussian(target, 4))


COMPARED = {
    "probiou_hellinger": create_box_loss("probiou"),
    "probiou_hellinger_floor0.01": lambda pred, target: hellinger(widened(pred), widened(target)),
    "gwd_log1p_tau1_normalized": create_box_loss("gwd"),
    "gwd_log1p_tau1": lambda pred, target: 1 - 1 / (1 + torch.log1p(distance(pred, target))),
    "gwd_sqrt_tau2": lambda pred, target: 1 - 1 / (2 + distance(pred, target).clamp(min=1e-14).sqrt()),
}
WILD = torch.tensor(
    [
        *([0, 0, 0, 0, 0], [1, 1, 0, 5, 0.3], [0, 0, 1e5, 1e-6, 1.0], [-1e5, 1e5, 1e5, 1e5, -3.0]),
        *([3e38, -3e38, 3e38, 3e38, 3e38], [0, 0, -4, 2, 0.1], [0, 0, 1e-40, 1e-40, 0], [5, 5, 3, 3, math.pi]),
    ]
)


def pairs(n=40):
    rng = torch.Generator().manual_seed(8)
    target = torch.rand(n, 5, generator=rng, dtype=torch.float64) * torch.tensor([20.0, 20, 12, 6, 3]) + 1
    return target + torch.randn(n, 5, generator=rng, dtype=torch.float64) * 0.6, target


@pytest.mark.parametrize("name", [*NAMES, *STACKS])
def test_value_and_gradient_are_those_of_the_formula_with_matrices(name):
    """What the oracle holds constant is detached, and nothing else."""
    oracle, (pred, target) = rotated_oracles.rotated(name), pairs()
    for options in checks.choices(create_box_loss(name)):
        values = [oracle(p, t, **options) for p, t in zip(pred.tolist(), target.tolist())]
        found = create_box_loss(name, **options)(pred, target)
        torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64), rtol=1e-6, atol=1e-7)
    checks.every_option_shows(create_box_loss, name, (pred, target))
    pred, target = pairs(9)
    create_box_loss(name)(pred.requires_grad_(), target).sum().backward()
    rows = [oracles.gradient(lambda p: oracle(p, t), p) for p, t in zip(pred.tolist(), target.tolist())]  # noqa: B023
    torch.testing.assert_close(pred.grad, torch.tensor(rows, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_compares_all_the_numbers_of_others():
    assert set(COMPARED) == set(ENTRIES)


@pytest.mark.parametrize("entry_name", sorted(COMPARED))
def test_equals_the_numbers_of_others(entry_name):
    entry = ENTRIES[entry_name]
    pred = torch.tensor(GOLDEN["pred"], dtype=torch.float64, requires_grad=True)
    target = torch.tensor(GOLDEN["target"], dtype=torch.float64)
    loss = COMPARED[entry_name](pred, target)
    loss.sum().backward()
    expected = torch.tensor(entry.get("loss_eps_free") or entry["loss"], dtype=torch.float64)
    # The guard of the second source moves pairs that are the same shape by up to a root of 1e-7, or the root of that.
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-6, atol=1e-7 if "loss_eps_free" in entry else 5e-3)
    apart = expected > expected.min() + 1e-2
    assert apart.sum() > 20
    torch.testing.assert_close(loss.detach()[apart], expected[apart], rtol=1e-6, atol=1e-6)
    gradient = torch.tensor(entry.get("grad_eps_free") or entry["grad"], dtype=torch.float64)
    torch.testing.assert_close(pred.grad[apart], gradient[apart], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*NAMES, *STACKS])
def test_finite_for_every_pair(name, device):
    for dtype in checks.DTYPES:
        limit = torch.finfo(dtype).max
        boxes = WILD.double().clamp(-limit, limit).to(device, dtype)
        n = len(boxes)
        pred, target = boxes.repeat_interleave(n, 0).clone(), boxes.repeat(n, 1)
        given = pred.clone()
        value = create_box_loss(name)(pred.requires_grad_(), target)
        assert value.shape == (n * n,) and value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        value.sum().backward()
        assert value.isfinite().all() and (value >= -1e-6).all(), dtype
        assert pred.grad.isfinite().all(), dtype
        assert torch.equal(pred.detach(), given), dtype
    empty = torch.zeros(0, 5, device=device, requires_grad=True)
    create_box_loss(name)(empty, torch.zeros(0, 5, device=device)).sum().backward()
    assert empty.grad.shape == (0, 5)


def test_mgiou_equals_values_computed_by_others():
    pred = torch.tensor([[2, 2, 4, 4, 0], [0, 0, 4, 2, 0.3], [0, 0, 2, 2, math.pi / 4]], dtype=torch.float64)
    target = torch.tensor([[4, 2, 4, 4, 0], [0, 0, 4, 2, 0], [0, 0, 2, 2, 0]], dtype=torch.float64)
    expected = torch.tensor([1 / 6, 0.1116970494, 0.1464466094], dtype=torch.float64)
    torch.testing.assert_close(create_box_loss("mgiou")(pred, target), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("parallel", [0.0, math.pi / 2, math.pi], ids=str)
def test_mgiou_is_continuous_where_edges_become_parallel(parallel):
    target = torch.tensor([[0, 0, 4, 2, 0.0], [1, 0.5, 3, 7, 0.0]], dtype=torch.float64)
    values, slopes = [], []
    for turn in (-1e-3, -1e-9, 0, 1e-9, 1e-3):
        pred = torch.tensor([[0, 0, 4, 2, parallel + turn], [0, 0, 5, 1, parallel + turn]], dtype=torch.float64)
        value = create_box_loss("mgiou")(pred.requires_grad_(), target)
        value.sum().backward()
        values.append(value.detach())
        slopes.append(pred.grad)
    torch.testing.assert_close(values[1], values[2], rtol=0, atol=1e-8)
    torch.testing.assert_close(values[3], values[2], rtol=0, atol=1e-8)
    for near, far in ((slopes[1], slopes[0]), (slopes[3], slopes[4])):  # each side has one gradient, up to the corner
        torch.testing.assert_close(near, far, rtol=0, atol=5e-3)
    assert slopes[2].isfinite().all()
    assert parallel or slopes[2][0, 4] == 0, "neither side's gradient, at a sine of exactly 0"


def test_prefixes_without_meaning_are_refused():
    refuses("is not defined for 'kfiou'. Use it with gwd, kld, probiou.", create_box_loss, "alpha-kfiou")
    refuses("twice", create_box_loss, "focal-focal-kld")
    refuses("inner-kld is unknown", create_box_loss, "inner-kld")


@pytest.mark.parametrize("name", [*NAMES, *STACKS])
def test_identities(name):
    pred, target = pairs()
    loss = create_box_loss(name)
    half_turn = target + torch.tensor([0, 0, 0, 0, math.pi])
    swapped = target[:, [0, 1, 3, 2, 4]] + torch.tensor([0, 0, 0, 0, math.pi / 2])
    for same in (target, half_turn, swapped):
        torch.testing.assert_close(loss(same, target), torch.zeros(len(target)).double(), rtol=0, atol=5e-6)
    sizes = torch.tensor([8.0, 8, 8, 8, 1])
    torch.testing.assert_close(loss(pred * sizes, target * sizes), loss(pred, target))
    if not name.startswith("focal-"):  # whose weight is detached
        assert torch.autograd.gradcheck(lambda p: loss(p, target[:6]), (pred[:6].clone().requires_grad_(),), atol=1e-6)

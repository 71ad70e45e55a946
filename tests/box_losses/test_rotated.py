# SPDX-License-Identifier: AGPL-3.0-or-later
"""Losses of rotated boxes: numbers of others, matrices written out, and the promises of every loss."""

import json
import math
from pathlib import Path

import pytest
import torch

from yolo_lossplug import create_box_loss
from yolo_lossplug.box_losses.rotated import Gaussian, gaussian, hellinger, wasserstein
from yolo_lossplug.registry import REGISTRY, ROTATED, LossPlugError

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
        [0, 0, 0, 0, 0],
        [1, 1, 0, 5, 0.3],
        [0, 0, 1e5, 1e-6, 1.0],
        [-1e5, 1e5, 1e5, 1e5, -3.0],
        [3e38, -3e38, 3e38, 3e38, 3e38],
        [0, 0, -4, 2, 0.1],
        [0, 0, 1e-40, 1e-40, 0],
        [5, 5, 3, 3, math.pi],
    ]
)


def covariance(box):
    _, _, w, h, angle = box.tolist()
    rotation = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
    return rotation @ torch.diag(torch.tensor([w * w, h * h]).double()) @ rotation.T


def oracle(name, p, t, tau=1.0):
    """The formulas with matrices, their roots and inverses."""
    d, sp, st = (p[:2] - t[:2]).double(), covariance(p), covariance(t)
    if name == "probiou":
        sp, st = sp / 12, st / 12
        s = (sp + st) / 2
        b = d @ s.inverse() @ d / 8 + 0.5 * torch.log(s.det() / (sp.det() * st.det()).sqrt())
        return math.sqrt(max(1 - math.exp(-min(b.item(), 100)), 0))
    sp, st = sp / 4, st / 4
    if name == "gwd":
        values, vectors = torch.linalg.eigh(sp)
        root = vectors @ torch.diag(values.sqrt()) @ vectors.T
        cross = torch.linalg.eigvalsh(root @ st @ root).clamp(min=0).sqrt().sum()
        squared = d @ d + sp.trace() + st.trace() - 2 * cross
        distance = math.sqrt(max(squared.item(), 0)) / (2 * (sp.det() * st.det()).item() ** 0.125)
        return 1 - 1 / (tau + math.log1p(distance))
    if name == "kld":
        inverse = st.inverse()
        divergence = 0.5 * (d @ inverse @ d + (inverse @ sp).trace() + torch.log(st.det() / sp.det())) - 1
        return 1 - 1 / (tau + math.log1p(math.sqrt(max(divergence.item(), 0))))
    overlap = sp - sp @ (sp + st).inverse() @ sp
    vp, vt, v = (4 * s.det().clamp(min=0).sqrt() for s in (sp, st, overlap))
    side = math.sqrt(t[2].item() * t[3].item())
    centres = sum(0.5 * x * x if abs(x) < 1 else abs(x) - 0.5 for x in (d / side).tolist()) / 2
    return math.exp(1 - 3 * (v / (vp + vt - v)).item()) - 1 + centres


def pairs(n=40):
    rng = torch.Generator().manual_seed(8)
    target = torch.rand(n, 5, generator=rng, dtype=torch.float64) * torch.tensor([20.0, 20, 12, 6, 3]) + 1
    return target + torch.randn(n, 5, generator=rng, dtype=torch.float64) * 0.6, target


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_formula_with_matrices(name):
    pred, target = pairs()
    for tau in (1.0, 2.5) if name in ("gwd", "kld") else (1.0,):
        options = {f"{name}_tau": tau} if tau != 1 else {}
        expected = [oracle(name, p, t, tau) for p, t in zip(pred, target)]
        found = create_box_loss(name, **options)(pred, target)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", [*NAMES, *STACKS])
def test_finite_for_every_pair(name, dtype, device):
    limit = torch.finfo(dtype).max
    boxes = WILD.double().clamp(-limit, limit).to(device, dtype)
    n = len(boxes)
    pred, target = boxes.repeat_interleave(n, 0).clone(), boxes.repeat(n, 1)
    given = pred.clone()
    value = create_box_loss(name)(pred.requires_grad_(), target)
    assert value.shape == (n * n,) and value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    value.sum().backward()
    assert value.isfinite().all() and (value >= -1e-6).all()
    assert pred.grad.isfinite().all()
    assert torch.equal(pred.detach(), given)
    empty = torch.zeros(0, 5, device=device, requires_grad=True)
    create_box_loss(name)(empty, torch.zeros(0, 5, device=device)).sum().backward()
    assert empty.grad.shape == (0, 5)


@pytest.mark.parametrize("base", NAMES)
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_weighs_by_the_detached_overlap(base, gamma):
    pred, target = pairs()
    pred.requires_grad_()
    overlap = torch.tensor([1 - oracle("probiou", p, t) for p, t in zip(pred.detach(), target)], dtype=torch.float64)
    plain = create_box_loss(base)(pred, target)
    found = create_box_loss(f"focal-{base}", focal_gamma=gamma)(pred, target)
    torch.testing.assert_close(found, plain * overlap**gamma, rtol=1e-6, atol=1e-7)
    gradient, expected = (torch.autograd.grad(loss.sum(), pred)[0] for loss in (found, plain))
    torch.testing.assert_close(gradient, expected * (overlap**gamma).unsqueeze(-1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("base", ["probiou", "gwd", "kld"])
def test_alpha_raises_the_overlap(base):
    pred, target = pairs()
    expected = [1 - (1 - oracle(base, p, t)) ** 2.5 for p, t in zip(pred, target)]
    found = create_box_loss(f"alpha-{base}", alpha_power=2.5)(pred, target)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7)


def test_prefixes_without_meaning_are_refused():
    with pytest.raises(LossPlugError, match="'kfiou' is not defined for it. It goes before gwd, kld, probiou."):
        create_box_loss("alpha-kfiou")
    with pytest.raises(LossPlugError, match="twice"):
        create_box_loss("focal-focal-kld")
    with pytest.raises(LossPlugError, match="inner-kld is unknown"):
        create_box_loss("inner-kld")


@pytest.mark.parametrize("name", [*NAMES, *STACKS])
def test_identities(name):
    pred, target = pairs()
    loss = create_box_loss(name)
    torch.testing.assert_close(loss(target, target), torch.zeros(len(target)).double(), rtol=0, atol=5e-6)
    half_turn = target + torch.tensor([0, 0, 0, 0, math.pi])
    torch.testing.assert_close(loss(half_turn, target), torch.zeros(len(target)).double(), rtol=0, atol=5e-6)
    swapped = target[:, [0, 1, 3, 2, 4]] + torch.tensor([0, 0, 0, 0, math.pi / 2])
    torch.testing.assert_close(loss(swapped, target), torch.zeros(len(target)).double(), rtol=0, atol=5e-6)
    sizes = torch.tensor([8.0, 8, 8, 8, 1])
    torch.testing.assert_close(loss(pred * sizes, target * sizes), loss(pred, target))
    if not name.startswith("focal-"):  # whose weight is detached
        assert torch.autograd.gradcheck(lambda p: loss(p, target[:6]), (pred[:6].clone().requires_grad_(),), atol=1e-6)

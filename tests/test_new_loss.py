# SPDX-License-Identifier: AGPL-3.0-or-later
"""A new loss is a function in a file and an oracle: with nothing else edited it passes every check, or fails one."""

import math

import pytest

from tests import checks, oracles
from yolo_lossplug import list_box_losses
from yolo_lossplug.explain import bibtex, explanation
from yolo_lossplug.selection.keys import keys
from yolo_lossplug.selection.own import load_module

FILE = '''
from typing import Annotated, Optional

import torch
from torch import Tensor

from yolo_lossplug import Option, box_loss, class_loss
from yolo_lossplug.boxes import Pair
from yolo_lossplug.class_losses.bce import bce
from yolo_lossplug.paper import Paper
from yolo_lossplug.registry import overlap_loss

PAPER = Paper("https://example.org", "Doe, Jane", "Toy Losses", "Journal", 2020, journal="Journal of Toys")


@overlap_loss("toy-iou", paper=PAPER)
def toy_iou(
    pair: Pair, *, toy_weight: Annotated[float, Option("weight of the distance", above=0)] = 2.0
) -> tuple[Tensor, ...]:
    """Toy-IoU loss = 1 − IoU + (1 − exp(−w·ρ²/c²))·sg(1 − IoU), in [0, 2)."""
    return ((1 - torch.exp(-toy_weight * pair.centre_distance)) * (1 - pair.iou).detach(),)


@box_loss("cauchy")
def cauchy(
    pred: Tensor,
    target: Tensor,
    *,
    stride: Optional[Tensor] = None,
    cauchy_scale: Annotated[float, Option("distance in pixels where the square bends", above=0)] = 4.0,
) -> Tensor:
    """Cauchy = mean over the coordinates of ln(1 + (d/s)²)."""
    d = (pred - target) * (1 if stride is None else stride)
    return torch.log1p((d / cauchy_scale).square()).mean(-1)


@class_loss("toy-bce")
def toy_bce(
    logits: Tensor, targets: Tensor, *, cls_toy_weight: Annotated[float, Option("weight of errors", at_least=0)] = 1.0
) -> Tensor:
    """Toy BCE = (1 + w·|y − p|)·BCE."""
    return (1 + cls_toy_weight * (targets - logits.sigmoid()).abs()) * bce(logits, targets)
'''


def toy_iou(g, toy_weight=2.0):
    return [(1 - math.exp(-toy_weight * g.distance)) * oracles.sg(1 - g.u)]


def cauchy(p, t, cauchy_scale=4.0):
    return sum(math.log1p(((a - b) / cauchy_scale) ** 2) for a, b in zip(p, t)) / 4


def toy_bce(s, y, cls_toy_weight=1.0):
    return (1 + cls_toy_weight * abs(y - oracles.sigmoid(s))) * oracles.bce(s, y)


@pytest.fixture
def added(tmp_path, monkeypatch, registry):
    """Return what adds the losses of a file, with their oracles, and returns their names."""

    def add(text):
        file = tmp_path / "toy_losses.py"
        file.write_text(text)
        load_module(str(file), f"loss={file}")
        monkeypatch.setitem(oracles.TERMS, "toy-iou", toy_iou)
        monkeypatch.setitem(oracles.WHOLE, "cauchy", cauchy)
        monkeypatch.setitem(oracles.CLASS, "toy-bce", toy_bce)
        return ["toy-iou", "wise-focal-inner-toy-iou", "cauchy"]

    return add


BOX = {check.__name__: check for check in (*checks.BOX, *checks.BOX_ON_DEVICE)}
CLASS = {check.__name__: check for check in (*checks.CLASS, *checks.CLASS_ON_DEVICE)}
ON_DEVICE = (*checks.BOX_ON_DEVICE, *checks.CLASS_ON_DEVICE)


def failures(tried, names):
    found = set()
    for title, check in tried.items():
        for name in names:
            try:
                check(name, "cpu") if check in ON_DEVICE else check(name)
            except Exception:
                found.add(title)
    return found


def test_new_losses_pass_every_check(added):
    assert not failures(BOX, added(FILE)) and not failures(CLASS, ["toy-bce"])
    assert {"toy-iou", "focal-toy-iou"} <= set(list_box_losses())
    assert {"toy_weight", "cauchy_scale", "cls_toy_weight"} <= set(keys())
    assert "toy_weight=2.0 in (0, ∞): weight of the distance" in explanation("focal-toy-iou")
    assert bibtex("toy-iou").startswith("@article{doe2020toy,")


WRONG = {
    "another shape": ("cauchy_scale).square()).mean(-1)", "cauchy_scale).square())", set(BOX)),
    "another value": ("return torch.log1p(", "return 1.001 * torch.log1p(", {"equals_the_scalar_formula"}),
    "another default": ("= 2.0\n", "= 2.1\n", {"equals_the_scalar_formula"}),
    "not detached": ("(1 - pair.iou).detach()", "(1 - pair.iou)", {"has_the_gradient_of_the_formula"}),
    "detached": ("pair.centre_distance)", "pair.centre_distance.detach())", {"has_the_gradient_of_the_formula"}),
    "an option without effect": ("(d / cauchy_scale)", "(d / 4)", {"every_box_option_shows"}),
    "not 0 at identical boxes": ("return torch.log1p(", "return 1e-3 + torch.log1p(", {"zero_at_identical_boxes"}),
    "no stride": ("* (1 if stride is None else stride)", "", {"a_pair_in_pixels_costs_the_same_on_every_level"}),
    "dependent on the place": ("d = (pred - target)", "d = (pred - target) * pred", {"order_and_place_do_not_matter"}),
    "not finite": ("torch.log1p((d / cauchy_scale)", "torch.log((d / cauchy_scale)", {"finite_for_every_pair"}),
    "a wait for the device": (
        "    return torch.log1p(",
        "    d.sum().item()\n    return torch.log1p(",
        {"no_host_sync"},
    ),
    "not picklable": ('@class_loss("toy-bce")', 'del cauchy\n\n\n@class_loss("toy-bce")', {"copies_and_pickles"}),
}


@pytest.mark.parametrize("change", WRONG)
def test_a_wrong_box_loss_fails(added, change):
    right, wrong, expected = WRONG[change]
    assert FILE.count(right) == 1
    names = added(FILE.replace(right, wrong))
    assert failures({title: BOX[title] for title in expected}, names) == expected


WRONG_CLASSES = {
    "another shape": ("* bce(logits, targets)", "* bce(logits, targets).sum()", {"finite_and_elementwise"}),
    "another value": ("(1 + cls_toy_weight *", "(1.001 + cls_toy_weight *", {"equals_the_class_formula"}),
    "detached": ("logits.sigmoid()", "logits.detach().sigmoid()", {"has_the_gradient_of_the_class_formula"}),
    "an option without effect": ("(1 + cls_toy_weight *", "(1 + 1.0 *", {"every_class_option_shows"}),
    "dependent on the batch": ("return (1 +", "return (logits.amax() +", {"finite_and_elementwise"}),
}


@pytest.mark.parametrize("change", WRONG_CLASSES)
def test_a_wrong_class_loss_fails(added, change):
    right, wrong, expected = WRONG_CLASSES[change]
    assert FILE.count(right) == 1
    added(FILE.replace(right, wrong))
    assert failures({title: CLASS[title] for title in expected}, ["toy-bce"]) == expected

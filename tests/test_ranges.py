# SPDX-License-Identifier: AGPL-3.0-or-later
"""Losses are finite over the whole documented range of every option, on boxes and logits of every size."""

from itertools import product

import pytest
import torch

from yolo_lossplug import LossPlugError
from yolo_lossplug.registry import BOX, CLASS, MODIFIER, OVERLAP, REGISTRY, ROTATED, ROTATED_MODIFIER, SOFTMAX
from yolo_lossplug.selection.keys import CLASSIFY
from yolo_lossplug.selection.loss import create_box_loss, create_class_loss
from yolo_lossplug.selection.names import PREFIXES
from yolo_lossplug.selection.select import select

POWERS = [10.0**e for e in range(-6, 7)]
SIDES = (1e-3, 1e-2, 1.0, 7.0, 160.0, 1e3)
OFFSETS = ((0, 0), (0.3, 0.1), (1e3, -3))


def named(spec):
    """Return the names that a spec stands in: its own, or with every loss that it is a prefix of."""
    if spec.kind not in (MODIFIER, ROTATED_MODIFIER):
        return [spec.name]
    bases = REGISTRY.names(OVERLAP if spec.kind == MODIFIER else ROTATED)
    return [f"{spec.name}-{base}" for base in bases if not spec.bases or base in spec.bases]


CASES = [(spec, key) for spec in REGISTRY for key in spec.parameters]


def values(parameter):
    """Return what the range allows of numbers of six orders up and down, and its ends and what is next to them."""
    option = parameter.option
    ends = [end for end in (option.at_least, option.above, option.at_most, option.below) if end is not None]
    near = [end + sign * distance for end in ends for sign in (-1, 0, 1) for distance in POWERS[:6]]
    numbers = {parameter.type(x) for x in (*POWERS, *(-x for x in POWERS), *near)}
    return sorted(filter(option.contains, numbers))


def pairs(kind):
    sizes = product(SIDES, SIDES, SIDES, SIDES, OFFSETS)
    rows = [(x, y, w, h, 0.0, 0.0, W, H) for w, h, W, H, (x, y) in sizes]
    pred, target = torch.tensor(rows).split(4, dim=1)
    if kind in (ROTATED, ROTATED_MODIFIER):
        return torch.cat((pred, pred[:, :1] / 1e3 + 0.3), 1), torch.cat((target, target[:, :1]), 1)
    return (torch.cat((box[:, :2], box[:, :2] + box[:, 2:]), 1) for box in (pred, target))


def elements(kind):
    logits, targets = torch.linspace(-100, 100, 201), torch.tensor([0, 1e-6, 0.1, 0.5, 0.9, 1.0])
    logits, targets = torch.meshgrid(logits, targets, indexing="ij")
    if kind == SOFTMAX:
        return logits * torch.linspace(-1, 1, 6), targets.softmax(-1)
    return logits.clone(), targets


def created(name, kind, options):
    if kind == SOFTMAX:
        return select({"task": CLASSIFY, "cls_loss": name, **options}).cls
    return (create_class_loss if kind == CLASS else create_box_loss)(name, **options)


@pytest.mark.parametrize(("spec", "key"), CASES, ids=[f"{spec.kind}-{spec.name}-{key}" for spec, key in CASES])
def test_finite_over_the_whole_range(spec, key):
    inputs, target = elements(spec.kind) if spec.kind in (CLASS, SOFTMAX) else pairs(spec.kind)
    for name in named(spec):
        tried = 0
        for value in values(REGISTRY.parameters()[key]):
            try:
                loss = created(name, spec.kind, {key: value})
            except LossPlugError as error:
                assert "must be below" in str(error)  # options that increase, of which the others have their defaults
                continue
            inputs.requires_grad_().grad = None
            found = loss(inputs, target)
            found.sum().backward()
            assert found.isfinite().all() and inputs.grad.isfinite().all(), f"loss={name} {key}={value}"
            tried += 1
        assert tried > 3 or (spec.parameters[key].type is int and tried == 2), name  # a switch has two values


def test_every_option_is_among_them():
    assert {key for _, key in CASES} == set(REGISTRY.parameters())
    assert {spec.kind for spec, _ in CASES} == {BOX, OVERLAP, CLASS, SOFTMAX, ROTATED, *PREFIXES.values()}

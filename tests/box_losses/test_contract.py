# SPDX-License-Identifier: AGPL-3.0-or-later
"""What every box loss promises, over the whole registry."""

import random

import pytest
import torch

from tests import checks
from yolo_lossplug import create_box_loss, create_class_loss, list_box_losses
from yolo_lossplug.boxes import as_float, promote
from yolo_lossplug.registry import MODIFIER, REGISTRY, box_loss, class_loss

STACKS = [
    *("focal-alpha-ciou", "focal-inner-eiou", "inner-focaler-siou", "inner-focaler-alpha-giou"),
    *("wise-alpha-inner-diou", "wise-focal-focaler-piou", "wise-focal-inner-shape-iou"),
]
NAMES = [*list_box_losses(), *STACKS]
PREFIXES = REGISTRY.names(MODIFIER)


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    for check in checks.BOX:
        check(name)


@pytest.mark.parametrize("name", NAMES)
def test_contract_on_device(name, device):
    for check in checks.BOX_ON_DEVICE:
        check(name, device)


def test_products_of_matrices_stay_float32_under_autocast(device, registry):
    """Autocast takes these to half precision, and no loss of the package has one."""

    @box_loss("with-a-matmul")
    def with_a_matmul(pred, target):
        return ((pred - target) @ torch.full((4, 1), 1 / 3, device=pred.device)).squeeze(-1).square()

    @class_loss("with-a-matmul")
    def with_a_matmul_of_classes(logits, targets):
        return ((logits - targets) @ torch.eye(6, device=logits.device) / 3).square()

    for loss, inputs in (
        (create_box_loss("with-a-matmul"), checks.boxes(torch.float32, device)),
        (create_class_loss("with-a-matmul"), checks.grid(torch.float32, device)),
    ):
        with torch.autocast(device, dtype=torch.bfloat16):
            found = loss(*inputs)
        assert found.dtype == torch.float32 and torch.equal(found, loss(*inputs))


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, 65504.0), (torch.bfloat16, 3.38953139e38)], ids=str)
def test_a_gradient_saturates_where_half_precision_would_overflow(dtype, largest):
    one = torch.tensor([1.0, 2, -3], dtype=dtype, requires_grad=True)
    (as_float(one) * torch.tensor([3.4e38, 1.0, -3.4e38])).sum().backward()
    assert one.grad.dtype == dtype and one.grad.tolist() == pytest.approx([largest, 1, -largest])
    promote(one).sum().backward()
    assert one.grad[1] == 2


@pytest.mark.parametrize("seed", range(20))
def test_random_stacks_of_random_boxes_are_finite(seed):
    """Stacks, their options, and pairs of boxes of any size, place and kind."""
    rng = random.Random(seed)
    bases = sorted({name.split("-", 1)[1] for name in list_box_losses() if name.split("-", 1)[0] in PREFIXES})
    for _ in range(6):
        base = rng.choice(bases)
        usable = [p for p in PREFIXES if f"{p}-{base}" in list_box_losses()]
        name = "-".join([*rng.sample(usable, rng.randint(0, len(usable))), base])
        options = draw_options(rng, create_box_loss(name))
        pred, target = (draw_boxes(rng, 40) for _ in range(2))
        for row in range(0, 40, 8):
            target[row] = pred[row]
        loss = create_box_loss(name, **options)(pred.requires_grad_(), target)
        loss.sum().backward()
        assert loss.isfinite().all() and pred.grad.isfinite().all(), (name, options)


def draw_options(rng, loss):
    """Return samples for about half of a loss's options, in order where they must be."""
    parameters = REGISTRY.parameters()
    while True:
        options = {key: rng.choice(parameters[key].samples()) for key in loss.options if rng.random() < 0.5}
        if checks.is_in_order({**loss.options, **options}):
            return options


def draw_boxes(rng, count):
    """Return boxes whose sides span thirty orders of magnitude, some of them empty or inverted."""
    rows = []
    for _ in range(count):
        x, y = (rng.choice((0.0, rng.uniform(-1, 1))) * 10 ** rng.uniform(-8, 8) for _ in range(2))
        w, h = (rng.choice((0.0, 1.0, 1.0, 1.0, -1.0)) * 10 ** rng.uniform(-15, 15) for _ in range(2))
        rows.append((x, y, x + w, y + h))
    return torch.tensor(rows)

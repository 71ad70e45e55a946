# SPDX-License-Identifier: AGPL-3.0-or-later
"""What every loss promises, as checks that take its name: for those of the registry, and for one that a file brings."""

import copy
import pickle

import torch

from tests import oracles
from tests.pairs import KINDS, boxes
from yolo_lossplug import create_box_loss, create_class_loss
from yolo_lossplug.registry import REGISTRY
from yolo_lossplug.selection.keys import numeric_keys

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def choices(loss):
    """Return options for a loss: none, each alone at every sample of its range, and all together at the same place."""
    parameters = numeric_keys()
    samples = {key: parameters[key].samples() for key in loss.options}
    alone = [{key: value} for key, values in samples.items() for value in values]
    together = [dict(zip(samples, values)) for values in zip(*samples.values()) if len(samples) > 1]
    return [{}, *(options for options in [*alone, *together] if is_in_order({**loss.options, **options}))]


def is_in_order(options):
    """Return whether options increase where a loss says that they must."""
    pairs = [pair for spec in REGISTRY for pair in zip(spec.increasing, spec.increasing[1:])]
    return all(options[low] < options[high] for low, high in pairs if low in options and high in options)


def later(loss, inputs):
    """Return the second loss of a run that is half done: options of what a loss remembers show there."""
    if loss.state is not None:
        loss.state.state.epoch, loss.state.state.epochs = 3, 6
        loss(*inputs)
    return loss(*inputs)


def every_option_shows(create, name, inputs):
    """Assert that each option changes the loss or its gradient somewhere in its range."""

    def shown(loss):
        leaf = inputs[0].clone().requires_grad_()
        value = later(loss, (leaf, *inputs[1:]))
        return torch.cat((value.detach().flatten(), *(g.flatten() for g in torch.autograd.grad(value.sum(), [leaf]))))

    plain = create(name)
    expected = shown(plain)
    for key in plain.options:
        values = (options[key] for options in choices(plain) if list(options) == [key])
        assert any(not torch.equal(shown(create(name, **{key: v})), expected) for v in values), key


def near_pairs(seed):
    rng = torch.Generator().manual_seed(seed)
    target = torch.rand(9, 4, generator=rng, dtype=torch.float64) * 10
    target[:, 2:] += target[:, :2] + 2
    return (target + torch.randn(9, 4, generator=rng, dtype=torch.float64) * 0.6).requires_grad_(), target


def random_pairs(n=60):
    rng = torch.Generator().manual_seed(3)
    target = torch.rand(n, 4, generator=rng, dtype=torch.float64) * 20
    target[:, 2:] = target[:, :2] + 1 + target[:, 2:]
    pred = target + torch.randn(n, 4, generator=rng, dtype=torch.float64) * torch.linspace(0.05, 6, n)[:, None].double()
    pred[:, 2:] = torch.maximum(pred[:, 2:], pred[:, :2] + 0.3)
    return pred, target


def equals_the_scalar_formula(name):
    oracle, (pred, target) = oracles.box(name), random_pairs()
    for options in choices(create_box_loss(name)):
        values = [oracle(p, t, **options) for p, t in zip(pred.tolist(), target.tolist())]
        found = create_box_loss(name, **options)(pred, target)
        expected = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, msg=lambda text: f"{options}: {text}")  # noqa: B023


def has_the_gradient_of_the_formula(name):
    """What the oracle holds constant is detached, and nothing else."""
    oracle = oracles.box(name)
    pred, target = (torch.cat((near.detach(), far[::2])) for near, far in zip(near_pairs(1), random_pairs()))
    create_box_loss(name)(pred.requires_grad_(), target).sum().backward()
    rows = [oracles.gradient(lambda p: oracle(p, t), p) for p, t in zip(pred.tolist(), target.tolist())]  # noqa: B023
    torch.testing.assert_close(pred.grad, torch.tensor(rows, dtype=torch.float64), rtol=1e-6, atol=1e-7)


def every_box_option_shows(name):
    every_option_shows(create_box_loss, name, random_pairs())


def zero_at_identical_boxes(name):
    target = torch.tensor([[0.0, 0, 4, 2], [3, 5, 4, 90], [-7, -9, 11, -8], [0, 0, 1e-6, 2e-6], [0, 0, 1e5, 2e5]])
    pred = target.clone().requires_grad_()
    value = create_box_loss(name)(pred, target)
    torch.testing.assert_close(value, torch.zeros(5), rtol=0, atol=1e-6)


class Frozen:
    """A loss as a function whose detached parts stay what they were at one point: what has the loss's gradient."""

    def __init__(self, create, name, target):
        self.create, self.name, self.target, self.constants = create, name, target, None

    def __call__(self, pred):
        recorded, stock = [], torch.Tensor.detach
        replay = iter(self.constants or ())

        def detach(tensor):
            recorded.append(stock(tensor).clone())
            return next(replay, recorded[-1])

        torch.Tensor.detach = detach
        try:
            value = self.create(self.name)(pred, self.target)
        finally:
            torch.Tensor.detach = stock
        self.constants = self.constants or recorded
        return value


def passes_gradcheck(name):
    pred, target = near_pairs(1)
    loss = Frozen(create_box_loss, name, target)
    loss(pred)
    assert torch.autograd.gradcheck(loss, (pred,), atol=1e-6)


def order_and_place_do_not_matter(name):
    rng = torch.Generator().manual_seed(5)
    target = torch.rand(12, 4, generator=rng, dtype=torch.float64) * 10
    target[:, 2:] += target[:, :2] + 1
    pred = target + torch.randn(12, 4, generator=rng, dtype=torch.float64)

    def loss(pred, target):
        return create_box_loss(name)(pred, target)  # anew: some remember what they have seen

    value, order = loss(pred, target), torch.randperm(12, generator=rng)
    torch.testing.assert_close(loss(pred[order], target[order]), value[order])
    torch.testing.assert_close(loss(pred + 300, target + 300), value, rtol=1e-6, atol=1e-6)
    if "stride" not in create_box_loss(name).context:
        torch.testing.assert_close(loss(pred * 8, target * 8), value)


def a_pair_in_pixels_costs_the_same_on_every_level(name):
    """Boxes arrive in grid cells of their level, with its stride."""
    pred, target = near_pairs(4)
    pred, target, imgsz = pred.detach() * 16, target * 16, torch.tensor([480, 640])
    found = []
    for stride in (4, 8, 16, 32):
        strides = torch.full((len(pred), 1), float(stride), dtype=torch.float64)
        found.append(create_box_loss(name)(pred / stride, target / stride, stride=strides, imgsz=imgsz))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def copies_and_pickles(name):
    loss, (pred, target) = create_box_loss(name), boxes()
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert copied == loss
        with torch.no_grad():
            assert torch.equal(copied(pred, target), loss(pred, target))


BOX = (
    *(equals_the_scalar_formula, has_the_gradient_of_the_formula, every_box_option_shows, zero_at_identical_boxes),
    *(passes_gradcheck, order_and_place_do_not_matter, a_pair_in_pixels_costs_the_same_on_every_level),
    copies_and_pickles,
)
"""Checks of box losses by name."""


def finite_for_every_pair(name, device):
    options = choices(create_box_loss(name))
    for dtype in DTYPES:
        pred, target = boxes(dtype, device)
        given = pred.clone(), target.clone()
        for chosen in options if dtype == torch.float32 else options[:1] + options[-5:]:
            pred.requires_grad_().grad = None
            value = create_box_loss(name, **chosen)(pred, target)
            assert value.shape == (len(KINDS),)
            assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            (value * 7.5).sum().backward()
            for kind, v, g in zip(KINDS, value.tolist(), pred.grad.float()):
                assert abs(v) < float("inf") and v >= -1e-6, (chosen, dtype, kind, v)
                assert g.isfinite().all(), (chosen, dtype, kind, g)
            assert torch.equal(pred.detach(), given[0]) and torch.equal(target, given[1]), "inputs were changed"


def no_pair_at_all(name, device):
    pred = torch.zeros(0, 4, device=device, requires_grad=True)
    value = create_box_loss(name)(pred, torch.zeros(0, 4, device=device))
    assert value.shape == (0,)
    value.sum().backward()
    assert pred.grad.shape == (0, 4)


def float32_under_autocast(name, device):
    pred, target = boxes(torch.float32, device)
    plain = create_box_loss(name)(pred, target)
    with torch.autocast(device, dtype=torch.bfloat16):
        half = create_box_loss(name)(pred, target)
    assert torch.equal(plain, half)


def no_host_sync(name, device):
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


BOX_ON_DEVICE = (finite_for_every_pair, no_pair_at_all, float32_under_autocast, no_host_sync)
"""Checks of box losses by name and device."""


LOGITS = torch.tensor([-1e4, -200.0, -30, -2, -1e-3, 0, 1e-3, 0.7, 3, 30, 200, 1e4], dtype=torch.float64)
TARGETS = torch.tensor([0, 1e-6, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)


def grid(dtype=torch.float64, device="cpu"):
    """Return logits and targets of every size, each with each."""
    logits, targets = torch.meshgrid(LOGITS, TARGETS, indexing="ij")
    return logits.to(device, dtype).clone(), targets.to(device, dtype).clone()


def class_oracle(name):
    """Return the oracle of a class loss: of lists of logits and targets, a list."""
    if name in oracles.BATCH:
        return oracles.BATCH[name]
    one = oracles.CLASS[name]
    return lambda logits, targets, **options: [one(s, y, **options) for s, y in zip(logits, targets)]


def equals_the_class_formula(name):
    logits, targets = (tensor[2:-2].flatten() for tensor in grid())
    rtol, atol = (1e-6, 1e-9) if name in oracles.BATCH else (1e-9, 1e-12)
    for options in choices(create_class_loss(name)):
        expected = torch.tensor(class_oracle(name)(logits.tolist(), targets.tolist(), **options), dtype=torch.float64)
        found = create_class_loss(name, **options)(logits, targets)
        torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, msg=lambda text: f"{options}: {text}")  # noqa: B023


def eight_elements():
    return torch.linspace(-3, 3, 8, dtype=torch.float64).requires_grad_(), torch.linspace(0, 1, 8, dtype=torch.float64)


def has_the_gradient_of_the_class_formula(name):
    (logits, targets), oracle = eight_elements(), class_oracle(name)
    create_class_loss(name)(logits, targets).sum().backward()
    expected = oracles.gradient(lambda values: sum(oracle(values, targets.tolist())), logits.tolist())
    torch.testing.assert_close(logits.grad, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7)


def every_class_option_shows(name):
    every_option_shows(create_class_loss, name, grid())


def passes_class_gradcheck_and_takes_no_elements(name):
    logits, targets = eight_elements()
    loss = Frozen(create_class_loss, name, targets)
    loss(logits)
    assert torch.autograd.gradcheck(loss, (logits,))
    empty = torch.zeros(2, 0, 3, requires_grad=True)
    create_class_loss(name)(empty, torch.zeros(2, 0, 3)).sum().backward()
    assert empty.grad.shape == (2, 0, 3)


CLASS = (
    equals_the_class_formula,
    has_the_gradient_of_the_class_formula,
    every_class_option_shows,
    passes_class_gradcheck_and_takes_no_elements,
)
"""Checks of class losses by name."""


def finite_and_elementwise(name, device):
    for dtype in DTYPES:
        logits, targets = grid(dtype, device)
        given = logits.clone(), targets.clone()
        for options in choices(create_class_loss(name)):
            logits.requires_grad_().grad = None
            value = create_class_loss(name, **options)(logits, targets)
            assert value.shape == logits.shape
            assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert value.isfinite().all() and (value >= -1e-6).all(), (dtype, options)
            value.sum().backward()
            assert logits.grad.isfinite().all(), (dtype, options)
            assert torch.equal(logits.detach(), given[0]) and torch.equal(targets, given[1])
            if name in oracles.BATCH:
                continue
            one_by_one = create_class_loss(name, **options)(logits.detach().flatten()[7:8], targets.flatten()[7:8])
            torch.testing.assert_close(one_by_one, value.detach().flatten()[7:8])


def class_float32_under_autocast_and_no_host_sync(name, device):
    logits, targets = grid(torch.float32, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        half = create_class_loss(name)(logits, targets)
    assert torch.equal(half, create_class_loss(name)(logits, targets))
    create_class_loss(name)(logits.to("meta").requires_grad_(), targets.to("meta")).sum().backward()


CLASS_ON_DEVICE = (finite_and_elementwise, class_float32_under_autocast_and_no_host_sync)
"""Checks of class losses by name and device."""

# SPDX-License-Identifier: AGPL-3.0-or-later
"""The mask term inside boxes against Ultralytics' own, which draws every mask over the whole plane."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from ultralytics.utils import IterableSimpleNamespace
from ultralytics.utils.loss import v8SegmentationLoss

from tests.sparse.test_terms import Sizes
from yolo_lossplug.sparse import mask_term
from yolo_lossplug.ultralytics_hook.derived import derive
from yolo_lossplug.ultralytics_hook.engines.masks import MaskMixin, can_have_masks, mask_errors

TAKES_OVERLAP = "overlap" in inspect.signature(v8SegmentationLoss.calculate_segmentation_loss).parameters
"""Whether Ultralytics' method is told if masks may overlap, as in releases before 8.4."""
SIZE = (128.0, 192.0)
"""Height and width of the images in pixels; prototypes are a quarter of that."""
N_ANCHORS = 700


def criteria(overlap):
    head = SimpleNamespace(stride=torch.tensor([8.0, 16, 32]), nc=3, reg_max=4)
    gains = IterableSimpleNamespace(box=7.5, cls=0.5, dfl=1.5, overlap_mask=overlap)
    model = SimpleNamespace(parameters=lambda: iter((torch.zeros(1),)), args=gains, model=[head])
    pair = v8SegmentationLoss(model), v8SegmentationLoss(model)
    assert can_have_masks(pair[1])
    derive(MaskMixin, pair[1])
    return pair


def boxes_of(kind, n, rng):
    extent = torch.tensor(SIZE[::-1])
    centre, side = torch.rand(n, 2, generator=rng) * extent, torch.rand(n, 2, generator=rng) * 60 + 2
    if kind == "whole":
        centre, side = (extent / 2).expand(n, 2), extent.expand(n, 2)
    if kind == "pixel":
        centre, side = (centre / 4).floor() * 4 + 2, torch.full((n, 2), 4.0)
    if kind == "edges":
        centre, side = (centre / 4).round() * 4, (side / 8).ceil() * 8
    if kind == "tiny":
        side = torch.rand(n, 2, generator=rng) * 6 + 0.1
    if kind == "outside":
        centre = (centre - extent / 2) * 2.5 + extent / 2
    boxes = torch.cat((centre - side / 2, centre + side / 2), 1)
    return boxes[:1].expand(n, 4).contiguous() if kind == "duplicates" else boxes


def problem(kind, n=6, k=7, overlap=True, scale=4, seed=0):
    """Return the arguments of the mask term: two images with n gts of up to k positives each, and one without."""
    rng = torch.Generator().manual_seed(seed)
    height, width = (int(size) // scale for size in SIZE)
    foreground, slots = torch.zeros(3, N_ANCHORS, dtype=torch.bool), torch.zeros(3, N_ANCHORS, dtype=torch.long)
    boxes, masks = torch.zeros(3, N_ANCHORS, 4), torch.zeros(3, height, width)
    for image in (0, 2):
        gts = boxes_of(kind, n, rng)
        anchors = torch.randperm(N_ANCHORS, generator=rng)[: n * k]
        foreground[image, anchors[torch.rand(len(anchors), generator=rng) < 0.8]] = True
        slots[image, anchors] = torch.arange(len(anchors)) % n
        boxes[image] = gts[slots[image]]
        masks[image] = torch.randint(n + 1, masks.shape[1:], generator=rng)
    if not overlap:
        masks = (torch.rand(2 * n + 3, height, width, generator=rng) > 0.5).float()
    images = torch.cat((torch.zeros(n), torch.ones(3), torch.full((n,), 2))).view(-1, 1)
    prototypes = torch.randn(3, 8, height, width, generator=rng).requires_grad_()
    coefficients = torch.randn(3, N_ANCHORS, 8, generator=rng).requires_grad_()
    return foreground, masks, slots, boxes, images, prototypes, coefficients, torch.tensor(SIZE)


def results(criterion, args):
    loss = criterion.calculate_segmentation_loss(*args, *((criterion.overlap,) if TAKES_OVERLAP else ()))
    return loss.detach(), *torch.autograd.grad(loss, args[5:7])


KINDS = ("ordinary", "whole", "pixel", "edges", "tiny", "outside", "duplicates")


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_hosts(kind, overlap):
    pair = criteria(overlap)
    for seed in range(3):
        n, scale = (6, 4) if seed else (20, 2)  # also with more boxes than those up to which a release rounds sides
        args = problem(kind, n, overlap=overlap, scale=scale, seed=seed)
        for actual, expected in zip(results(pair[1], args), results(pair[0], args)):
            assert torch.isfinite(expected).all()
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_500_objects_and_small_chunks(monkeypatch):
    monkeypatch.setitem(mask_term.CHUNK, "cpu", 40)
    pair, args = criteria(True), problem("ordinary", 500, 1)
    for actual, expected in zip(results(pair[1], args), results(pair[0], args)):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def test_a_box_without_area_adds_nothing():
    pair, args = criteria(True), problem("ordinary")
    empty = args[0] & (args[2] == 1)
    args[3][empty] = args[3][empty][:, [0, 1, 0, 1]]
    assert results(pair[0], args)[0].isnan()
    ours = results(pair[1], args)
    others = (args[0] & ~empty, *args[1:])
    for actual, expected in zip(ours, results(pair[0], others)):
        expected = expected * others[0].sum() / args[0].sum()
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_without_positives_and_by_a_fork():
    (stock, ours), args = criteria(True), problem("ordinary")
    args[0][:] = False
    assert results(stock, args)[0].isnan() and results(ours, args)[0].isnan()  # the host never asks

    class Fork(v8SegmentationLoss):
        @staticmethod
        def single_mask_loss(*args):
            return args[2].sum()

    assert not can_have_masks(Fork.__new__(Fork)) and not can_have_masks(object())


def test_the_trial_sees_a_host_that_has_changed(monkeypatch):
    assert max(mask_errors.__wrapped__("cpu")) < 1e-6
    stock = v8SegmentationLoss.single_mask_loss
    monkeypatch.setattr(v8SegmentationLoss, "single_mask_loss", staticmethod(lambda *args: stock(*args) * 1.001))
    assert min(mask_errors.__wrapped__("cpu")) > 1e-4


def test_gradients_in_half_and_twice():
    args = problem("ordinary")
    coefficients, prototypes = (args[6][:, :20].flatten(0, 1).detach(), args[5].detach())
    rectangles = [[3, 4, 20, 30], [0, 0, 48, 32]]
    objects = mask_term.MaskedObjects(*map(torch.tensor, ([20, 40], [0, 2], rectangles, [0, 2], [1, 2], [0.5, 2.0])))
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [tensor.to(dtype).requires_grad_() for tensor in (coefficients, prototypes)]
        loss = mask_term.mask_sum(*inputs, args[1], objects)
        once = torch.autograd.grad(loss, inputs, retain_graph=True)
        assert all(torch.equal(2 * one, two) for one, two in zip(once, torch.autograd.grad(2 * loss, inputs)))
        assert loss.dtype == torch.float32 and once[0].dtype == dtype
        found[dtype] = loss
    torch.testing.assert_close(found[torch.bfloat16], found[torch.float32], rtol=1e-2, atol=0)


def test_the_loss_of_masks_that_fit_does_not_cancel():
    rng = torch.Generator().manual_seed(0)
    mask, size = (torch.rand(1, 48, 32, generator=rng) > 0.5).float(), torch.rand(1, 48, 32, generator=rng) * 4 + 6
    image = torch.tensor([0])
    objects = mask_term.MaskedObjects(image + 1, image, torch.tensor([[0, 0, 32, 48]]), image, None, torch.ones(1))
    loss = mask_term.mask_sum(torch.ones(1, 1), ((2 * mask - 1) * size).unsqueeze(0), mask, objects)
    assert float(loss) == pytest.approx(float((-size.double()).exp().log1p().sum()), rel=1e-5)


def test_nothing_large_is_computed(monkeypatch):
    monkeypatch.setitem(mask_term.CHUNK, "cpu", 2000)
    args = problem("whole", 20, 10)
    with Sizes() as recorded:
        results(criteria(True)[1], args)
    gradients = args[6].numel()
    assert max(recorded.sizes) <= max(gradients, args[5].numel())
    assert args[0].sum() * args[1][0].numel() > 8 * gradients

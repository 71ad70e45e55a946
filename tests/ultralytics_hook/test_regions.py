# SPDX-License-Identifier: AGPL-3.0-or-later
"""Regions in the loss, against a sum over anchors in plain Python."""

import math

import numpy as np
import pytest
import torch
from ultralytics.utils import ROOT
from ultralytics.utils.loss import v8DetectionLoss

from tests.models import model, predicted, with_keys
from tests.runs import slow
from tests.test_regions import cells_by_hand, drawn
from yolo_lossplug import LossPlugError, create_class_loss, list_class_losses
from yolo_lossplug.regions import ImageRegions, upright_corners
from yolo_lossplug.ultralytics_hook.console import VERSION
from yolo_lossplug.ultralytics_hook.criterion import leave_out_regions
from yolo_lossplug.ultralytics_hook.regions.loss import regions_of
from yolo_lossplug.ultralytics_hook.running import branches

STRIDES = (8, 16, 32)
ENGINES = ("reference", "fast") if hasattr(v8DetectionLoss, "get_assigned_targets_and_loss") else ("reference",)
"""The fast engine takes steps from 8.4 on."""


def drawn_predictions(name):
    """Return a model, its predictions with logits of all sizes, and the batch."""
    made, preds, batch = predicted(name)
    preds = parted(preds, made.model[-1].nc)
    for scores in scores_of(preds):
        scores.copy_(torch.randn(scores.shape, generator=torch.Generator().manual_seed(1)) * 2)
    return made, preds, batch


def with_regions(batch, is_box=True, n_classes=3):
    """Return a batch with three regions in its first image and one in its second."""
    rng = np.random.default_rng(3)
    images = tuple(drawn(rng, count, is_box) for count in (3, 1))
    images = tuple(one._replace(table=one.table[:, :n_classes]) for one in images)
    return {**batch, "lossplug": images}


def parted(preds, nc):
    """Return predictions with logits apart, as releases from 8.4 on have them; before, levels hold all outputs."""
    if isinstance(preds, list):
        flat = torch.cat([level.flatten(2) for level in preds], 2)
        return {"scores": flat[:, -nc:].clone(), "rest": flat[:, :-nc], "shapes": [level.shape[2:] for level in preds]}
    if isinstance(preds, tuple):
        return (parted(preds[0], nc), *preds[1:]) if isinstance(preds[0], list) else preds
    return preds if "scores" in preds else {branch: parted(found, nc) for branch, found in preds.items()}


def joined(preds):
    """Return predictions as this release has them."""
    if isinstance(preds, tuple):
        return (joined(preds[0]), *preds[1:])
    if not isinstance(preds, dict) or ("scores" in preds and "rest" not in preds):
        return preds
    if "rest" not in preds:
        return {branch: joined(found) for branch, found in preds.items()}
    sizes = [height * width for height, width in preds["shapes"]]
    levels = zip(torch.cat((preds["rest"], preds["scores"]), 1).split(sizes, 2), preds["shapes"])
    return [level.unflatten(2, shape) for level, shape in levels]


def scores_of(preds):
    """Return the logits (b, classes, A) of each branch, as leaves."""
    found = next(part for part in preds if isinstance(part, dict)) if isinstance(preds, tuple) else preds
    parts = [found[name] for name in ("one2many", "one2one") if name in found] or [found]
    return [part["scores"] for part in parts]


def step(criterion, preds, batch):
    """Return the loss of a step, and the gradients of the logits of its branches."""
    scores = scores_of(preds)
    for one in scores:
        one.requires_grad_()
    with regions_of(batch):
        loss, terms = criterion(joined(preds), batch)[:2]
    by_term = loss if loss.ndim else terms * len(batch["img"])  # before 8.4 the loss is a sum
    return by_term.detach().double(), torch.autograd.grad(loss.sum(), scores)


def seen_targets(criterion):
    """Make the criteria inside one keep what their assigners return, and return the lists."""
    kept = {}
    for name, leaf in branches(criterion):
        calls = kept[name] = []
        leaf.assigner.register_forward_hook(lambda _, __, result, calls=calls: calls.append(result[2].detach().clone()))
    return kept


def bce_at_zero(x):
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


CASES = ["yolov8n", "yolov8n-pose", "yolov8n-obb", slow("yolov10n")]
if VERSION != "8.4.0":  # which takes a batch of two for two prototypes
    CASES += ["yolov8n-seg"]
if (ROOT / "cfg" / "models" / "26").is_dir():
    CASES += ["yolo26n", slow("yolo26n-seg")]


@pytest.mark.parametrize("name", CASES)
def test_the_loss_leaves_out_what_is_silenced(name):
    """By the host's own step: each branch loses Σ BCE(x, 0) / Σ targets over silenced elements of other anchors."""
    made, preds, batch = drawn_predictions(name)
    stock, n_classes = with_keys(made), made.model[-1].nc
    before, stock_grads = step(stock, preds, batch)
    batch = with_regions(batch, "obb" not in name, n_classes)
    criterion = with_keys(made)
    leave_out_regions(criterion)
    targets = seen_targets(criterion)
    after, grads = step(criterion, preds, batch)
    cells = cells_by_hand(batch["lossplug"], (64, 64), STRIDES)
    lost = 0.0
    gains = {"one2many": getattr(criterion, "o2m", 1.0), "one2one": getattr(criterion, "o2o", 1.0)}
    for (branch, leaf), scores, grad, stock_grad in zip(branches(criterion), scores_of(preds), grads, stock_grads):
        target = targets[branch][0]
        silenced = cells & (target.amax(-1) == 0)[:, None]
        total = max(1.0, float(target.double().sum()))
        terms = [bce_at_zero(x) for x in scores[silenced].tolist()]
        assert len(terms) > 5
        lost += gains.get(branch, 1.0) * leaf.hyp.cls * len(scores) * sum(terms) / total
        torch.testing.assert_close(grad, stock_grad.masked_fill(silenced, 0), rtol=1e-5, atol=1e-9)
    assert float((before - after).sum()) == pytest.approx(lost, rel=1e-4)


@pytest.mark.parametrize("extra", [{}, {"cls_smoothing": 0.1, "cls_weights": [1, 2, 0.5]}], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", [one for one in list_class_losses() if one not in ("ce",)])
def test_every_class_loss_leaves_them_out_in_both_engines(name, extra):
    made, preds, batch = drawn_predictions("yolov8n")
    batch, found = with_regions(batch), []
    for engine in ENGINES:
        criterion = with_keys(made, cls_loss=name, loss_engine=engine, **extra)
        leave_out_regions(criterion)
        targets = seen_targets(criterion)
        found.append(step(criterion, preds, batch))
        cells = cells_by_hand(batch["lossplug"], (64, 64), STRIDES)
        if engine == "reference":
            silenced = cells & (targets["main"][0].amax(-1) == 0)[:, None]
        assert not found[-1][1][0][silenced].any() and found[-1][1][0][~silenced].any()
    (loss, (grad,)), (fast_loss, (fast_grad,)) = found[0], found[-1]
    torch.testing.assert_close(fast_loss, loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(fast_grad, grad, rtol=1e-4, atol=1e-7)
    stateless = "state" not in with_keys(made, cls_loss=name).bce.loss.context if name != "bce" else True
    if stateless:  # what is lost is the sum of the elements, each at target 0
        plain = with_keys(made, cls_loss=name, loss_engine="reference", **extra)
        x = scores_of(preds)[0].detach()
        weight = torch.tensor(extra.get("cls_weights", [1.0, 1, 1]))[None, :, None]
        terms = (create_class_loss(name)(x, torch.zeros_like(x)) * weight)[silenced].double().sum()
        total = targets_total(plain, preds, batch)
        lost = (step(plain, preds, {**batch, "lossplug": None})[0] - loss).sum()
        assert float(lost) == pytest.approx(float(terms / total * plain.hyp.cls * len(x)), rel=1e-4)


def targets_total(criterion, preds, batch):
    targets = seen_targets(criterion)
    step(criterion, preds, {**batch, "lossplug": None})
    return targets["main"][0].double().sum().clamp(min=1)


def whole(table):
    """Return a region that covers an image."""
    corners = upright_corners(np.array([[0, 0, 1, 1]], np.float32))
    return ImageRegions(corners, np.zeros(1, np.int64), np.array([table]))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_region_that_silences_nothing_and_one_that_silences_everything(engine):
    made, preds, batch = drawn_predictions("yolov8n")
    keys = {"loss": "eiou", "loss_engine": engine}
    before, (stock_grad,) = step(with_keys(made, **keys), preds, batch)
    for table, expected in (([False] * 3, stock_grad), ([True] * 3, None)):
        criterion = with_keys(made, **keys)
        leave_out_regions(criterion)
        targets = seen_targets(with_keys(made)) if expected is None else None
        after, (grad,) = step(criterion, preds, {**batch, "lossplug": (whole(table),) * 2})
        if expected is not None:
            assert torch.equal(after, before) and torch.equal(grad, expected)
            continue
        reference = with_keys(made)
        targets = seen_targets(reference)
        step(reference, preds, batch)
        positive = (targets["main"][0].amax(-1) > 0)[:, None].expand_as(grad)
        torch.testing.assert_close(grad, stock_grad * positive)
        assert after[0] == before[0] and after[2] == before[2], "box and DFL are those of the positives"


def test_gradients_agree_with_differences():
    made, preds, batch = drawn_predictions("yolov8n")
    criterion = with_keys(made, cls_loss="qfl")
    leave_out_regions(criterion)
    batch = with_regions(batch)
    _, (grad,) = step(criterion, preds, batch)
    scores = scores_of(preds)[0]
    for place in [(0, 0, 5), (0, 1, 40), (1, 2, 70)]:
        values = []
        for shift in (1e-2, -1e-2):
            with torch.no_grad():
                scores[place] += shift
                with regions_of(batch):
                    values.append(float(criterion(joined(preds), batch)[0].double().sum()))
                scores[place] -= shift
        assert (values[0] - values[1]) / 2e-2 == pytest.approx(float(grad[place]), rel=0.05, abs=5e-3)


def test_statistics_of_a_class_loss_count_what_is_left():
    """GHM weighs by how many elements have a gradient of the same size: silenced ones are none of them."""
    made, preds, batch = drawn_predictions("yolov8n")
    batch, found = with_regions(batch), []
    for shift in (0.0, 5.0):  # of silenced logits alone
        criterion = with_keys(made, cls_loss="ghm")
        leave_out_regions(criterion)
        scores = scores_of(preds)[0]
        targets = seen_targets(criterion)
        step(criterion, preds, batch)
        silenced = cells_by_hand(batch["lossplug"], (64, 64), STRIDES) & (targets["main"][0].amax(-1) == 0)[:, None]
        criterion = with_keys(made, cls_loss="ghm")
        leave_out_regions(criterion)
        before = scores.detach().clone()
        with torch.no_grad():
            scores[silenced] -= shift
        found.append(float(step(criterion, preds, batch)[0][1]))
        with torch.no_grad():
            scores.copy_(before)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_criteria_without_a_class_term_are_refused():
    with pytest.raises(LossPlugError, match="ignore and annotated cannot be used with function"):
        leave_out_regions(lambda preds, batch: 0)
    made, preds, batch = drawn_predictions("yolov8n")
    criterion = with_keys(made)
    leave_out_regions(criterion)
    small = {**with_regions(batch), "img": batch["img"][..., :32]}
    with pytest.raises(LossPlugError, match="are not those of the levels"):
        step(criterion, preds, small)
    assert model("yolov8n") is made


class TestDetr:
    """RT-DETR: queries that are matched to no object."""

    @pytest.fixture
    def parts(self):
        from ultralytics.models.utils.loss import RTDETRDetectionLoss

        rng = torch.Generator().manual_seed(0)
        boxes = torch.rand(2, 2, 30, 4, generator=rng) * torch.tensor([1, 1, 0.3, 0.3])
        scores = torch.randn(2, 2, 30, 3, generator=rng).requires_grad_()
        targets = {
            "cls": torch.tensor([0, 2, 1]),
            "bboxes": torch.rand(3, 4, generator=rng) * 0.4 + 0.2,
            "batch_idx": torch.tensor([0, 0, 1]),
            "gt_groups": [2, 1],
        }
        return RTDETRDetectionLoss, boxes, scores, targets

    def silenced_by_hand(self, boxes, regions):
        """Return the elements (layers, b, queries, classes) of boxes that lie in a region with more than half."""
        found = torch.zeros(*boxes.shape[:3], 3, dtype=torch.bool)
        for layer, image, query in np.ndindex(*boxes.shape[:3]):
            x, y, w, h = boxes[layer, image, query].tolist()
            one = regions[image]
            for corners, kind in zip(one.corners, one.kind):
                (left, top), (right, bottom) = corners[0], corners[2]
                width = min(x + w / 2, right) - max(x - w / 2, left)
                height = min(y + h / 2, bottom) - max(y - h / 2, top)
                if max(width, 0) * max(height, 0) > 0.5 * w * h:
                    found[layer, image, query] |= torch.from_numpy(one.table[kind])
        return found

    @pytest.mark.parametrize("keys", [{}, {"cls_loss": "qfl"}, {"loss": "eiou"}], ids=str)
    def test_unmatched_queries_in_regions_have_no_class_term(self, parts, keys):
        from yolo_lossplug.selection.select import select
        from yolo_lossplug.ultralytics_hook.criterion import plug
        from yolo_lossplug.ultralytics_hook.detr import input_size

        made, boxes, scores, targets = parts
        regions = with_regions({})["lossplug"]
        matched, grads, sums = [], [], []
        for images in (None, regions):
            criterion = plug(made(nc=3, use_vfl=True), select({**keys, "task": "rtdetr"}))
            leave_out_regions(criterion)
            match = criterion.matcher.forward
            criterion.matcher.forward = lambda *a, match=match, **k: matched.append(match(*a, **k)) or matched[-1]
            with input_size(64, 64), regions_of({"img": torch.zeros(2, 3, 64, 64), "lossplug": images}):
                terms = criterion((boxes, scores), targets)
            sums.append({key: value.detach() for key, value in terms.items()})
            grads.append(torch.autograd.grad(sum(terms.values()), scores)[0])
        silenced = self.silenced_by_hand(boxes, regions)
        # The last layer comes first; the first one has matches of its own.
        for layer, indices in zip((-1, 0), matched[:2]):
            for image, (query, _) in enumerate(indices):
                silenced[layer, image, query] = False
        assert silenced.sum() > 20 and not grads[1][silenced].any()
        torch.testing.assert_close(grads[1], grads[0].masked_fill(silenced, 0), rtol=1e-5, atol=1e-8)
        for key, before in sums[0].items():
            is_class = "class" in key and "_dn" not in key
            assert (sums[1][key] < before) if is_class else (sums[1][key] == before), key

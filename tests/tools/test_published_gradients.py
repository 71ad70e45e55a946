# SPDX-License-Identifier: AGPL-3.0-or-later
"""The gradients of the authors' program: true ones but for the five differences that are named, and their order."""

import math

import pytest
import torch

from yolo_lossplug import LossPlugError, create_box_loss
from yolo_lossplug.tools import published_gradients, simulate
from yolo_lossplug.tools import simulate_experiment as experiment
from yolo_lossplug.tools.published_gradients import GRADIENTS


def boxes(*rows):
    return torch.tensor(rows).t()


TARGET = boxes((0.0, 0.0, 2.0, 1.0))
OVERLAPPING = {
    "corner": boxes((0.6, 0.3, 1.5, 0.9)),
    "inside": boxes((0.1, 0.05, 1.0, 0.5)),
    "across": boxes((0.1, 0.2, 3.0, 0.4)),
}
APART = boxes((4.0, 2.0, 1.0, 1.0))


def true(name, one, double=False):
    """Return the gradient by automatic differentiation, by w and h doubled if asked."""
    found = experiment.gradient(create_box_loss(name), one, TARGET)
    return found * torch.tensor([1.0, 1.0, 2.0, 2.0]).unsqueeze(1) if double else found


@pytest.mark.parametrize("one", OVERLAPPING.values(), ids=OVERLAPPING)
@pytest.mark.parametrize("name", ["iou", "giou"])
def test_overlapping_boxes_have_true_gradients_with_doubled_sizes(name, one):
    assert torch.allclose(GRADIENTS[name](one, TARGET), true(name, one, True), atol=1e-5)


def test_boxes_apart():
    assert (published_gradients.iou(APART, TARGET) == 0).all()
    # By hand: I = −2.5 · −1, as a product of two negative extents, where it should be 0; U = 1 + 2 − 2.5, C = 5.5 · 3.
    shared, hull = (-2.5, -1.0), (5.5, 3.0)
    inner = (-shared[1], -shared[0])  # ∂I by x and y: only the lower edges bound the intersection
    union, area = 3 - shared[0] * shared[1], hull[0] * hull[1]
    by_x = ((0 - inner[0]) * area - union * hull[1]) / area**2
    by_y = ((0 - inner[1]) * area - union * hull[0]) / area**2
    assert published_gradients.giou(APART, TARGET)[:2].flatten().tolist() == pytest.approx([-by_x, -by_y], rel=1e-5)


def test_distance_term():
    """ρ² = 20, c² = 5.5² + 3²; by x, c² counts both sides and has the other sign, and so it has by w, halved."""
    square, c2 = 20.0, 5.5**2 + 3**2
    found = (published_gradients.diou(APART, TARGET) - published_gradients.iou(APART, TARGET)).flatten()
    both = 2 * 5.5 + 2 * 3
    assert found[0].item() == pytest.approx((2 * 4 * c2 + both * square) / c2**2, rel=1e-5)
    assert found[1].item() == pytest.approx((2 * 2 * c2 + both * square) / c2**2, rel=1e-5)
    assert found[2].item() == pytest.approx(-both * 0.5 * square / c2**2, rel=1e-5)
    encloses = boxes((0.5, 0.25, 4.0, 4.0))
    added = (published_gradients.diou(encloses, TARGET) - published_gradients.iou(encloses, TARGET)).flatten()
    assert added[2].item() == pytest.approx(16 * (0.25 + 0.0625) / 32**2, rel=1e-4)  # −1 by a side that encloses


def test_aspect_term_lacks_its_denominator():
    one = boxes((0.6, 0.3, 1.5, 0.9))
    added = (published_gradients.ciou(one, TARGET) - published_gradients.diou(one, TARGET)).flatten()
    exact = (true("ciou", one) - true("diou", one)).flatten()
    assert (added[:2] == 0).all()
    assert (added[2:] / exact[2:]).tolist() == pytest.approx([1.5**2 + 0.9**2] * 2, rel=1e-3)


def test_the_published_order():
    """Figure 4 of the paper: IoU last, stuck where boxes are apart, then GIoU, DIoU, and CIoU first."""
    sample = experiment.draw_cases(3 * 343)
    runs = {n: experiment.simulate(n, experiment.Published(slope), sample) for n, slope in GRADIENTS.items()}
    last = [runs[name].means[-1].item() for name in ("iou", "giou", "diou", "ciou")]
    assert last[0] > 3 * last[1] and last[1] > 100 * last[2]
    total = {name: run.means.sum().item() for name, run in runs.items()}
    assert total["iou"] > total["giou"] > total["diou"] > total["ciou"]
    assert runs["iou"].disjoint > 0.8 and runs["diou"].disjoint == runs["ciou"].disjoint == 0
    assert all(math.isfinite(value) for value in last)


def test_kinds_of_gradients():
    losses = {name: create_box_loss(name) for name in ("giou", "eiou")}
    assert list(simulate.descents(losses, ("published", "true"))) == ["giou, published", "giou", "eiou"]
    assert list(simulate.descents(losses, "true,published")) == ["giou", "eiou", "giou, published"]
    assert simulate.descents(losses, None) == losses
    with pytest.raises(LossPlugError, match="has no loss=eiou: the paper has iou, giou, diou, ciou"):
        simulate.descents(losses, "published")
    with pytest.raises(LossPlugError, match="gradients=exact is unknown. Known: true, published"):
        simulate.descents(losses, "exact")


@pytest.mark.slow
def test_published_gradients_have_a_panel_of_their_own(tmp_path):
    simulate.main({"loss": "giou,eiou", "gradients": ("published", "true"), "cases": 343, "project": str(tmp_path)})
    (folder,) = tmp_path.iterdir()
    text = (folder / "simulate.csv").read_text(encoding="utf-8")
    assert all(name in text for name in ('"giou, published"', "giou,0", "eiou,0"))

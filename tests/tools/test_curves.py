# SPDX-License-Identifier: AGPL-3.0-or-later
"""Curves of losses: numbers worked out by hand, options that arrive, keys that are refused."""

import csv
import math

import pytest
import torch

from yolo_lossplug import LossPlugError, charts, create_box_loss, create_class_loss, list_class_losses
from yolo_lossplug.boxes import Pair
from yolo_lossplug.registry import BOX, MODIFIER, OVERLAP, REGISTRY, ROTATED
from yolo_lossplug.tools.arms import arms, labels
from yolo_lossplug.tools.curves import command as curves
from yolo_lossplug.tools.curves import measures as measures
from yolo_lossplug.tools.curves import plots as curves_plots

BASES = REGISTRY.names(BOX, OVERLAP)
PREFIXED = tuple(f"{name}-eiou" for name in REGISTRY.names(MODIFIER))


def drawn(folder, **keys):
    curves.main({**keys, "project": str(folder), "name": "found"})
    assert (folder / "found" / "curves.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "found" / "curves.csv").open(encoding="utf-8") as file:
        return [
            {k: v if k in ("movement", "loss") or not v else float(v) for k, v in row.items()}
            for row in csv.DictReader(file)
        ]


def at(rows, **wanted):
    def fits(value, other):
        return value == other if isinstance(other, str) else math.isclose(value, other, abs_tol=1e-9)

    found = [row for row in rows if all(fits(row[key], value) for key, value in wanted.items())]
    assert len(found) == 1
    return found[0]


def test_shift_against_numbers_by_hand(tmp_path):
    rows = drawn(tmp_path, loss="iou,giou")
    assert {row["movement"] for row in rows} == {"shift", "scale", "aspect"}

    half = at(rows, movement="shift", position=0.5, loss="iou")  # intersection 1/2, union 3/2
    assert half["iou"] == pytest.approx(1 / 3)
    assert half["value"] == pytest.approx(2 / 3)
    # In sides of the target I = 1/2, U = 3/2. By x1: I' = −1, U' = 0, so −2/3. By x2: I' = 0, U' = 1, so −I/U² = −2/9.
    # By y1 and y2, where edges coincide, the mean of both sides: I' = ±1/4, U' = ±3/4, so 0.
    assert half["gradient"] == pytest.approx(math.hypot(2 / 3, 2 / 9))

    apart = {loss: at(rows, movement="shift", position=1.5, loss=loss) for loss in ("iou", "giou")}
    assert apart["iou"]["iou"] == apart["giou"]["iou"] == 0
    assert apart["iou"]["value"] == 1 and apart["iou"]["gradient"] == 0
    assert apart["giou"]["value"] == pytest.approx(1 + 0.5 / 2.5)  # 1 + (hull − union)/hull
    assert apart["giou"]["gradient"] > 0.1


def test_gradients_are_difference_quotients():
    loss, target = create_box_loss("eiou"), measures.target_box()
    box = target + torch.tensor([20.0, -7.0, 31.0, 5.0], dtype=torch.float64)
    values, gradients = measures.measure_box(loss, box[None], target)
    assert values.shape == (1,) and gradients.shape == (1, 4)
    for i in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[i] = 1e-4
        high, low = (measures.measure_box(loss, (box + sign * step)[None], target)[0] for sign in (1, -1))
        assert gradients[0, i] == pytest.approx((high - low).item() / 2e-4, rel=1e-6)
    p = torch.tensor([0.3], dtype=torch.float64)
    loss = create_class_loss("qfl")
    derivative = measures.measure_class(loss, p, 0.5)[1].item()
    high, low = (measures.measure_class(loss, (p.logit() + step).sigmoid(), 0.5)[0].item() for step in (1e-5, -1e-5))
    assert derivative == pytest.approx((high - low) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("name", ["shift", "scale", "aspect"])
def test_movements_have_the_iou_they_say(name):
    way = measures.movement(name)
    assert torch.allclose(Pair(way.boxes, measures.target_box().expand_as(way.boxes)).iou, way.iou)
    size = way.boxes[:, 2:] - way.boxes[:, :2]
    centre = (way.boxes[:, 2:] + way.boxes[:, :2]) / 2
    expected = {
        "shift": (way.positions * 0 + 64, way.positions * 0 + 64, 320 + 64 * way.positions),
        "scale": (64 * way.positions, 64 * way.positions, way.positions * 0 + 320),
        "aspect": (64 * way.positions.sqrt(), 64 / way.positions.sqrt(), way.positions * 0 + 320),
    }[name]
    for found, wanted in zip((size[:, 0], size[:, 1], centre[:, 0]), expected):
        assert torch.allclose(found, wanted)
    assert torch.allclose(centre[:, 1], torch.full_like(centre[:, 1], 320.0))
    assert (way.positions.diff() > 0).all()
    assert way.iou.max() == 1


def test_movements_go_both_ways_and_on_without_overlap_and_losses_start_afresh():
    factors = measures.movement("scale").positions
    assert factors.min() == pytest.approx(math.sqrt(0.1)) and factors.max() == pytest.approx(math.sqrt(10))
    shift = measures.movement("shift")
    assert (shift.iou[shift.positions > 1] == 0).all() and shift.positions.max() == 2
    loss, way = create_box_loss("wiou-v3"), measures.movement("scale")
    first = measures.measure_box(loss, way.boxes, measures.target_box())[0]
    again = measures.measure_box(loss, way.boxes, measures.target_box())[0]
    assert torch.equal(first, again)
    assert not loss.state.state.tensors  # nor does the loss remember the curve


def test_sizes_are_those_of_targets(tmp_path):
    """NWD counts pixels, and CIoU does not: at a shift by half, sqrt(rho²) is 4, and 16, pixels."""
    rows = drawn(tmp_path, loss="ciou,nwd", size=[8, 32])
    half = {size: {"movement": "shift", "position": 0.5, "size": size} for size in (8, 32)}
    for size, where in half.items():
        assert at(rows, **where, loss="nwd")["value"] == pytest.approx(1 - math.exp(-size / 2 / 12.8))
    assert at(rows, **half[8], loss="ciou")["value"] == pytest.approx(at(rows, **half[32], loss="ciou")["value"])
    way = measures.movement("scale", 8)
    assert way.boxes[way.iou == 1].tolist() == [[316, 316, 324, 324]]


@pytest.mark.parametrize("size", [0, -8, 129, "big", "", [8, 500], float("nan")])
def test_a_size_out_of_the_image_is_refused(tmp_path, size):
    with pytest.raises(LossPlugError, match="size=.*above 0 and at most 128"):
        curves.main({"loss": "ciou", "size": size, "project": str(tmp_path / "none")})
    with pytest.raises(LossPlugError, match="size=8 has no effect with cls_loss="):
        curves.main({"cls_loss": "bce", "size": 8, "project": str(tmp_path / "none")})
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", REGISTRY.names(ROTATED))
def test_rotated_boxes_turn(name):
    loss = create_box_loss(name)
    for aspect in measures.ASPECTS:
        values, gradients = measures.measure_turn(loss, aspect)
        assert values[0].abs() < 1e-3 and values.isfinite().all() and gradients.isfinite().all()
        quotient = (values[2:] - values[:-2]) / math.radians(2)  # central differences of the curve itself
        smooth = values.diff().diff().abs() < 2e-3
        assert torch.allclose(quotient[smooth], gradients[1:-1][smooth], atol=0.05)
    assert values[45] > 0.2  # of 8:1


def test_labels_legends_and_axes():
    _figure, axes = charts.figure(1, 1)
    lines = {"one": torch.linspace(0, 4, 50), "two": torch.linspace(0, 5, 50), "high": torch.linspace(0, 90, 50)}
    curves_plots._cut_peaks(axes[0, 0], lines)
    assert axes[0, 0].get_ylim()[1] == pytest.approx(6)
    assert [text.get_text() for text in axes[0, 0].texts] == ["high: to 90"]
    _figure, axes = charts.figure(1, 1)
    curves_plots._cut_peaks(axes[0, 0], {"one": lines["one"], "two": lines["two"]})
    assert not axes[0, 0].texts
    chosen = arms({"loss": "ciou"}) + arms({"loss": "ciou,eiou"})[:1] + arms({"loss": "eiou"})
    assert labels(chosen) == ["ciou [ciou]", "ciou [ciou]", "eiou"]
    assert charts.legend_columns(["a"] * 6, 60) == 3
    assert charts.legend_columns(["a" * 100] * 3, 90) == 1
    assert charts.legend_columns(["a"] * 2, 200) == 2


@pytest.mark.slow
def test_options_reach_the_loss(tmp_path):
    rows = drawn(tmp_path, loss="focal-eiou,eiou", focal_gamma=[0.3, 2])
    # At a shift by half, EIoU = 2/3 + (1/2)²/(3.25) because the hull is 3/2 x 1 sides.
    eiou = 2 / 3 + 0.25 / 3.25
    half = {"movement": "shift", "position": 0.5}
    assert at(rows, **half, loss="eiou")["value"] == pytest.approx(eiou)
    for gamma in (0.3, 2.0):
        found = at(rows, **half, loss=f"focal-eiou(focal_gamma={gamma})")
        assert found["value"] == pytest.approx(3**-gamma * eiou)


def test_losses_see_pixels_angles_and_classes():
    l1, nwd = (create_box_loss(name) for name in ("l1", "nwd"))
    way = measures.movement("shift")
    half = way.boxes[(way.positions - 0.5).abs() < 1e-9]
    assert measures.measure_box(nwd, half, measures.target_box())[0].item() == pytest.approx(1 - math.exp(-32 / 12.8))
    cells = measures.measure_box(l1, half, measures.target_box())[
        0
    ].item()  # 32 pixels are 4 cells, two coordinates of four
    assert cells == pytest.approx(l1(torch.tensor([[4.0, 0, 12, 8]]), torch.tensor([[0.0, 0, 8, 8]])).item())
    # A rotated loss sees x, y, w, h and an angle of 0, in cells.
    target = measures.target_box()
    moved = torch.stack((target, target + torch.tensor([32.0, 0, 32, 0])))
    loss = create_box_loss("kld")
    values, gradients = measures.measure_box(loss, moved, target)
    five = torch.tensor([[0.0, 0, 8, 8, 0], [4, 0, 8, 8, 0]], dtype=torch.float64)
    assert torch.allclose(values, loss(five, five[:1].expand_as(five)))
    assert values[0].abs() < 1e-9 < values[1] and gradients[1, 0] == pytest.approx(gradients[1, 2]) != 0
    p = torch.tensor([0.25, 0.5], dtype=torch.float64)
    values, slopes = measures.measure_class(create_class_loss("ce"), p, 1.0)
    assert values.tolist() == pytest.approx((-p.log()).tolist())
    assert slopes.tolist() == pytest.approx((p - 1).tolist())


@pytest.mark.parametrize("name", (*BASES, *PREFIXED))
def test_every_box_loss_has_finite_curves(name):
    for row in curves.box_rows(arms({"loss": name})):
        assert math.isfinite(row["value"]) and math.isfinite(row["gradient"]) and row["gradient"] >= 0


def test_every_class_loss_has_finite_curves():
    rows = curves.class_rows(arms({"cls_loss": ",".join(list_class_losses())}))
    assert len(rows) == 3 * 99 * len(list_class_losses())
    assert all(math.isfinite(row["value"]) and math.isfinite(row["gradient"]) for row in rows)


@pytest.mark.slow
def test_class_losses_against_numbers_by_hand(tmp_path):
    rows = drawn(tmp_path, cls_loss="bce,focal", cls_focal_gamma=2, cls_focal_alpha=0.25)  # the defaults
    assert {row["target"] for row in rows} == {0, 0.5, 1}
    found = at(rows, target=1, probability=0.2, loss="bce")
    assert found["value"] == pytest.approx(-math.log(0.2)) and found["gradient"] == pytest.approx(-0.8)
    found = at(rows, target=0, probability=0.2, loss="focal")
    assert found["value"] == pytest.approx(0.75 * 0.2**2 * -math.log(0.8))


@pytest.mark.slow
def test_default_draws_some_losses(tmp_path):
    assert {row["loss"] for row in drawn(tmp_path)} >= {"iou", "giou", "ciou"}
    other = curves.new_folder("curves", "found", str(tmp_path))
    assert other.parent == tmp_path and not other.exists()  # results of before are kept


def test_errors_name_the_key(tmp_path):
    for keys, message in (
        ({"loss": "ciou", "focal_gamma": 0.3}, "focal_gamma=0.3 has no effect"),
        ({"loss": "ciou", "epochs": 3}, "epochs=3 is unknown"),
        ({"loss": "ciou", "task": "obb"}, "rotated"),
        ({"loss": "ciou", "task": "depth"}, "task=depth cannot be used here"),
        ({"loss": "ciou", "cls_loss": "bce"}, "give one of them"),
        ({"loss": "ciou", "tal_topk": 5}, "tal_topk=5 has no effect here"),
    ):
        with pytest.raises(LossPlugError, match=message):
            curves.main({**keys, "project": str(tmp_path / "none")})
        assert not (tmp_path / "none").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("task", "names"), [("obb", "probiou"), ("classify", "focal")])
def test_other_tasks_have_curves(tmp_path, task, names):
    curves.main({"task": task, "project": str(tmp_path)})
    assert names in (tmp_path / "curves" / "curves.csv").read_text(encoding="utf-8")
    assert (tmp_path / "curves" / "curves.png").stat().st_size > 10_000

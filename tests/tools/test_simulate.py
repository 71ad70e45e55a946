# SPDX-License-Identifier: AGPL-3.0-or-later
"""The regression experiment: its cases, one step by hand, what is known of the losses, files, interruption."""

import csv
import math

import pytest
import torch
from PIL import Image

from tests.runs import Log
from yolo_lossplug import LossPlugError, create_box_loss
from yolo_lossplug.boxes import Pair
from yolo_lossplug.cli import run_tool
from yolo_lossplug.tools import simulate
from yolo_lossplug.tools import simulate_experiment as experiment
from yolo_lossplug.tools import simulate_plots as plots

FEW = 343
"""Every kind of pair once."""


def column(*numbers):
    return torch.tensor(numbers).unsqueeze(1)


@pytest.fixture(scope="module")
def sample():
    return experiment.draw_cases(3 * FEW)


@pytest.fixture(scope="module")
def runs(sample):
    losses = {name: create_box_loss(name) for name in ("iou", "giou", "diou", "ciou")}
    return {name: experiment.simulate(name, loss, sample) for name, loss in losses.items()}


def test_all_cases_are_those_of_the_paper():
    every = experiment.draw_cases()
    assert every.anchors.shape == every.targets.shape == (4, 1_715_000)
    assert every.points.shape == (5000, 2)
    distance = (every.points - 10).norm(dim=1)
    assert distance.max() <= 3
    assert distance.square().mean().item() == pytest.approx(4.5, abs=0.15)  # uniform in the disc: E r² = R²/2
    assert (torch.bincount(every.point) == FEW).all()
    area, aspect = every.anchors[2] * every.anchors[3], every.anchors[2] / every.anchors[3]
    assert area.mul(100).round().unique().tolist() == [50, 67, 75, 100, 133, 150, 200]
    code = every.point
    for digit in (area, aspect.log2(), every.targets[2]):
        code = code * 10_000 + digit.mul(1000).round().long() % 10_000
    assert len(code.unique()) == 1_715_000  # each point with each pair of shapes once


def test_targets_have_area_1_at_the_centre(sample):
    assert torch.allclose(sample.targets[2] * sample.targets[3], torch.ones(3 * FEW))
    assert (sample.targets[:2] == 10).all()
    ratios = (sample.targets[2] / sample.targets[3]).log2().mul(100).round().unique()
    assert ratios.tolist() == [round(100 * math.log2(r)) for r in (1 / 4, 1 / 3, 1 / 2, 1, 2, 3, 4)]


def test_a_subset_is_even_and_seeded(sample):
    kinds = torch.cat((sample.anchors[2:], sample.targets[2:])).mul(1000).round()
    _, counts = kinds.unique(dim=1, return_counts=True)
    assert len(counts) == FEW and (counts == 3).all()
    assert len(sample.point.unique()) > 2 * FEW  # spread over the points
    again, other = experiment.draw_cases(3 * FEW), experiment.draw_cases(3 * FEW, seed=1)
    assert torch.equal(again.anchors, sample.anchors) and torch.equal(again.targets, sample.targets)
    assert not torch.equal(other.anchors, sample.anchors)
    assert torch.equal(experiment.draw_cases(100).anchors, sample.anchors[:, :100])


def test_learning_rate_decays_at_80_and_90_percent():
    rates = [experiment.learning_rate(i) for i in range(200)]
    assert rates == [0.1] * 160 + [0.01] * 20 + [0.001] * 20


def test_one_step_by_hand():
    loss, target = create_box_loss("iou"), column(10.0, 10.0, 2.0, 2.0)
    # Inside the target I = w·h and U = 4: ∂IoU/∂w = ∂IoU/∂h = 1/4, and the factor is 0.1·(2 − 1/4) = 0.175.
    moved = experiment.step(loss, column(10.25, 10.0, 1.0, 1.0), target, 0.1)
    assert torch.allclose(moved, column(10.25, 10.0, 1 + 0.175 / 4, 1 + 0.175 / 4))
    # Out by 1/4 on the left: I = 3/4, U = 4.25; ∂I/∂x = 1, ∂I/∂w = 1/2, ∂I/∂h = 3/4; of the area 0, 1, 1.
    moved = experiment.step(loss, column(9.25, 10.0, 1.0, 1.0), target, 0.1)
    inside, union = 0.75, 4.25
    factor = 0.1 * (2 - inside / union)
    dx, dw, dh = (
        (d_inside * union - inside * (d_area - d_inside)) / union**2
        for d_inside, d_area in ((1, 0), (0.5, 1), (0.75, 1))
    )
    expected = column(9.25 + factor * dx, 10.0, 1 + factor * dw, 1 + factor * dh)
    assert torch.allclose(moved, expected)


def test_sides_stay_positive():
    loss, target = create_box_loss("iou"), column(10.0, 10.0, 1.0, 1.0)
    path = list(experiment.trajectory(loss, column(10.4, 10.0, 0.01, 6.0), target, 40))
    assert all((boxes[2:] >= experiment.MIN_SIDE).all() and boxes.isfinite().all() for boxes in path)
    moved = experiment.step(loss, column(10.0, 10.0, 0.5, 50.0), target, 1e6)
    assert moved[3].item() == pytest.approx(experiment.MIN_SIDE)


def test_iou_does_not_move_boxes_without_overlap(sample, runs):
    apart = experiment.overlap(sample.anchors, sample.targets) == 0
    *_, last = experiment.trajectory(create_box_loss("iou"), sample.anchors, sample.targets, 20)
    assert torch.equal(last[:, apart], sample.anchors[:, apart]) and 0.5 < apart.float().mean() < 1
    assert not torch.equal(last[:, ~apart], sample.anchors[:, ~apart])
    assert runs["iou"].disjoint == pytest.approx(apart.float().mean().item())


def test_losses_end_in_the_order_that_their_gradients_give(runs):
    final = {name: found.means[-1].item() for name, found in runs.items()}
    assert final["iou"] > 3 > 10 * final["diou"]
    assert final["iou"] > 10 * final["giou"]
    assert final["diou"] > 3 * final["ciou"]
    assert final["ciou"] < final["giou"]
    assert runs["giou"].disjoint == runs["diou"].disjoint == runs["ciou"].disjoint == 0
    # As documented: with true gradients GIoU is ahead of DIoU, which the paper has the other way.
    assert runs["giou"].errors.sum() < runs["diou"].errors.sum()


def test_errors_start_with_the_distance_of_the_anchors(sample, runs):
    by_hand = (sample.anchors - sample.targets).abs().sum().item()
    assert all(found.errors[0].item() == pytest.approx(by_hand, rel=1e-5) for found in runs.values())
    assert all(len(found.errors) == 201 and found.count == 3 * FEW for found in runs.values())


def test_map_is_the_final_error_of_the_points(sample, runs):
    found = runs["diou"]
    counts = torch.bincount(sample.point, minlength=5000)
    assert (found.point_errors.isnan() == (counts == 0)).all()
    assert (found.point_errors.nan_to_num() * counts).sum().item() == pytest.approx(found.errors[-1].item(), rel=1e-6)


def test_chunks_and_repetitions_change_nothing(sample, runs):
    def again(**keys):
        return experiment.simulate("ciou", create_box_loss("ciou"), sample, iterations=40, **keys)

    assert torch.equal(again().errors, again().errors)
    assert torch.allclose(again(chunk=400).errors, again().errors, rtol=1e-6)
    assert torch.allclose(again(chunk=400).point_errors, again().point_errors, rtol=1e-3, equal_nan=True)


def test_a_loss_that_remembers_sees_all_cases_in_each_step(sample):
    loss, seen = create_box_loss("wiou-v3"), []
    whole = experiment.simulate("w", loss, sample, iterations=12)
    parts = experiment.simulate("w", loss, sample, iterations=12, chunk=50, tick=seen.append)
    assert torch.equal(whole.errors, parts.errors) and seen == [3 * FEW] * 13
    assert not loss.state.state.tensors
    assert whole.errors[-1] < whole.errors[0]


def test_the_mean_that_a_loss_remembers_is_of_the_steps_before():
    loss, boxes, target = create_box_loss("wiou-v2"), column(10.5, 10.0, 1.0, 1.0), column(10.0, 10.0, 1.0, 1.0)
    first, second, third = experiment.trajectory(loss, boxes, target, 2)
    plain = create_box_loss("wiou")

    def factor(before, after):
        """Return by how much more a box has moved along x than with wiou, without memory."""
        return ((after - before) / (experiment.step(plain, before, target, 0.1) - before))[0].item()

    outlier = [1 - Pair(experiment.corners(b), experiment.corners(target)).iou.item() for b in (first, second)]
    mean = 0.99 * 1 + 0.01 * outlier[0]
    assert factor(first, second) == pytest.approx(math.sqrt(outlier[0]), rel=1e-3)
    rate = experiment.learning_rate(1, 2) / 0.1
    assert factor(second, third) == pytest.approx(rate * math.sqrt(outlier[1] / mean), rel=1e-3)


@pytest.mark.parametrize("name", ["nwd", "l1", "l2", "mpdiou", "uiou", "focal-inner-siou", "wise-ciou"])
def test_every_sort_of_loss_takes_part(name, sample):
    found = experiment.simulate(name, create_box_loss(name), sample, iterations=30)
    assert found.errors.isfinite().all() and found.errors[-1] < found.errors[0]


def test_steps_that_overshoot_stay_finite(sample):
    found = experiment.simulate("log-iou", create_box_loss("log-iou"), sample, iterations=30)  # gradient 1/IoU
    assert found.errors.isfinite().all() and found.errors.max() > found.errors[0]


def test_steps_are_the_epochs_of_a_loss_that_changes_during_a_run():
    seen = []

    class Spy:
        def within(self, scope):
            self.scope = scope
            return self

        def __call__(self, pred, target, stride, imgsz):
            seen.append(self.scope.progress)
            return (pred - target).square().sum(1)

    list(experiment.trajectory(Spy(), column(10.5, 10.0, 1.0, 1.0), column(10.0, 10.0, 1.0, 1.0), 4))
    assert seen == [0, 0.25, 0.5, 0.75]


def test_pixels_are_an_eighth_of_a_cell():
    boxes, target = column(11.0, 10.0, 1.0, 1.0), column(10.0, 10.0, 1.0, 1.0)
    # NWD = 1 − exp(−8·|Δx|/12.8)
    expected = math.exp(-8 / 12.8) * 8 / 12.8
    assert experiment.gradient(create_box_loss("nwd"), boxes, target)[0].item() == pytest.approx(expected, rel=1e-4)


def command(folder, **keys):
    simulate.main({"cases": 60, **keys, "project": str(folder), "name": "found"})
    return folder / "found"


def table_of(place):
    with (place / "simulate.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_results_are_written(tmp_path, capsys):
    place = command(tmp_path, loss="focal-eiou", focal_gamma=[0.3, 0.5])
    rows = table_of(place)
    names = ["focal-eiou(focal_gamma=0.3)", "focal-eiou(focal_gamma=0.5)"]
    assert list(dict.fromkeys(row["loss"] for row in rows)) == names and len(rows) == 2 * 201
    for row in rows:
        assert float(row["mean_error"]) == pytest.approx(float(row["total_error"]) / 60)
    assert (place / "simulate.png").read_bytes().startswith(b"\x89PNG")
    with Image.open(place / "simulate.gif") as animation:
        assert animation.n_frames > 10
    assert (place / "simulate.gif").stat().st_size < 1_500_000
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("error@0", "error@200", "disjoint", "seconds", *names))


@pytest.mark.slow
def test_a_map_shows_the_losses_that_leave_boxes_behind(tmp_path):
    place = command(tmp_path, loss=["iou", "ciou"], cases=2000)
    assert (place / "map.png").read_bytes().startswith(b"\x89PNG")
    assert (place / "map.png").stat().st_size < 300_000


def test_no_map_is_drawn_of_empty_discs(tmp_path):
    points = torch.tensor([[8.0, 9.0], [11.0, 12.0]])
    errors = torch.zeros(201)

    def run(name, *of_points):
        return experiment.Run(name, errors, 2, torch.tensor(of_points), 0.0, 0.0)

    far, near = run("iou", 3.0, 0.1), run("ciou", 0.1, 0.2)
    assert plots.draw_map([near], points, tmp_path / "map.png") is None and not list(tmp_path.iterdir())
    assert plots.draw_map([far, near], points, tmp_path / "map.png").is_file()
    assert plots._binned(far, points).max() == 3 and plots._binned(far, points).count() == 2


def test_ctrl_c_keeps_the_losses_that_are_finished(tmp_path, monkeypatch):
    whole = simulate.simulate

    def interrupted(name, loss, *args, **keys):
        if name == "giou":
            raise KeyboardInterrupt
        return whole(name, loss, *args, **keys)

    monkeypatch.setattr(simulate, "simulate", interrupted)
    with pytest.raises(KeyboardInterrupt):  # which the command turns into 130
        command(tmp_path, loss="iou,giou,diou")
    assert {row["loss"] for row in table_of(tmp_path / "found")} == {"iou"}
    with pytest.raises(KeyboardInterrupt):
        simulate.main({"loss": "giou", "cases": 60, "project": str(tmp_path), "name": "nothing"})
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"cases": 0}, "cases=0 must be a whole number from 1 to 1715000"),
        ({"cases": 2_000_000}, "cases=2000000 must be"),
        ({"cases": 10.5}, "cases=10.5 must be"),
        ({"cases": True}, "cases=True must be"),
        ({"cases": "many"}, "cases=many must be"),
        ({"seed": -1}, "seed=-1 must be"),
        ({"device": "tpu"}, "device=tpu cannot be used"),
        ({"device": 99}, "device=99: PyTorch sees"),
        ({"task": "obb"}, "task=obb cannot be used here"),
        ({"cls_loss": "bce"}, "cls_loss=bce has no effect here"),
        ({"tal_topk": 3}, "tal_topk=3 has no effect here"),
        ({"batch": 3}, "batch=3 is unknown"),
        ({"loss": "siou", "focal_gamma": 0.3}, "focal_gamma=0.3 has no effect"),
    ],
)
def test_errors_name_the_key(tmp_path, keys, message):
    with pytest.raises(LossPlugError, match=message):
        simulate.main({"loss": "iou", "cases": 10, "project": str(tmp_path / "none"), **keys})
    assert not (tmp_path / "none").exists()


def test_results_are_the_same_on_every_device(sample, runs, device):
    found = experiment.simulate("ciou", create_box_loss("ciou"), sample, device=torch.device(device))
    assert torch.allclose(found.means, runs["ciou"].means, rtol=0.02)


@pytest.mark.parametrize("tool", ["curves", "simulate"])
def test_help_is_printed(tool, capsys):
    run_tool(tool, ["--help"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: lossplug {tool} ") and "Example: lossplug" in printed


def test_the_command_takes_cases_as_an_option(tmp_path):
    run_tool("simulate", ["loss=iou", "--cases", "7", f"project={tmp_path}", "name=found"])
    assert float(table_of(tmp_path / "found")[0]["total_error"]) > 0
    with pytest.raises(SystemExit, match="cases=0 must be"):
        run_tool("simulate", ["--cases", "0"])


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


class Watch:
    """A loss that notes the threads which operations may take inside, and may fail."""

    def __init__(self, state=None, fails=False):
        self.state, self.fails, self.seen = state, fails, set()

    def within(self, scope):
        return self

    def __call__(self, pred, target, stride, imgsz):
        self.seen.add(torch.get_num_threads())
        if self.fails:
            raise KeyboardInterrupt
        return (pred - target).square().sum(1)


@pytest.mark.parametrize("keys", [{}, {"chunk": 100}])
@pytest.mark.parametrize("state", [None, "one"])
def test_no_threads_inside_operations(sample, keys, state, four_threads):
    """They wait for each other, and beside busy processes for a time slice at each operation."""
    loss = Watch(state)
    experiment.simulate("watch", loss, sample, iterations=3, **keys)
    assert loss.seen == {1} and torch.get_num_threads() == 4


def test_an_interrupt_ends_all_chunks_and_restores_threads(sample, four_threads):
    ticks = []
    with pytest.raises(KeyboardInterrupt):
        experiment.simulate("watch", Watch(fails=True), sample, chunk=10, tick=ticks.append)
    assert torch.get_num_threads() == 4 and len(ticks) < len(sample) // 10

    def stop(count):
        ticks.append(count)
        if len(ticks) == 20:
            raise KeyboardInterrupt

    ticks.clear()
    with pytest.raises(KeyboardInterrupt):
        experiment.simulate("ciou", create_box_loss("ciou"), sample, iterations=10_000, chunk=300, tick=stop)
    assert len(ticks) < 400, "the other chunks ended too"


@pytest.mark.slow
def test_a_log_tells_the_progress_where_there_is_no_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate, "LOG_INTERVAL", 0.0)
    with Log() as log:
        command(tmp_path, loss="iou")
    shares = [line.rpartition(": ")[2] for line in log.lines if "iou: " in line]
    assert shares[0] == "0%" and shares[-1] == "100%" and len(shares) == 201
    monkeypatch.setattr(simulate, "LOG_INTERVAL", 60.0)
    with Log() as log:
        command(tmp_path, loss="iou")
    assert "iou: " not in log.text

# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the plots of a comparison show."""

import numpy as np
import pytest

from yolo_lossplug.tools.compare import plots as compare_plots
from yolo_lossplug.tools.compare.measures import Effect
from yolo_lossplug.tools.compare.plots import draw_curves, draw_forest
from yolo_lossplug.tools.compare.significance import BETTER, NOISE, WORSE

MAP, MAP50 = "metrics/mAP50-95(B)", "metrics/mAP50(B)"


def effect(arm, mean, low, high, verdict, seeds=5):
    return Effect(arm, MAP, mean, low, high, None if low is None else 0.95, seeds, verdict)


def history(epochs, top, offset=0.0):
    return [{MAP: top * (1 - np.exp(-epoch / 4)) + offset, MAP50: 0.0} for epoch in range(1, epochs + 1)]


def test_a_forest_shows_differences_intervals_and_decisions():
    effects = [effect("b", -0.02, -0.03, -0.01, WORSE), effect("c", 0.002, -0.01, 0.014, NOISE)]
    effects.append(effect("d", 0.012, 0.004, 0.02, BETTER))
    axis = draw_forest(effects, "a").axes[0]
    names, numbers = ([text.get_text() for text in axis.texts if text.get_ha() == side] for side in ("left", "right"))
    assert names == ["d", "c", "b"], "best first"
    assert [text.split("  ")[-1] for text in numbers] == [BETTER, NOISE, WORSE]
    assert numbers[2] == "−0.0200  (−0.0300 to −0.0100)  worse"
    assert axis.get_xlabel() == "difference of mAP50-95 from a, with intervals"
    lines = [list(line.get_xdata()) for line in axis.lines[1:]]
    assert lines == [[0.004, 0.02], [0.012], [-0.01, 0.014], [0.002], [-0.03, -0.01], [-0.02]]
    points = [line for line in axis.lines if len(line.get_xdata()) == 1]
    assert [point.get_marker() for point in points] == [">", "o", "<"]
    assert points[1].get_markerfacecolor() == "#ffffff" != points[0].get_markerfacecolor()
    low, high = axis.get_xlim()
    assert low < -0.03 and high > 0.02


def test_a_forest_shows_the_noise_floor_and_lacks_intervals():
    axis = draw_forest([effect("b", 0.002, -0.001, 0.005, NOISE)], "a", noise=0.03).axes[0]
    (band,) = axis.patches
    box = band.get_extents().transformed(axis.transData.inverted())
    assert (box.x0, box.x1) == pytest.approx((-0.03, 0.03))
    assert axis.get_xlim()[0] < -0.03 and axis.get_xlim()[1] > 0.03
    axis = draw_forest([effect("b", 0.0, None, None, NOISE, seeds=1)], "a").axes[0]
    assert axis.texts[1].get_text() == "+0.0000  1 seed: no interval"
    assert axis.get_xlim() == (-0.016, 0.016) and "interval" not in axis.get_xlabel()
    assert draw_forest([], "a") is None
    assert draw_forest([effect("b", None, None, None, NOISE)], "a") is None


def test_curves_show_differences_paired_by_seed():
    histories = {("a", 0): history(40, 0.5), ("b", 0): history(40, 0.51)}
    values, differences = draw_curves(histories, ["a", "b"]).axes
    low, high = values.get_ylim()
    assert low > 0.4 and 0.5 < high < 0.52
    epochs = np.arange(1, 41)
    assert differences.lines[1].get_ydata() == pytest.approx(0.01 * (1 - np.exp(-epochs / 4)))
    low, high = differences.get_ylim()
    assert high - low < 0.01
    # The first seed is 0.2 better for both, which makes the band of values wide and that of differences none.
    histories = {(arm, seed): history(8, 0.4, extra) for arm in "ab" for seed, extra in ((0, 0.2), (1, 0.0))}
    histories["b", 2] = history(8, 0.9)
    values, differences = draw_curves(histories, ["a", "b"]).axes
    band = values.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() - band.min() > 0.2
    assert differences.lines[1].get_ydata() == pytest.approx(np.zeros(8))
    assert np.ptp(differences.collections[0].get_paths()[0].vertices[:, 1]) == pytest.approx(0)


def test_runs_of_unlike_length_of_twelve_arms_and_those_that_learnt_nothing():
    nothing = {("a", 0): [{MAP: 0.0, MAP50: 0.0}], ("b", 0): []}
    assert draw_curves(nothing, ["a", "b"]) is None
    assert draw_curves({("a", 0): []}, ["a"]) is None
    titles = [axis.get_title(loc="left") for axis in draw_curves({("a", 0): history(3, 0.5)}, ["a"]).axes]
    assert titles == ["mAP50-95"], "no panel of what stayed 0, or alone"
    histories = {("a", 0): [], ("b", 0): history(5, 0.5), ("c", 0): history(3, 0.5), ("c", 1): history(4, 0.5)}
    (axis,) = draw_curves(histories, ["a", "b", "c"]).axes
    assert [(line.get_label(), len(line.get_xdata())) for line in axis.lines] == [("b", 5), ("c", 3)]
    assert compare_plots._less(np.arange(3.0), np.ones(2)).tolist() == [-1, 0]
    arms = [f"loss number {k}" for k in range(12)]
    figure = draw_curves({(arm, 0): history(9, 0.4 + 0.01 * k) for k, arm in enumerate(arms)}, arms)
    values, differences = figure.axes
    assert len({line.get_color() for line in values.lines}) == 12
    colours = {line.get_label(): line.get_color() for line in values.lines}
    assert all(line.get_color() == colours[line.get_label()] for line in differences.lines[1:])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == arms

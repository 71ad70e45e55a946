# SPDX-License-Identifier: AGPL-3.0-or-later
"""Verdicts on differences: seldom where there is none, and often where there is one."""

import math

import numpy as np
import pytest

from yolo_lossplug.tools import significance
from yolo_lossplug.tools.significance import BETTER, NOISE, WORSE, compare


def verdicts(mean, seeds, draws=400):
    rng = np.random.default_rng(seeds)
    return [compare(rng.normal(mean, 1.0, seeds)).verdict for _ in range(draws)]


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_noise_is_called_noise(seeds):
    found = verdicts(0.0, seeds)
    assert sum(verdict != NOISE for verdict in found) / len(found) < 0.08


def test_differences_are_found():
    assert verdicts(3.0, 5).count(BETTER) > 350 and verdicts(-3.0, 5).count(WORSE) > 350
    assert verdicts(1.0, 10).count(BETTER) > 300


def test_three_seeds_on_one_side_are_not_enough():
    """The bootstrap interval of three values of one sign excludes 0 always, by chance once in four times."""
    values = [0.001, 0.02, 0.003]
    found = compare(values)
    assert significance.bootstrap_interval(values)[0] > 0 and found.verdict == NOISE
    assert found.low < 0 < found.high and found.interval == "student", "the interval that decides is shown"
    assert compare([0.010, 0.011, 0.012]).verdict == BETTER


@pytest.mark.parametrize("mean", [-2.0, -0.5, 0.0, 0.5, 2.0])
@pytest.mark.parametrize("seeds", [3, 4, 12])
def test_the_interval_excludes_0_where_the_verdict_says_so_and_both_intervals_do(seeds, mean):
    rng = np.random.default_rng(seeds)
    for _ in range(60):
        values = rng.standard_exponential(seeds) - 1 + mean
        found = compare(values)
        both = significance.bootstrap_interval(values), significance.t_interval(values)
        verdict = BETTER if min(b[0] for b in both) > 0 else WORSE if max(b[1] for b in both) < 0 else NOISE
        shown = BETTER if found.low > 0 else WORSE if found.high < 0 else NOISE
        assert found.verdict == verdict == shown and (found.low, found.high) in both


def test_either_interval_may_decide():
    assert {compare(np.array([1.0, 1, 1, 1, 1, 1, 1, 1, 1, 1, x])).interval for x in (1.2, -9.0)} == {"student"}
    skewed = [-3.0, *[1.0] * 60]
    assert compare(skewed).interval == "bootstrap"


def test_one_and_two_seeds_have_no_verdict():
    assert compare([5.0]) == compare([4.0, 6.0]) == (5.0, None, None, None, NOISE)
    assert compare([5.0, 5.001]).verdict == NOISE


def test_no_difference():
    assert compare([0.0, 0.0, 0.0]) == (0.0, 0.0, 0.0, "student", NOISE)
    assert compare([0.1, 0.1, 0.1]).verdict == BETTER  # deterministic, and the same in every seed


def test_intervals():
    low, high = significance.t_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)))
    values = np.random.default_rng(0).normal(1.0, 2.0, 400)
    low, high = significance.bootstrap_interval(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert significance.bootstrap_interval([1.0, 2.0, 4.0]) == significance.bootstrap_interval([1.0, 2.0, 4.0])
    assert significance.t_interval(values)[1] - values.mean() == pytest.approx(half)


def test_mean_and_deviation():
    assert significance.mean_and_deviation([2.0]) == (2.0, None)
    assert significance.mean_and_deviation([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, math.sqrt(7 / 3)))

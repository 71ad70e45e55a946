# SPDX-License-Identifier: AGPL-3.0-or-later
"""Verdicts that may be looked at after every seed."""

from importlib import import_module

import numpy as np
import pytest

from tests.runs import ROOT
from yolo_lossplug.tools.compare.sequential import (
    PRELIMINARY,
    decide_looks,
    error_of_looks,
    holm_looks,
    is_hopeless,
    levels,
)
from yolo_lossplug.tools.compare.significance import BETTER, NO_VERDICT, NOISE, WORSE, decide, holm

CLEAR = [1.0, 1.1, 0.9, 1.05, 0.98]


@pytest.fixture
def looks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module("looks")


@pytest.mark.parametrize("n, level", [(3, 0.05), (4, 0.01), (12, 0.002)])
def test_one_look_errs_as_often_as_its_level_says(n, level):
    assert error_of_looks({n: level}) == pytest.approx(level, rel=1e-4)


@pytest.mark.parametrize("planned, total", [(4, 0.05), (10, 0.05), (10, 0.01), (25, 0.025)])
def test_all_looks_together_err_as_often_as_one(looks, planned, total):
    noise = np.random.default_rng(planned).standard_normal((100_000, planned))
    t, tested = looks.statistics(noise)[0], levels(planned, total)
    limits = [looks.t_quantile(1 - level / 2, n - 1) for n, level in tested.items()]
    error = 5 * (total / len(noise)) ** 0.5
    assert [*tested] == [*range(3, planned + 1)]
    assert (t[:, 2:] > limits).any(1).mean() == pytest.approx(total, abs=error)


def test_levels_of_ten_seeds():
    assert levels(10)[10] == pytest.approx(0.031, rel=0.01) and levels(10)[5] == pytest.approx(levels(10)[10] / 8)
    assert levels(3) == {3: pytest.approx(0.05)}, "a plan of three seeds is tested as it always was"
    smaller = levels(10, 0.025)
    assert all(smaller[n] < level for n, level in levels(10).items()), "or Holm's correction would not hold"


def test_a_verdict_stays_and_one_that_is_open_is_preliminary():
    noise = [0.1, -0.1, 0.05, -0.02]
    last = decide_looks(noise, 4)
    assert last.difference == decide(noise, 1 - levels(4)[4]) and last.seeds == 4 and not last.is_decided
    assert last.difference.verdict == NOISE and decide_looks(noise, 5).difference.verdict == PRELIMINARY
    first = decide_looks(CLEAR, 10)
    assert (first.difference.verdict, first.seeds) == (BETTER, 5) and first.difference.low > 0
    later = decide_looks([*CLEAR, -3.0, -3.0, -3.0], 10)
    assert later == first, "the numbers are those of the last look with the verdict"
    assert decide_looks([-value for value in CLEAR], 10).difference.verdict == WORSE
    assert decide_looks([*noise, 9.0], 4) == decide_looks(noise, 4), "more than planned does not count"
    assert {decide_looks([1.0, 1.0], planned).difference.verdict for planned in (1, 2, 3)} == {NO_VERDICT}


def test_holms_correction_is_for_all_planned_arms():
    pairs = {"a": CLEAR, "b": [0.3, -0.1, 0.2, 0.1, 0.15], "c": [0.1, -0.1, 0.05, -0.02, 0.1]}
    planned = holm_looks(pairs, 5, 3)
    assert {arm: look.difference.verdict for arm, look in planned.items()} == {"a": BETTER, "b": NOISE, "c": NOISE}
    assert 1 - planned["b"].difference.level == pytest.approx(levels(5, 0.025)[5]), (
        "the level for the two that are left"
    )
    more = holm_looks(pairs, 5, 5)
    assert 1 - more["b"].difference.level == pytest.approx(levels(5, 0.05 / 4)[5]), "two more may come"
    three = {arm: values[:3] for arm, values in pairs.items()}
    for arm, found in holm(three).items():
        assert holm_looks(three, 3, 3)[arm].difference.level == pytest.approx(found.level, rel=1e-6), (
            "one look is Holm's of all"
        )


def test_an_arm_is_hopeless_where_a_useful_difference_is_excluded():
    assert not is_hopeless([-1.0, -1.1]) and not is_hopeless(CLEAR)
    assert is_hopeless([-1.0, -1.1, -0.9])
    nothing = [0.01, -0.01] * 5
    assert is_hopeless(nothing) and not is_hopeless(nothing, margin=0.001) and is_hopeless(nothing, margin=0.01)


def test_the_simulation_decides_as_the_command_does(looks):
    values = np.array([[0.0], [1.5], [3.0]]) + looks.paired(np.random.default_rng(2).standard_normal, 60, 3, 6)
    at = looks.first_look(values, None)
    for arms, seeds in zip(values, at):
        for n in range(3, 7):
            found = holm_looks(dict(enumerate(arms[:, :n])), 6, 3)
            assert [found[i].is_decided for i in range(3)] == [*(seeds <= n)]
    ends = looks.statistics(values)[1]
    expected = [[is_hopeless(arm) for arm in arms] for arms in values]
    assert np.array_equal(ends[..., -1] < 1, expected) and np.any(expected) and not np.all(expected)
    one = looks.is_shown(values[:, 1:2], (6,), naive=True)[:, 0]
    assert [*one] == [decide(arms[1]).verdict != NOISE for arms in values]

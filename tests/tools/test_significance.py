# SPDX-License-Identifier: AGPL-3.0-or-later
"""Verdicts on differences: seldom where there is none, and often where there is one."""

import numpy as np
import pytest
from scipy import stats

from yolo_lossplug.tools.compare import significance
from yolo_lossplug.tools.compare.significance import BETTER, NO_VERDICT, NOISE, WORSE, decide


def verdicts(mean, seeds, draws=400):
    rng = np.random.default_rng(seeds)
    return [decide(rng.normal(mean, 1.0, seeds)).verdict for _ in range(draws)]


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_noise_is_called_noise(seeds):
    found = verdicts(0.0, seeds)
    assert sum(verdict != NOISE for verdict in found) / len(found) < 0.08


def test_differences_are_found_and_few_seeds_have_no_verdict():
    assert verdicts(3.0, 5).count(BETTER) > 350 and verdicts(-3.0, 5).count(WORSE) > 350
    assert verdicts(1.0, 10).count(BETTER) > 300
    found = decide([0.001, 0.02, 0.003])
    assert found.verdict == NOISE and found.low < 0 < found.high
    assert decide([0.010, 0.011, 0.012]).verdict == BETTER
    assert decide([5.0]) == decide([4.0, 6.0]) == (5.0, None, None, NO_VERDICT, None)
    assert decide([5.0, 5.001]).verdict == NO_VERDICT
    assert decide([0.0, 0.0, 0.0]) == (0.0, 0.0, 0.0, NOISE, 0.95)
    assert decide([0.1, 0.1, 0.1]).verdict == BETTER  # deterministic, and the same in every seed
    assert significance.mean_and_deviation([2.0]) == (2.0, None)
    assert significance.mean_and_deviation([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, (7 / 3) ** 0.5))


@pytest.mark.parametrize("mean", [-2.0, -0.5, 0.0, 0.5, 2.0])
@pytest.mark.parametrize("seeds", [3, 4, 12])
def test_the_interval_excludes_0_where_the_verdict_says_so(seeds, mean):
    rng = np.random.default_rng(seeds)
    for _ in range(60):
        values = rng.standard_exponential(seeds) - 1 + mean
        found = decide(values)
        assert found.verdict == (BETTER if found.low > 0 else WORSE if found.high < 0 else NOISE)
        assert (found.low, found.high) == significance.t_interval(values)


@pytest.mark.parametrize("seeds", [2, 3, 4, 10, 31, 400])
@pytest.mark.parametrize("level", [0.95, 0.975, 0.995])
def test_students_interval_is_scipys(seeds, level):
    values = np.random.default_rng(seeds).normal(1.0, 2.0, seeds)
    expected = stats.t.interval(level, seeds - 1, values.mean(), stats.sem(values))
    assert significance.t_interval(values, level) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("freedom", [1, 2, 3, 9, 100, 999])
def test_students_distribution_is_scipys(freedom):
    for t in (0.0, 0.3, 1.0, 2.5, 10.0):
        assert significance.t_cdf(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), rel=1e-10)
    for probability in (0.6, 0.975, 0.9999):
        expected = stats.t.ppf(probability, freedom)
        assert significance.t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-9)


def scipys_power(effect, seeds, level):
    critical, shift = stats.t.ppf((1 + level) / 2, seeds - 1), effect * seeds**0.5
    lower = stats.nct.sf(critical, seeds - 1, -shift)  # NaN where it is less than 1e-20
    return stats.nct.sf(critical, seeds - 1, shift) + np.nan_to_num(lower)


@pytest.mark.parametrize("seeds", [2, 3, 5, 30, 300])
def test_power_is_that_of_scipys_noncentral_t(seeds):
    assert significance.statistical_power(5.0, 300) == 1.0
    for effect in (0.05, 0.3, 1.0, *((2.0, 5.0) if seeds < 30 else ())):
        for level in (0.95, 0.99):
            assert significance.statistical_power(effect, seeds, level) == pytest.approx(
                scipys_power(effect, seeds, level), abs=1e-6
            )
    smallest = significance.smallest_shown(2.0, seeds, 0.975)
    assert scipys_power(smallest / 2.0, seeds, 0.975) == pytest.approx(0.8, abs=1e-5)


@pytest.mark.parametrize("effect", [0.12, 0.3, 0.7, 1.5, 4.0])
def test_the_number_of_seeds_is_the_first_with_the_power(effect):
    needed = significance.seeds_needed(effect * 3, 3.0, 0.975)
    assert scipys_power(effect, needed, 0.975) >= 0.8
    assert needed == 3 or scipys_power(effect, needed - 1, 0.975) < 0.8
    assert significance.seeds_needed(-effect * 3, 3.0, 0.975) == needed


def test_seeds_that_cannot_be_told():
    assert significance.seeds_needed(0.0, 1.0) is None and significance.seeds_needed(0.0, 0.0) is None
    assert significance.seeds_needed(0.0809, 1.0) is None, "1202 are more than 1000"
    assert significance.seeds_needed(0.0895, 1.0) == 982
    assert significance.seeds_needed(0.1, 0.0) == 3


def problems(draw, losses=5, seeds=5):
    rng = np.random.default_rng(draw)
    return {str(i): rng.normal(rng.choice([0.0, 1.5, 3.0]), 1.0, seeds) for i in range(losses)}


def holms(values):
    """Return which of several losses Holm's procedure decides, by SciPy's p-values of the paired t test."""
    p = {name: stats.ttest_1samp(one, 0).pvalue for name, one in values.items()}
    decided = set()
    for i, name in enumerate(sorted(p, key=p.get)):
        if p[name] > 0.05 / (len(p) - i):
            break
        decided.add(name)
    return decided


def test_holms_procedure_is_that_of_p_values_and_intervals_agree():
    counts = []
    for draw in range(120):
        values = problems(draw)
        found = significance.holm(values)
        assert list(found) == list(values)
        assert {name for name, one in found.items() if one.verdict != NOISE} == holms(values)
        counts.append(len(holms(values)))
    assert {0, 1, 2, 3} <= {*counts}
    for draw in range(120):
        found = significance.holm(problems(draw, seeds=3 + draw % 4)).values()
        for one in found:
            assert one.verdict == (BETTER if one.low > 0 else WORSE if one.high < 0 else NOISE)
            assert 0.95 <= one.level <= 0.99
        undecided = {one.level for one in found if one.verdict == NOISE}
        assert len(undecided) < 2, "all that are not decided were tried last at one level"


def test_holm_of_one_loss_is_no_correction_and_one_of_many_needs_more():
    values = [0.010, 0.012, 0.017]
    assert significance.holm({"a": values}) == {"a": decide(values)}
    few = significance.holm({"a": values, "b": [1.0, 2.0]})
    assert few["a"] == decide(values) and few["b"].level is None and significance.holm({}) == {}
    # A difference that is one of one is none of ten.
    one = [0.010, 0.012, 0.017]
    noise = {str(i): [-0.01, 0.0, 0.01 * (i + 1)] for i in range(9)}
    assert decide(one).verdict == BETTER and significance.holm({"a": one, **noise})["a"].verdict == NOISE

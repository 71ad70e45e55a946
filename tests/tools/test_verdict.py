# SPDX-License-Identifier: AGPL-3.0-or-later
"""Effects on the primary metric and on others, and names of metrics."""

import numpy as np
import pytest

from yolo_lossplug import LossPlugError
from yolo_lossplug.tools.compare import measures
from yolo_lossplug.tools.compare.comparison import Comparison
from yolo_lossplug.tools.compare.significance import BETTER, NOISE, decide, holm

MAIN = "metrics/mAP50-95(B)"


def result(value, small=None, test=None):
    metrics = {"metrics/mAP50(B)": value + 0.2, MAIN: value}
    sizes = {} if small is None else {"average_precision": {"AP_small": small, "AP_dog": None}}
    tested = {} if test is None else {"test": {"metrics": {MAIN: test}, "average_precision": {"AP_small": test / 2}}}
    return {"metrics": metrics, "losses": {"val/box_loss": 1.0}, "seconds": 2.0, "save_dir": "x", **sizes, **tested}


def random_results(seed=0, arms=("a", "b", "c", "d"), seeds=4):
    rng = np.random.default_rng(seed)
    return {(arm, i): result(0.3 + 0.02 * k + rng.normal(0, 0.01)) for k, arm in enumerate(arms) for i in range(seeds)}


def test_the_primary_metric_is_corrected_and_others_are_not():
    compared = Comparison("abcd", random_results(), MAIN)
    pairs = {arm: compared.differences(arm, MAIN) for arm in "bcd"}
    primary = compared.effects
    assert [(e.arm, e.mean, e.low, e.high, e.verdict, e.level) for e in primary] == [
        (arm, *difference) for arm, difference in holm(pairs).items()
    ]
    assert all(effect.seeds == 4 and effect.metric == MAIN for effect in primary)
    other = compared.effects_of(MAIN)
    assert [(e.low, e.high, e.level, e.verdict) for e in other] == [
        (decide(values).low, decide(values).high, 0.95, "") for values in pairs.values()
    ]
    verdicts = set()
    for seed in range(25):
        for effect in Comparison("abcd", random_results(seed), MAIN).effects:
            assert (effect.verdict == NOISE) == (effect.low <= 0 <= effect.high)
            verdicts.add(effect.verdict)
    assert verdicts == {BETTER, NOISE}


def test_effects_noise_floor_and_power_on_common_seeds():
    results = {
        **{("a", 0): result(0.1, 0.05), ("a", 1): result(0.2), ("b", 1): result(0.5, 0.4), ("b", 0): result(0.3, 0.1)},
    }
    compared = Comparison("ab", results, MAIN)
    (effect,) = compared.effects_of("AP_small")
    assert effect.seeds == 1 and effect.mean == pytest.approx(0.05) and effect.low is effect.level is None
    (none,) = compared.effects_of("AP_dog")
    assert none.mean is None and none.seeds == 0 and none.verdict == ""
    results = {**{("a", i): result(0.1 + 0.01 * i) for i in range(3)}, **{("b", i): result(0.12) for i in range(3)}}
    compared = Comparison("ab", results, MAIN)
    assert compared.noise_floor.deviation == pytest.approx(0.01)
    assert Comparison("ca", results, MAIN).noise_floor is None
    (effect,) = compared.effects
    assert effect.smallest == pytest.approx(0.0326404, rel=1e-4)
    assert effect.mean == pytest.approx(0.01) and effect.needed == 10


def test_names_of_metrics():
    names = measures.metrics_of({("a", 0): result(0.1, 0.2, 0.3)})
    assert names == [MAIN, "metrics/mAP50(B)", "AP_small", "AP_dog", "test/mAP50-95(B)", "test/AP_small"]
    for short, full in (
        *(("mAP50-95", MAIN), (MAIN, MAIN), ("AP_small", "AP_small"), ("test/mAP50-95", "test/mAP50-95(B)")),
        ("test/AP_small", "test/AP_small"),
    ):
        assert measures.resolve_metric(short, names) == full
    with pytest.raises(LossPlugError, match=r"metric=mAP60 was not measured .* Known: mAP50-95, mAP50, AP_small"):
        measures.resolve_metric("mAP60", names)

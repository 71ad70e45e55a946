# SPDX-License-Identifier: AGPL-3.0-or-later
"""Samples of the range of an option, which tests of losses take their values from."""

import pytest

from yolo_lossplug import Option
from yolo_lossplug.registry import Parameter

RANGES = [
    *({}, {"at_least": 0}, {"above": 1}, {"at_most": -3}, {"below": 2}, {"at_least": 0, "at_most": 1}),
    *({"above": 0.5, "below": 1}, {"at_least": -1, "below": 20}),
]


@pytest.mark.parametrize("bounds", RANGES, ids=str)
def test_samples_rise_over_the_range_and_reach_its_ends(bounds):
    option = Option("", **bounds)
    samples = option.samples()
    assert len(samples) == 5 and list(samples) == sorted(set(samples)) and all(map(option.contains, samples))
    low, high = option.above or option.at_least, option.below or option.at_most
    length = high - low if None not in (low, high) else 1.0
    assert samples[0] < -900 if low is None else samples[0] == pytest.approx(low, abs=2e-3 * length)
    assert samples[-1] > 900 if high is None else samples[-1] == pytest.approx(high, abs=2e-3 * length)
    assert option.at_least is None or samples[0] == option.at_least
    assert option.at_most is None or samples[-1] == option.at_most


def sampled(kind, is_nullable=False, **bounds):
    return Parameter("key", kind, is_nullable, 1, Option("", **bounds)).samples()


def test_samples_have_the_type_of_the_option():
    assert sampled(int, at_least=1) == (1, 2, 10, 1024) and all(type(x) is int for x in sampled(int, at_least=1))
    assert sampled(int, above=0, below=4) == (2,)
    assert sampled(float, True, at_least=0, at_most=1) == (0.0, 0.1, 0.5, 0.9, 1.0, None)

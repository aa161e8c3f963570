"""Intervals over seeds: the quantile against tables, and what every mean and difference must satisfy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.reporting.statistics import Estimate, estimate, paired_difference, student_quantile

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8)


@pytest.mark.parametrize(
    ("freedom", "level", "expected"),
    [
        (1, 0.95, 12.7062047),
        (2, 0.95, 4.30265273),
        (3, 0.95, 3.18244631),
        (4, 0.95, 2.77644511),
        (9, 0.95, 2.26215716),
        (10, 0.95, 2.22813885),
        (30, 0.95, 2.04227246),
        (1000, 0.95, 1.96233908),
        (5, 0.99, 4.03214298),
        (4, 0.50, 0.74069708),
    ],
)
def test_the_quantile_is_that_of_the_tables(freedom, level, expected):
    assert student_quantile(freedom, level) == pytest.approx(expected, rel=1e-8)


@given(st.integers(1, 200), st.floats(0.01, 0.999))
def test_the_quantile_is_that_of_the_incomplete_beta_function(freedom, level):
    from scipy.special import betainc

    t = student_quantile(freedom, level)
    assert 1 - betainc(freedom / 2, 0.5, freedom / (freedom + t * t)) == pytest.approx(level, abs=1e-9)


@given(VALUES, st.floats(-100, 100), st.floats(0.1, 10))
def test_an_interval_moves_and_scales_with_its_values(values, shift, scale):
    found, moved = estimate(values), estimate([scale * value + shift for value in values])
    assert found.low <= found.mean <= found.high
    assert moved.mean == pytest.approx(scale * found.mean + shift, abs=1e-6)
    assert moved.half == pytest.approx(scale * found.half, abs=1e-6)
    assert found.half == pytest.approx(
        student_quantile(len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)), abs=1e-6
    )


def test_intervals_hold_the_mean_as_often_as_they_say():
    drawn = np.random.default_rng(0).normal(2.0, 3.0, (4000, 3))
    held = [estimate(row.tolist()) for row in drawn]
    assert np.mean([each.low <= 2.0 <= each.high for each in held]) == pytest.approx(0.95, abs=0.01)


def test_one_value_has_no_interval_and_none_no_mean():
    assert estimate([]) is None
    assert estimate([3.0]) == Estimate(3.0, None, 1)
    assert estimate([3.0]).low is None
    assert estimate([3.0]).sign == 0
    assert estimate([math.inf, 1.0]).half == math.inf


@given(st.dictionaries(st.integers(0, 5), st.floats(-10, 10)), st.dictionaries(st.integers(0, 5), st.floats(-10, 10)))
def test_differences_are_over_the_seeds_that_both_have(mine, theirs):
    found, back = paired_difference(mine, theirs), paired_difference(theirs, mine)
    shared = mine.keys() & theirs.keys()
    if not shared:
        assert found is None
        assert back is None
        return
    assert found.count == len(shared)
    assert found.mean == pytest.approx(-back.mean)
    assert found.sign == -back.sign


def test_a_difference_is_judged_by_its_whole_interval():
    noisy, steady = {0: 1.0, 1: 5.0, 2: 3.0}, {0: 0.0, 1: 4.0, 2: 2.01}
    # The seeds differ far more than the methods do, and pairs tell the methods apart all the same.
    assert paired_difference(noisy, steady).sign == 1
    assert paired_difference(steady, noisy).sign == -1
    assert paired_difference(noisy, {0: 5.0, 1: 1.0, 2: 3.0}).sign == 0

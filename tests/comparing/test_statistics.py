"""Intervals over seeds: the quantile against tables, and what every mean and difference must satisfy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.comparing.statistics import (
    ANYWHERE,
    POSITIVE,
    SHARE,
    Bounds,
    Estimate,
    estimate,
    paired_difference,
    student_quantile,
)

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
def test_an_interval_without_bounds_moves_and_scales_with_its_values(values, shift, scale):
    found, moved = estimate(values), estimate([scale * value + shift for value in values])
    assert moved.mean == pytest.approx(scale * found.mean + shift, abs=1e-6)
    if found.interval is None or moved.interval is None:
        assert np.std(values) == pytest.approx(0, abs=1e-6)
        return
    assert found.low <= found.mean <= found.high
    half = student_quantile(len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    assert found.interval == pytest.approx((found.mean - half, found.mean + half), abs=1e-6)
    assert moved.interval == pytest.approx([scale * end + shift for end in found.interval], abs=1e-6)


@given(st.sampled_from([POSITIVE, SHARE, Bounds(-1.0, 1.0)]), st.data())
def test_an_interval_lies_around_the_mean_where_the_quantity_can_be(bounds, data):
    top = min(bounds.high, 1e12)
    values = data.draw(st.lists(st.floats(bounds.low, top), min_size=1, max_size=8))
    found = estimate(values, bounds)
    if len(set(values)) == 1:
        assert found.interval is None
    if found.interval is not None:
        # Near a bound the other end of a share is known to one bit of the bound.
        bit = 0 if bounds == POSITIVE else 1e-15
        assert bounds.low <= found.low <= found.mean * (1 + 1e-12) + bit
        assert found.mean <= found.high * (1 + 1e-12) + bit
        assert found.high <= bounds.high


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_the_difference_of_two_shares_is_none_beyond_one(mine, theirs):
    found = paired_difference(dict(enumerate(mine)), dict(enumerate(theirs)), SHARE)
    assert found.interval is None or -1 <= found.low <= found.high <= 1


def test_intervals_with_bounds_are_those_of_the_scale_without_them():
    t = student_quantile(1)
    found = estimate([20.0, 60.0], POSITIVE)
    assert found.interval == pytest.approx((40 * math.exp(-t * 20 / 40), 40 * math.exp(t * 20 / 40)))
    # Student's own would begin at 40 - 254 seconds.
    assert estimate([20.0, 60.0], ANYWHERE).low < 0 < found.low
    share = estimate([0.01, 0.09], SHARE)
    ends = [math.log(0.05 / 0.95) + side * t * 0.04 / (0.05 * 0.95) for side in (-1, 1)]
    assert share.interval == pytest.approx([1 / (1 + math.exp(-end)) for end in ends])


def test_seeds_that_all_give_the_same_make_no_interval_and_exclude_nothing():
    same = paired_difference({0: 0.35, 1: 0.25}, {0: 0.2, 1: 0.1}, SHARE)
    # 0.35 - 0.2 and 0.25 - 0.1 differ in their last bit.
    assert same.mean == pytest.approx(0.15)
    assert (same.interval, same.sign, same.count) == (None, 0, 2)
    assert estimate([7.0, 7.0, 7.0], POSITIVE) == Estimate(7.0, None, None, 3)


def test_intervals_hold_the_mean_as_often_as_they_say():
    drawn = np.random.default_rng(0).normal(2.0, 3.0, (4000, 3))
    held = [estimate(row.tolist()) for row in drawn]
    assert np.mean([each.low <= 2.0 <= each.high for each in held]) == pytest.approx(0.95, abs=0.01)


def test_one_value_has_no_interval_and_none_no_mean():
    assert estimate([]) is None
    assert estimate([3.0]) == Estimate(3.0, None, None, 1)
    assert estimate([3.0]).low is None
    assert estimate([3.0]).sign == 0
    assert estimate([math.inf, 1.0]).interval == (-math.inf, math.inf)
    assert estimate([math.inf, 1.0], POSITIVE).interval == (0.0, math.inf)


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

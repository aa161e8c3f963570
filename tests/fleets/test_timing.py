"""Simulated seconds: exact by hand, monotone in every rate and amount, and never a division by zero."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.fleets.presence import Presence
from devft_jax.fleets.profile import Fleet
from devft_jax.fleets.timing import Load, Times, seconds_for

amounts = st.floats(0, 1e15)


def a_fleet(flops, down, up, **changes):
    count = len(flops)
    figures = {
        "tiers": ("some",),
        "tier": np.zeros(count, np.int64),
        "flops_per_second": np.asarray(flops, float),
        "memory": np.full(count, 1e9),
        "down": np.asarray(down, float),
        "up": np.asarray(up, float),
        "failure": np.zeros(count),
        "presence": Presence.daily(np.zeros(count), np.full(count, 24.0)),
    }
    return Fleet(**{**figures, **changes})


def test_seconds_are_amounts_over_rates():
    fleet = a_fleet([10.0, 20.0], [5.0, 50.0], [1.0, 2.0])
    load = Load(np.array([10.0, 10.0]), np.array([[20.0, 40.0], [20.0, 40.0]]), np.array([3.0, 3.0]))
    times = Times.of(fleet, np.array([1, 0]), load)
    assert times.download.tolist() == [0.2, 2.0]
    assert times.steps.tolist() == [[1.0, 2.0], [2.0, 4.0]]
    assert times.total().tolist() == [0.2 + 3.0 + 1.5, 2.0 + 6.0 + 3.0]
    assert times.total(np.array([1, 0])).tolist() == [0.2 + 1.0 + 1.5, 5.0]


@settings(max_examples=80, deadline=None)
@given(amount=amounts, rate=amounts, more=st.floats(1, 100))
def test_seconds_fall_with_the_rate_and_rise_with_the_amount(amount, rate, more):
    with np.errstate(all="raise"):
        [seconds] = seconds_for(np.array([amount]), np.array([rate]))
    assert seconds >= 0
    assert not np.isnan(seconds)
    assert seconds_for(np.array([amount]), np.array([rate * more])) <= seconds
    assert seconds_for(np.array([amount * more]), np.array([rate])) >= seconds


def test_nothing_takes_no_time_and_no_rate_takes_for_ever():
    assert seconds_for(np.array([0.0, 1.0]), np.zeros(2)).tolist() == [0.0, np.inf]


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.floats(0.0, 10.0), min_size=1, max_size=6),
    beside=st.floats(0, 5),
    deadline=st.floats(0, 40),
)
def test_partial_work_is_the_most_that_arrives_in_time(steps, beside, deadline):
    times = Times(np.array([beside]), np.array([steps]), np.array([beside / 2]))
    [taken] = times.steps_within(deadline)
    assert 0 <= taken <= len(steps)
    slack = 1e-9
    if taken:
        assert times.total(np.array([taken]))[0] <= deadline + slack
    if taken < len(steps):
        assert times.total(np.array([taken + 1]))[0] > deadline - slack

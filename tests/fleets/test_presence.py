"""Presence against a plain loop over intervals."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.fleets.presence import DAY, HOUR, SLACK, Presence

TWO = Presence.of([[(10.0, 20.0), (30.0, 50.0)], [(0.0, 5.0), (40.0, 60.0)], []], [100.0, 60.0, 80.0])
ALL = np.arange(3)


def by_hand(presence, client, time):
    """Whether a client is present, by looking at its intervals."""
    part = slice(int(presence.offsets[client]), int(presence.offsets[client + 1]))
    within = time % presence.period[client]
    return any(start <= within < end for start, end in zip(presence.starts[part], presence.ends[part], strict=True))


@pytest.mark.parametrize("time", [0.0, 5.0, 9.999, 10.0, 19.0, 20.0, 45.0, 59.0, 60.0, 99.0, 100.0, 110.0, 664.0])
def test_presence_is_that_of_the_intervals(time):
    assert TWO.present(time, ALL).tolist() == [by_hand(TWO, client, time) for client in range(3)]


def test_clients_leave_at_the_end_of_their_interval():
    assert TWO.leaves(12.0, ALL).tolist() == [20.0, 12.0, 12.0]
    assert TWO.leaves(112.0, ALL)[0] == 120.0


def test_an_interval_goes_on_over_the_end_of_a_period():
    assert TWO.leaves(50.0, ALL)[1] == 65.0
    assert TWO.leaves(110.0, ALL)[1] == 125.0


def test_a_client_without_hours_never_leaves():
    always = Presence.daily(np.zeros(2), np.array([24.0, 8.0]))
    assert always.leaves(3 * DAY + 5, np.arange(2)).tolist() == [math.inf, 3 * DAY + 8 * HOUR]


def test_a_night_is_one_stay():
    night = Presence.daily(np.array([22.0]), np.array([8.0]))
    client = np.zeros(1, np.int64)
    assert night.present(23 * HOUR, client).all()
    assert night.present(DAY + 5 * HOUR, client).all()
    assert not night.present(7 * HOUR, client).any()
    assert night.leaves(23 * HOUR, client) == DAY + 6 * HOUR


def test_a_round_waits_for_enough_clients():
    assert TWO.first_time(42.0, ALL, 2) == 42.0
    assert TWO.first_time(20.0, ALL, 2) == 40.0 + SLACK
    assert TWO.first_time(20.0, ALL, 3) == 40.0 + SLACK, "never three at once: as many as ever"
    assert TWO.first_time(0.0, np.array([2]), 1) is None
    assert Presence.of([[]], [5.0]).first_time(0.0, np.zeros(1, np.int64), 1) is None


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.lists(st.integers(0, 40), max_size=6, unique=True), min_size=1, max_size=4),
    time=st.integers(0, 300),
    wanted=st.integers(1, 4),
)
def test_the_first_time_is_the_earliest(cuts, time, wanted):
    intervals = [
        [(float(a), float(b)) for a, b in zip(sorted(each)[::2], sorted(each)[1::2], strict=False)] for each in cuts
    ]
    periods = [41.0 + client for client in range(len(cuts))]
    presence, clients = Presence.of(intervals, periods), np.arange(len(cuts))
    counts = {when: int(presence.present(float(when), clients).sum()) for when in range(time, time + 100)}
    found = presence.first_time(float(time), clients, wanted)
    enough = [when for when, count in counts.items() if count >= wanted]
    if enough:
        assert found in (enough[0], enough[0] + SLACK)
    elif found is not None:
        assert presence.present(found, clients).sum() >= max(counts.values())
    else:
        assert not any(counts.values())


def test_the_order_of_the_clients_changes_nothing():
    order = np.array([2, 0, 1])
    assert TWO.take(order).present(45.0, ALL).tolist() == TWO.present(45.0, ALL)[order].tolist()

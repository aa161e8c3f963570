"""A server with a buffer in simulated time: who is at work, which state each began from, when the server steps."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.errors import RunError
from devft_jax.fleets.buffered import BufferedSimulation, Course, discount
from devft_jax.fleets.presence import Presence
from devft_jax.fleets.timing import Load
from tests.fleets.test_timing import a_fleet

IDS = np.array([901, 17, 44, 3, 620, 78], np.uint32)


def fleet_of(seconds, **changes):
    """Clients that need these seconds for their only step."""
    count = len(seconds)
    return a_fleet(1.0 / np.asarray(seconds, float), np.ones(count), np.ones(count), **changes)


def load(clients):
    count = len(clients)
    return Load(np.zeros(count), np.ones((count, 1)), np.zeros(count))


def steps_of(simulation, number):
    course, clock, found = Course(), 0.0, []
    for version in range(number):
        done, buffer = simulation.step(course, version, clock, 10, load)
        clock = done.clock
        found.append((done, buffer))
    return found, course


def test_fast_clients_come_again_while_a_slow_one_works():
    simulation = BufferedSimulation(fleet_of([1, 1, 5.5]), IDS[:3], 0, size=1, concurrency=3)
    found, course = steps_of(simulation, 12)
    arrivals = [(buffer[0].client, version - buffer[0].version) for version, (_, buffer) in enumerate(found)]
    assert [client for client, _ in arrivals].count(2) == 1
    [(place, staleness)] = [(place, each[1]) for place, each in enumerate(arrivals) if each[0] == 2]
    assert staleness == place, "the slow client began from the first state"
    assert found[place][0].clock == pytest.approx(5.5)
    assert {flight.client for flight in course.flights} <= {0, 1, 2}


def test_the_first_step_has_only_changes_of_the_first_state():
    done, buffer = BufferedSimulation(fleet_of([2.0] * 6), IDS, 0, 3, 3).step(Course(), 0, 0.0, 10, load)
    assert [flight.version for flight in buffer] == [0] * 3
    assert done.clock == 2.0
    assert done.client_seconds.tolist() == [2.0] * 3


@settings(max_examples=30, deadline=None)
@given(
    seconds=st.lists(st.integers(1, 9), min_size=6, max_size=6),
    size=st.integers(1, 4),
    concurrency=st.integers(1, 8),
    failure=st.sampled_from([0.0, 0.4]),
)
def test_a_client_is_at_work_once_and_every_step_has_its_changes(seconds, size, concurrency, failure):
    fleet = fleet_of(seconds, failure=np.full(6, failure))
    simulation = BufferedSimulation(fleet, IDS, 1, size, concurrency)
    found, course = steps_of(simulation, 6)
    before = 0.0
    for version, (done, buffer) in enumerate(found):
        assert len(buffer) == size == len({flight.client for flight in buffer})
        assert all(0 <= flight.version <= version and flight.fate == "finished" for flight in buffer)
        assert [flight.version for flight in buffer] == sorted(flight.version for flight in buffer)
        assert done.began == before <= done.clock
        assert max(flight.ends for flight in buffer) <= done.clock
        before = done.clock
    assert len(course.flights) <= concurrency
    assert len({flight.client for flight in course.flights}) == len(course.flights)
    begun = sum(len(done.selected) for done, _ in found)
    ended = sum(len(buffer) + len(done.failed) + len(done.left) for done, buffer in found)
    assert begun == course.begun == ended + len(course.flights)


def test_the_order_of_the_clients_changes_nothing():
    order = np.array([3, 1, 5, 0, 2, 4])
    fleet = fleet_of([1, 2, 3, 4, 5, 6], failure=np.full(6, 0.3))
    own, other = (
        steps_of(BufferedSimulation(each, ids, 3, 2, 4), 5)[0]
        for each, ids in ((fleet, IDS), (fleet.take(order), IDS[order]))
    )
    for (done, buffer), (again, buffer_again) in zip(own, other, strict=True):
        assert done.clock == again.clock
        assert {IDS[each.client] for each in buffer} == {IDS[order][each.client] for each in buffer_again}


def test_it_waits_for_clients_and_gives_up_a_fleet_that_always_fails():
    presence = Presence.of([[(100.0, 200.0)]] * 6, [1000.0] * 6)
    done, _ = BufferedSimulation(fleet_of([1.0] * 6, presence=presence), IDS, 0, 2, 2).step(Course(), 0, 0.0, 10, load)
    assert done.waited == pytest.approx(100, abs=0.1)
    assert done.clock == pytest.approx(101, abs=0.1)
    hopeless = replace(fleet_of([1.0] * 6), failure=np.ones(6))
    with pytest.raises(RunError, match="round 1: 1,000 clients failed or left, and fewer than 1 finished"):
        BufferedSimulation(hopeless, IDS, 0, 1, 2).step(Course(), 0, 0.0, 10, load)
    with pytest.raises(RunError, match="needs 50 GB of a client and no client of the fleet has as much"):
        BufferedSimulation(hopeless, IDS, 0, 1, 2).step(Course(), 0, 0.0, 5 * 10**10, load)


def test_old_changes_count_less():
    assert discount(np.array([0, 3]), 0.5).tolist() == [1.0, 0.5]
    assert discount(np.array([0, 3]), 0.0).tolist() == [1.0, 1.0]

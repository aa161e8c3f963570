"""A round of a fleet: who finishes, who is lost, when it closes."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.errors import RunError
from devft_jax.federated.sampling import sample_cohort
from devft_jax.fleets.drawn import drawn_fleet
from devft_jax.fleets.presence import Presence
from devft_jax.fleets.simulation import Rules, Simulation, outcome_of
from devft_jax.fleets.timing import Load, Times
from tests.fleets.test_timing import a_fleet

NEVER = np.full(4, np.inf)
# Ends after 4, 8, 12 and 16 seconds; a second down, a second up, two equal steps between.
FOUR = Times(np.ones(4), np.array([[1.0, 1.0], [3.0, 3.0], [5.0, 5.0], [7.0, 7.0]]), np.ones(4))


def played(rules, fails=NEVER, leaves=NEVER):
    return outcome_of(FOUR, rules, fails_after=np.asarray(fails, float), leaves_after=np.asarray(leaves, float))


def lists(outcome):
    names = ("finished", "failed", "left", "late", "surplus")
    return {name: np.flatnonzero(getattr(outcome, name)).tolist() for name in names if getattr(outcome, name).any()}


def test_without_a_deadline_the_server_waits_for_all():
    outcome = played(Rules(4))
    assert lists(outcome) == {"finished": [0, 1, 2, 3]}
    assert outcome.seconds == 16
    assert outcome.ends.tolist() == [4, 8, 12, 16]


def test_the_round_closes_when_enough_have_finished():
    outcome = played(Rules(2, over_selection=2))
    assert lists(outcome) == {"finished": [0, 1], "surplus": [2, 3]}
    assert outcome.seconds == 8


def test_clients_are_late_at_the_deadline():
    outcome = played(Rules(4, deadline=10))
    assert lists(outcome) == {"finished": [0, 1], "late": [2, 3]}
    assert outcome.seconds == 10


def test_late_clients_take_the_steps_that_fit():
    outcome = played(Rules(4, deadline=10, partial=True))
    assert outcome.steps.tolist() == [2, 2, 1, 1]
    assert outcome.ends.tolist() == [4, 8, 7, 9]
    assert lists(outcome) == {"finished": [0, 1, 2, 3]}
    assert outcome.seconds == 9
    outcome = played(Rules(4, deadline=8, partial=True))
    assert outcome.steps.tolist() == [2, 2, 1, 0]
    assert lists(outcome) == {"finished": [0, 1, 2], "late": [3]}


def test_a_client_that_fails_or_leaves_is_lost():
    outcome = played(Rules(4), fails=[0.5, np.inf, np.inf, 0.75], leaves=[np.inf, 7, 12, np.inf])
    assert lists(outcome) == {"finished": [2], "failed": [0, 3], "left": [1]}
    assert outcome.seconds == 12, "the server notices at once: the last failure is after 12 seconds"


def test_what_would_happen_after_the_round_closes_does_not_happen():
    outcome = played(Rules(2), fails=[np.inf, np.inf, 0.9, 0.25])
    assert lists(outcome) == {"finished": [0, 1], "failed": [3], "surplus": [2]}


def test_a_round_that_nobody_finishes_lasts_until_the_last_is_lost():
    outcome = played(Rules(4), fails=[0.5] * 4)
    assert lists(outcome) == {"failed": [0, 1, 2, 3]}
    assert outcome.seconds == 8
    assert played(Rules(4, deadline=3)).seconds == 3


@settings(max_examples=80, deadline=None)
@given(
    ends=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    wanted=st.integers(1, 8),
    deadline=st.one_of(st.just(math.inf), st.integers(1, 40)),
    partial=st.booleans(),
    data=st.data(),
)
def test_every_selected_client_has_one_fate(ends, wanted, deadline, partial, data):
    count = len(ends)
    times = Times(np.zeros(count), np.array(ends, float)[:, None] * np.array([[0.5, 0.5]]), np.zeros(count))
    fails = np.array(data.draw(st.lists(st.sampled_from([0.25, 0.75, np.inf]), min_size=count, max_size=count)))
    leaves = np.array(data.draw(st.lists(st.sampled_from([3.0, 9.0, np.inf]), min_size=count, max_size=count)))
    rules = Rules(wanted, deadline=deadline, partial=partial)
    outcome = outcome_of(times, rules, fails_after=fails, leaves_after=leaves)
    fates = [outcome.finished, outcome.failed, outcome.left, outcome.late, outcome.surplus]
    assert (np.sum(fates, axis=0) == 1).all()
    assert outcome.finished.sum() <= wanted
    assert 0 <= outcome.seconds <= deadline
    assert (outcome.ends[outcome.finished] <= outcome.seconds).all()
    # A faster fleet with the same fates never takes longer.
    faster = Times(times.download, times.steps / 2, times.upload)
    calm = np.full(count, np.inf)
    assert (
        outcome_of(faster, rules, fails_after=calm, leaves_after=calm).seconds
        <= outcome_of(times, rules, fails_after=calm, leaves_after=calm).seconds
    )


# ---- rounds ----------------------------------------------------------------------------------------------------------

IDS = np.array([901, 17, 44, 3, 620, 78, 15, 99, 410, 5], np.uint32)


def load_of(ids):
    """A load that depends on the client's id only."""

    def load(clients):
        work = ids[clients].astype(float)
        return Load(work * 1e6, np.repeat(work[:, None], 3, axis=1) * 1e11, work * 1e6)

    return load


def simulation(rules, ids=IDS, fleet=None):
    return Simulation(drawn_fleet({"laptop": 1.0, "phone": 1.0}, 5, ids) if fleet is None else fleet, ids, 5, rules)


def test_a_willing_fleet_has_the_cohort_of_a_run_without_one():
    fleet = a_fleet(np.full(10, 1e12), np.full(10, 1e6), np.full(10, 1e6))
    for index in range(4):
        found = simulation(Rules(3), fleet=fleet).round(index, 0.0, 10, load_of(IDS))
        assert found.positions.tolist() == sample_cohort(5, index, IDS, 3).tolist()
        assert found.seconds == found.client_seconds.max()
        assert found.selected == found.positions.tolist()


def test_the_seed_reproduces_a_round_and_another_changes_it():
    rules, load = Rules(3, over_selection=2, deadline=1e4, partial=True), load_of(IDS)
    first, again = (simulation(rules).round(2, 7e4, 10**9, load) for _ in range(2))
    assert vars(first).keys() == vars(again).keys()
    assert all(np.array_equal(value, vars(again)[name]) for name, value in vars(first).items())
    selected = [
        [replace(simulation(Rules(2)), seed=seed).round(index, 7e4, 10**9, load).selected for index in range(6)]
        for seed in (5, 6)
    ]
    assert selected[0] != selected[1]


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(len(IDS))), index=st.integers(0, 5))
def test_reordering_the_clients_changes_nobodys_round(order, index):
    order = np.array(order)
    rules = Rules(3, over_selection=1.5, deadline=5e3)
    own, other = (simulation(rules, ids).round(index, 3.3e5, 10**9, load_of(ids)) for ids in (IDS, IDS[order]))
    assert set(IDS[own.positions]) == set(IDS[order][other.positions])
    assert own.clock == other.clock
    assert set(IDS[own.selected]) == set(IDS[order][other.selected])


def test_only_clients_with_the_memory_are_selected():
    fleet = a_fleet(np.full(10, 1e12), np.full(10, 1e6), np.full(10, 1e6), memory=np.arange(10) * 1e9)
    found = simulation(Rules(4, over_selection=3), fleet=fleet).round(0, 0.0, 7 * 10**9, load_of(IDS))
    assert found.selected == [7, 8, 9]
    assert found.eligible == 3
    with pytest.raises(RunError, match=r"round 1 needs 50 GB of a client and no client of the fleet has as much"):
        simulation(Rules(4), fleet=fleet).round(0, 0.0, 5 * 10**10, load_of(IDS))


def test_a_round_waits_for_clients_and_the_wait_counts():
    presence = Presence.of([[(100.0, 200.0)]] * 10, [1000.0] * 10)
    fleet = a_fleet(np.full(10, 1e15), np.full(10, 1e12), np.full(10, 1e12), presence=presence)
    found = simulation(Rules(2), fleet=fleet).round(0, 0.0, 10, load_of(IDS))
    assert found.waited == pytest.approx(100, abs=0.1)
    assert found.clock == pytest.approx(100 + found.client_seconds.max(), abs=0.1)
    never = replace(fleet, presence=Presence.of([[]] * 10, [1000.0] * 10))
    with pytest.raises(RunError, match="none of the 10 clients whose memory suffices is ever present"):
        simulation(Rules(2), fleet=never).round(0, 0.0, 10, load_of(IDS))


def test_a_round_that_nobody_finishes_is_begun_again():
    fleet = a_fleet(np.full(10, 1e12), np.full(10, 1e6), np.full(10, 1e6), failure=np.full(10, 0.8))
    rounds = [simulation(Rules(1), fleet=fleet).round(index, 0.0, 10, load_of(IDS)) for index in range(6)]
    assert any(each.abandoned for each in rounds)
    for each in rounds:
        assert len(each.selected) == each.abandoned + 1 == len(each.failed) + 1
        assert each.seconds > each.client_seconds[0] or not each.abandoned
    hopeless = replace(fleet, failure=np.ones(10))
    with pytest.raises(RunError, match="round 1 was begun 100 times and no client finished it"):
        simulation(Rules(1), fleet=hopeless).round(0, 0.0, 10, load_of(IDS))

from itertools import pairwise

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.developmental import geometric_schedule, validate_capacities
from devft_jax.developmental.schedule import capacity_windows, halving_schedule, linear_schedule, widest_gap


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((32, 4, 2), (4, 8, 16, 32)),
        ((40, 5, 2), (5, 10, 20, 40)),
        ((32, 4, 4), (4, 16, 32)),
        ((32, 4, 8), (4, 32)),
        ((40, 5, 4), (5, 20, 40)),
        ((32, 1, 2), (1, 2, 4, 8, 16, 32)),
        ((32, 32, 2), (32,)),
        ((10, 4, 1.5), (4, 6, 9, 10)),
        ((3, 1, 1.1), (1, 2, 3)),
    ],
)
def test_geometric_schedule(arguments, expected):
    assert geometric_schedule(*arguments) == expected


@given(st.integers(1, 200), st.data())
def test_geometric_schedules_are_valid_and_end_at_full_depth(num_layers, data):
    initial = data.draw(st.integers(1, num_layers))
    rate = data.draw(st.floats(1.01, 10))
    schedule = geometric_schedule(num_layers, initial, rate)
    assert validate_capacities(schedule, num_layers) == schedule
    assert schedule[0] == initial
    assert schedule[-1] == num_layers


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((32, 0, 2), "initial capacity 0"),
        ((32, 33, 2), "initial capacity 33"),
        ((32, 4, 1), "growth rate 1"),
        ((32, 4, float("inf")), "growth rate inf"),
    ],
)
def test_geometric_schedule_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        geometric_schedule(*arguments)


@pytest.mark.parametrize(
    ("capacities", "words"),
    [
        ((), "empty"),
        ((4, 4, 8), "do not ascend at 4"),
        ((8, 4), "do not ascend at 4"),
        ((0, 4), "hold 0"),
        ((-2,), "hold -2"),
        ((4, 17), "beyond the model's 16 layers"),
        ((4, 8.0), "hold 8.0"),
    ],
)
def test_capacities_are_refused_with_the_wrong_entry_named(capacities, words):
    with pytest.raises(ValueError, match=words):
        validate_capacities(capacities, 16)


def test_capacities_may_stop_short_of_the_depth_and_need_not_know_it():
    assert validate_capacities([2, 4], 16) == (2, 4)
    assert validate_capacities([2, 64]) == (2, 64)


@pytest.mark.parametrize("schedule", [halving_schedule, linear_schedule])
@given(layers=st.integers(1, 80), stages=st.integers(1, 6))
def test_schedules_in_so_many_stages_ascend_to_the_full_depth(schedule, layers, stages):
    if layers < stages:
        with pytest.raises(ValueError, match=f"stages {stages} cannot"):
            schedule(layers, stages)
    elif schedule is linear_schedule or layers >= 2 ** (stages - 1):
        capacities = schedule(layers, stages)
        assert len(capacities) == stages
        assert validate_capacities(capacities, layers)[-1] == layers


def test_schedules_in_so_many_stages_give_the_presets():
    assert halving_schedule(22, 4) == (3, 6, 11, 22)
    assert halving_schedule(60, 4) == (8, 15, 30, 60)
    assert linear_schedule(32, 4) == (8, 16, 24, 32)
    with pytest.raises(ValueError, match="stages 0 cannot"):
        linear_schedule(4, 0)


@given(st.sets(st.integers(1, 60), min_size=1, max_size=8))
def test_windows_surround_their_capacities_and_do_not_overlap(chosen):
    capacities = sorted(chosen)
    windows = capacity_windows(capacities)
    assert len(windows) == len(capacities)
    assert windows[-1] == (capacities[-1], capacities[-1])
    assert all(1 <= low <= capacity <= high for (low, high), capacity in zip(windows, capacities, strict=True))
    assert all(before[1] < after[0] for before, after in pairwise(windows))


def test_windows_of_the_paper_and_the_widest_gap_in_one():
    assert capacity_windows((4, 8, 16, 32)) == ((3, 5), (6, 11), (12, 22), (32, 32))
    spectrum = jnp.array([0.0, 5.0, 6.0, 6.5, 9.0, 9.1, 9.2])
    assert [widest_gap(spectrum, *window) for window in ((1, 6), (2, 4), (2, 3), (5, 6))] == [1, 4, 2, 5]

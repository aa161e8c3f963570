import pytest
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.developmental import geometric_schedule, validate_capacities


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

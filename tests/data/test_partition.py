"""Laws of every split: nothing lost, nobody empty, it ends, and a seed decides it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.data.choices import METHODS, NATURAL
from devft_jax.data.partition import apportion, partition, random_stream
from devft_jax.errors import InputError

codes = st.lists(st.integers(0, 6), min_size=1, max_size=300)
seeds = st.integers(0, 2**32)
DRAWN = [method for method in METHODS if method not in NATURAL]


def assert_conserved(parts, count):
    assert all(part.dtype == np.int64 for part in parts)
    assert all((np.diff(part) > 0).all() for part in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(count))


@settings(max_examples=150, deadline=None)
@given(codes, st.integers(1, 40), st.floats(-6, 6), seeds, st.booleans())
def test_drawn_splits_keep_every_example_fill_every_client_and_repeat(groups, clients, exponent, seed, keyed):
    keys = random_stream(seed).integers(0, 2**64, len(groups), np.uint64) if keyed else None
    for method in DRAWN:
        options = {"num_clients": clients, "alpha": 10.0**exponent, "seed": seed, "keys": keys}
        if len(groups) < clients:
            with pytest.raises(InputError, match=f"{len(groups)} examples cannot fill {clients}"):
                partition(groups, method, **options)
            continue
        parts = partition(groups, method, **options)
        assert len(parts) == clients
        assert min(map(len, parts)) >= 1
        assert_conserved(parts, len(groups))
        again = partition(groups, method, **options)
        assert all(map(np.array_equal, parts, again))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 4)), min_size=12, max_size=120), st.randoms(), seeds)
def test_with_keys_a_client_has_the_same_contents_in_whatever_order_examples_come(examples, random, seed):
    shuffled = random.sample(examples, len(examples))
    for method in DRAWN:
        for given_order in (examples, shuffled):
            keys, groups = np.array(given_order, np.uint64).T
            parts = partition(groups.astype(int), method, num_clients=6, alpha=0.3, seed=seed, keys=keys)
            contents = [sorted(given_order[index] for index in part) for part in parts]
            if given_order is examples:
                expected = contents
        assert contents == expected


def test_without_keys_the_order_of_examples_decides():
    groups = np.arange(40) % 2
    first = partition(groups, "quantity", num_clients=4, seed=0)
    keyed = partition(groups, "quantity", num_clients=4, seed=0, keys=np.arange(40, dtype=np.uint64)[::-1])
    assert not all(map(np.array_equal, first, keyed))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 500), st.integers(1, 40), seeds)
def test_iid_sizes_differ_by_at_most_one(count, clients, seed):
    if count < clients:
        return
    sizes = [len(part) for part in partition([0] * count, "iid", num_clients=clients, seed=seed)]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=50, deadline=None)
@given(codes)
def test_natural_splits_are_the_groups(groups):
    groups = np.array(groups)
    for method in ("field", "file"):
        parts = partition(groups, method)
        assert len(parts) == groups.max() + 1
        assert_conserved(parts, len(groups))
        assert all((groups[part] == code).all() for code, part in enumerate(parts))
        longer = partition(groups, method, num_clients=len(parts) + 2)
        assert [len(part) for part in longer] == [*map(len, parts), 0, 0]


def test_iid_is_shuffled_and_seeds_differ():
    first, second = (partition([0] * 100, "iid", num_clients=2, seed=seed)[0] for seed in (0, 1))
    assert not np.array_equal(first, np.arange(50))
    assert not np.array_equal(first, second)


def shares_of_the_largest_client(alpha):
    groups = np.repeat(np.arange(8), 500)
    parts = partition(groups, "dirichlet", num_clients=10, alpha=alpha, seed=3)
    table = np.stack([np.bincount(groups[part], minlength=8) for part in parts])
    return (table.max(axis=0) / 500).mean()


def test_alpha_runs_from_one_client_per_category_to_even_shares():
    assert shares_of_the_largest_client(0.01) > 0.9
    assert 0.2 < shares_of_the_largest_client(0.5) < 0.8
    assert shares_of_the_largest_client(1e6) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("method", ["dirichlet", "topic", "length"])
def test_mixtures_grow_apart_as_alpha_falls(method):
    groups = np.repeat(np.arange(8), 300)

    def distance(alpha, seed):
        parts = partition(groups, method, num_clients=12, alpha=alpha, seed=seed)
        mixtures = np.stack([np.bincount(groups[part], minlength=8) / len(part) for part in parts])
        return np.abs(mixtures - 1 / 8).sum(axis=1).mean() / 2

    means = [np.mean([distance(alpha, seed) for seed in range(8)]) for alpha in (1e-2, 0.1, 1, 10, 1000)]
    assert (np.diff(means) < 0).all()
    assert means[0] > 0.6
    assert means[-1] < 0.05


def test_quantity_skews_sizes_as_alpha_falls_and_leaves_mixtures_alone():
    groups = np.arange(6000) % 3

    def parts(alpha, seed):
        return partition(groups, "quantity", num_clients=12, alpha=alpha, seed=seed)

    largest = [np.mean([max(map(len, parts(alpha, seed))) / 6000 for seed in range(8)]) for alpha in (1e-2, 0.1, 1, 10, 1e6)]
    assert (np.diff(largest) < 0).all()
    assert largest[0] > 0.8
    assert largest[-1] == pytest.approx(1 / 12, abs=0.01)
    for part in parts(1, 0):
        if len(part) > 300:
            mixture = np.bincount(groups[part], minlength=3) / len(part)
            np.testing.assert_allclose(mixture, 1 / 3, atol=0.1)
    assert sorted(map(len, parts(1e-9, 0))) == [1] * 11 + [5989]


@pytest.mark.parametrize(
    ("groups", "method", "options", "message"),
    [
        ([0, 1], "sorted", {}, "partition 'sorted' is unknown; choose from iid, dirichlet, topic, length, quantity"),
        ([0, -1], "topic", {"num_clients": 1}, "'topic' needs a group for every example and example 1 has none"),
        ([0, 1], "quantity", {"num_clients": 3}, "2 examples cannot fill 3 clients"),
        ([0, 1], "quantity", {"num_clients": 1, "alpha": 0.0}, "alpha 0.0 is not a positive number"),
        ([0, 1], "length", {}, "clients None is not a positive number"),
    ],
)
def test_impossible_splits_are_refused(groups, method, options, message):
    with pytest.raises(InputError, match=message):
        partition(groups, method, **options)


def test_quantity_asks_for_no_group():
    assert_conserved(partition([-1] * 9, "quantity", num_clients=4), 9)


def test_repair_takes_single_examples_from_the_largest_only():
    groups = np.zeros(1000, int)
    sizes = sorted(len(part) for part in partition(groups, "dirichlet", num_clients=20, alpha=1e-9, seed=0))
    assert sizes == [1] * 19 + [981]


def test_a_generator_is_a_seed_that_moves_on():
    stream = random_stream(9)
    first, second = (partition([0] * 50, "iid", num_clients=2, seed=stream) for _ in range(2))
    again = partition([0] * 50, "iid", num_clients=2, seed=random_stream(9))
    assert all(map(np.array_equal, first, again))
    assert not all(map(np.array_equal, first, second))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.floats(0.01, 1e6), min_size=1, max_size=50))
def test_apportion_is_exact_and_within_one_of_the_ideal(total, weights):
    parts = apportion(total, np.array(weights))
    ideal = total * np.array(weights) / np.sum(weights)
    assert parts.sum() == total
    assert (np.abs(parts - ideal) < 1 + 1e-6).all()
    assert (parts >= 0).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=4, unique=True))
def test_streams_repeat_and_depend_on_the_whole_path(path):
    def draws(*place):
        return random_stream(*place).integers(0, 2**60, 4).tolist()

    assert draws(*path) == draws(*path)
    assert draws(*path) != draws(*path[:-1], path[-1] + 1)


@pytest.mark.parametrize(
    ("groups", "method", "options", "message"),
    [
        ([0], "sorted", {}, f"'sorted' is unknown; choose from {', '.join(METHODS)}"),
        ([0, 1], "iid", {"num_clients": 0}, "clients 0 is not a positive number"),
        ([0, 1], "iid", {}, "clients None is not a positive number"),
        ([0, 1], "dirichlet", {"num_clients": 1, "alpha": 0.0}, "alpha 0.0 is not a positive"),
        ([0, 1], "dirichlet", {"num_clients": 1, "alpha": float("nan")}, "alpha nan is not"),
        ([0, -1], "dirichlet", {"num_clients": 1}, "'dirichlet' needs a group .* example 1 has"),
        ([0, -1], "field", {}, "'field' needs a group for every example and example 1 has none"),
    ],
)
def test_unusable_requests(groups, method, options, message):
    with pytest.raises(InputError, match=message):
        partition(groups, method, **options)


def test_iid_needs_no_groups():
    assert_conserved(partition([-1, -1, -1], "iid", num_clients=2), 3)

"""Cohorts are uniform, and every draw belongs to (seed, purpose, round, client id) alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.federated import sampling
from devft_jax.federated.sampling import Purpose, client_keys, run_key, sample_cohort, sample_cohorts

# One population size and seed, because each compiles.
SEED = 11
IDS = np.random.default_rng(2).choice(2**32, 20, replace=False).astype(np.uint32)


def cohort_ids(round_index: int, ids: np.ndarray, size: int, seed: int = SEED) -> set[int]:
    return set(ids[sample_cohort(seed, round_index, ids, size)].tolist())


def key_data(keys: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(keys))


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, len(IDS)))
def test_a_cohort_has_the_size_asked_for_and_ascends(round_index, size):
    positions = sample_cohort(SEED, round_index, IDS, size)
    assert len(positions) == size
    assert (np.diff(positions) > 0).all()
    assert positions.min() >= 0
    assert positions.max() < len(IDS)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, len(IDS)), st.randoms(use_true_random=False))
def test_the_order_of_the_population_does_not_matter(round_index, size, random):
    order = list(range(len(IDS)))
    random.shuffle(order)
    assert cohort_ids(round_index, IDS[order], size) == cohort_ids(round_index, IDS, size)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, len(IDS) - 1), st.data())
def test_a_client_that_was_not_drawn_may_leave(round_index, size, data):
    drawn = cohort_ids(round_index, IDS, size)
    absent = data.draw(st.sampled_from(sorted(set(IDS.tolist()) - drawn)))
    assert cohort_ids(round_index, IDS[absent != IDS], size) == drawn


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, len(IDS) - 1))
def test_a_larger_cohort_contains_the_smaller(round_index, size):
    assert cohort_ids(round_index, IDS, size) < cohort_ids(round_index, IDS, size + 1)


def test_clients_are_drawn_uniformly():
    rounds, size = 2000, 2
    drawn = np.concatenate([sample_cohort(SEED, index, IDS, size) for index in range(rounds)])
    counts = np.bincount(drawn, minlength=len(IDS))
    expected = rounds * size / len(IDS)
    # Chi-square with 19 degrees of freedom: 43.8 is passed once in a thousand draws, 10 is undercut once in twenty.
    assert 5 < np.sum((counts - expected) ** 2 / expected) < 43.8
    # Pairs too: each of the 190 is expected 10.5 times, and the most frequent of them less than 30.
    pairs = drawn.reshape(rounds, size)
    together = np.bincount(pairs[:, 0] * len(IDS) + pairs[:, 1])
    assert np.count_nonzero(together) == 190
    assert together.max() < 30


def test_rounds_and_seeds_differ():
    rounds = {frozenset(cohort_ids(index, IDS, 5)) for index in range(50)}
    assert len(rounds) > 45
    same = sum(cohort_ids(index, IDS, 5) == cohort_ids(index, IDS, 5, seed=12) for index in range(50))
    assert same < 5


def test_a_client_has_the_same_key_in_any_cohort():
    keys = key_data(client_keys(SEED, np.uint32(3), IDS[:6]))
    other = key_data(client_keys(SEED, np.uint32(3), IDS[[9, 4, 12, 0, 7, 15]]))
    np.testing.assert_array_equal(keys[[4, 0]], other[[1, 3]])
    assert len(np.unique(np.concatenate([keys, other[[0, 2, 4, 5]]]), axis=0)) == 10
    for different in (
        client_keys(SEED, np.uint32(4), IDS[:6]),
        client_keys(SEED + 1, np.uint32(3), IDS[:6]),
    ):
        assert not (key_data(different) == keys).all(axis=1).any()


def test_purposes_do_not_share_a_stream():
    keys = [tuple(key_data(run_key(SEED, each)).tolist()) for each in Purpose]
    assert len(set(keys)) == len(Purpose)


@pytest.mark.parametrize("default", ["rbg", "unsafe_rbg", "threefry2x32"])
def test_keys_are_threefry_whatever_the_default(default):
    # A round that no other test draws, and a seed for each default, so that nothing was traced before.
    seed = 1000 + len(default)
    with jax.default_prng_impl(default):
        positions = sample_cohort(seed, 7, IDS, 4)
        keys = client_keys(seed, np.uint32(7), IDS[:2])
    root = jax.random.key(seed, impl="threefry2x32")
    round_key = jax.random.fold_in(jax.random.fold_in(root, Purpose.COHORT), 7)
    bits = [int(jax.random.bits(jax.random.fold_in(round_key, client))) for client in IDS]
    np.testing.assert_array_equal(positions, np.sort(np.argsort(bits)[:4]))
    training = jax.random.fold_in(jax.random.fold_in(root, Purpose.TRAINING), 7)
    wanted = jnp.stack([jax.random.fold_in(training, client) for client in IDS[:2]])
    np.testing.assert_array_equal(key_data(keys), key_data(wanted))
    assert jax.random.key_impl(keys) == jax.random.key_impl(root)


@pytest.mark.parametrize("at_once", [3, 10**6])
def test_many_rounds_at_once_are_the_same_rounds(monkeypatch, at_once):
    monkeypatch.setattr(sampling, "MOST_PRIORITIES", at_once * len(IDS))
    together = sample_cohorts(SEED, 7, IDS, 4)
    assert len(together) == 7
    for index, cohort in enumerate(together):
        np.testing.assert_array_equal(cohort, sample_cohort(SEED, index, IDS, 4))

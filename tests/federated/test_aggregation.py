"""Means, messages kept apart and ranks per client: what comes out is what went in, whatever the weights and the gaps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.federated.aggregation import (
    ClientRanks,
    best_factors,
    first_directions,
    in_slot,
    mean_of_products,
    product,
    stacked,
    weighted,
)
from devft_jax.federated.algorithm import Clients, Share
from devft_jax.federated.messages import message_bytes
from devft_jax.models.adapter import LoraFactors
from tests.federated.harness import assert_identical

WEIGHTS = st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0, 17.0, 1000.0]), min_size=3, max_size=3).filter(any)


def collected(messages, weights):
    parts = [
        in_slot(message, Share(jnp.float32(weight), jnp.int32(slot)), len(weights))
        for slot, (message, weight) in enumerate(zip(messages, weights, strict=True))
    ]
    return jax.tree.map(lambda *leaves: sum(leaves), *parts)


@settings(max_examples=20)
@given(weights=WEIGHTS, seed=st.integers(0, 99))
def test_every_message_comes_out_of_the_sum_with_its_share(weights, seed):
    rng = np.random.default_rng(seed)
    messages = [
        {"a": jnp.asarray(rng.normal(size=(2, 3)), "bfloat16"), "n": jnp.int32(slot)} for slot in range(len(weights))
    ]
    found, shares = collected(messages, weights).apart()
    np.testing.assert_allclose(shares, np.array(weights) / np.sum(weights), rtol=1e-6)
    for slot, (message, weight) in enumerate(zip(messages, weights, strict=True)):
        there = weight > 0
        np.testing.assert_allclose(found["a"][slot], there * np.asarray(message["a"], np.float32), rtol=1e-6)
        np.testing.assert_allclose(found["n"][slot], there * slot, rtol=1e-6)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}


def test_a_contribution_is_linear_in_its_weight():
    message = {"a": jnp.arange(6.0).reshape(2, 3)}
    one, seven = (collected([message], [weight]) for weight in (1.0, 7.0))
    jax.tree.map(lambda few, many: np.testing.assert_allclose(many, 7 * few, rtol=1e-6), one, seven)


def clients_factors(seed=0, clients=3, layers=2, fan_in=5, rank=4, fan_out=7):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(clients, layers, fan_in, rank)), rng.normal(size=(clients, layers, rank, fan_out))
    return LoraFactors(a=jnp.asarray(a, jnp.float32), b=jnp.asarray(b, jnp.float32))


SHARES = jnp.array([0.5, 0.125, 0.375])


def test_a_weighted_sum_gives_the_mean_back():
    messages = [{"a": jnp.asarray(np.random.default_rng(seed).normal(size=(2, 3)), "bfloat16")} for seed in range(3)]
    parts = [
        weighted(message, Share(jnp.float32(w), jnp.int32(0))) for message, w in zip(messages, (2.0, 0.0, 6.0), strict=True)
    ]
    sums = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    expected = 0.25 * messages[0]["a"].astype("float32") + 0.75 * messages[2]["a"].astype("float32")
    np.testing.assert_allclose(sums.mean()["a"], expected, rtol=1e-6)
    assert not np.any(parts[1].total["a"])


def test_the_mean_of_products_is_exact_dense_and_stacked():
    factors = clients_factors()
    exact = np.einsum("k,klir,klro->lio", np.float64(SHARES), np.float64(factors.a), np.float64(factors.b))
    joined = stacked(factors, SHARES)
    assert (joined.a.shape, joined.b.shape) == ((2, 5, 12), (2, 12, 7))
    np.testing.assert_allclose(product(joined), exact, atol=1e-5)
    np.testing.assert_allclose(mean_of_products(factors, SHARES), exact, atol=1e-5)


@pytest.mark.parametrize("form", ["dense", "factors"])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_best_factors_are_the_truncated_decomposition(form, rank):
    joined = stacked(clients_factors(), SHARES)
    dense = np.float64(product(joined))
    found = best_factors(product(joined) if form == "dense" else joined, rank, scale=2.0)
    assert (found.a.shape, found.b.shape) == ((2, 5, rank), (2, rank, 7))
    for layer, matrix in enumerate(dense):
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        nearest = (left[:, :rank] * values[:rank]) @ right[:rank]
        np.testing.assert_allclose(2 * found.a[layer] @ found.b[layer], nearest, atol=1e-4)
        # The size lies in both factors alike.
        np.testing.assert_allclose(np.linalg.norm(found.a[layer], axis=0), np.sqrt(values[:rank] / 2), rtol=1e-4)


@pytest.mark.parametrize("form", ["dense", "factors"])
def test_directions_of_no_size_can_still_learn(form):
    factors = clients_factors(rank=2)
    # A first layer of zeros, and a second of rank 2.
    joined = jax.tree.map(lambda leaf: leaf.at[:, 0].set(0), LoraFactors(a=factors.a[:1], b=factors.b[:1]))
    joined = stacked(joined, SHARES[:1])
    found = best_factors(product(joined) if form == "dense" else joined, 4 if form == "dense" else 2)
    np.testing.assert_allclose(product(found), product(joined), atol=1e-5)
    assert np.linalg.norm(found.a, axis=1).min() > 0.1
    assert not np.any(found.b[0])


@pytest.mark.parametrize("matrix", [jnp.zeros((2, 5, 7)), stacked(clients_factors(rank=1), SHARES)])
def test_more_factors_than_singular_values_are_refused(matrix):
    with pytest.raises(ValueError, match=r"rank 6 exceeds the [35] singular values"):
        best_factors(matrix, 6)


def test_clients_have_their_ranks_in_turn():
    ranks = ClientRanks((4, 1, 2), most=4)
    assert ranks.differ
    assert ranks.traits(Clients(5))["rank"].tolist() == [4, 1, 2, 4, 1]
    lora = {"v": jax.tree.map(lambda leaf: leaf[0], clients_factors())}
    message = ranks.message(lora, jnp.int32(2))
    np.testing.assert_array_equal(message.lora["v"].a[..., :2], lora["v"].a[..., :2])
    assert not np.any(message.lora["v"].a[..., 2:])
    assert not np.any(message.lora["v"].b[:, 2:])
    assert message_bytes(message) == 4 * 2 * 4 * (5 + 7) + 4
    assert message_bytes(message, [2]) == 4 * 2 * 2 * (5 + 7) + 4
    assert_identical(first_directions(message.lora, jnp.int32(4)), message.lora)
    assert not ClientRanks((4,), most=4).differ

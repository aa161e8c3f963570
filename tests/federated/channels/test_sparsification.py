"""Fewer entries and lower rank: which are sent, what a message weighs, and that a scaled random choice is unbiased."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.federated.channels.channel import chain
from devft_jax.federated.channels.low_rank import low_rank
from devft_jax.federated.channels.quantisation import quantised
from devft_jax.federated.channels.sparsification import random_k, top_k
from devft_jax.federated.messages import message_bytes

SHAPES = {"a": (2, 13, 4), "b": (2, 4, 9)}
SIZE = 176
KEY = jax.random.key(4, impl="threefry2x32")


def change(seed):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_top_k_sends_the_largest_entries_as_they_are(seed):
    up = change(seed)
    channel = top_k(0.1, "float32")
    message, _ = channel.client(up, {}, KEY)
    wanted = flat(up)
    wanted[np.argsort(-np.abs(wanted))[17:]] = 0
    np.testing.assert_array_equal(flat(channel.combine(message)), wanted)
    # 17 values; a bit for each entry is less than 17 positions.
    assert message_bytes(message) == 17 * 4 + SIZE // 8


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_k_sends_values_alone(seed):
    up, key = change(seed), jax.random.key(seed % 2**31, impl="threefry2x32")
    channel = random_k(0.1, "float32", unbiased=False)
    message, _ = channel.client(up, {}, key)
    found = flat(channel.combine(message))
    sent = np.flatnonzero(found)
    assert len(sent) == 17
    np.testing.assert_array_equal(found[sent], flat(up)[sent])
    assert message_bytes(message) == 17 * 4
    assert message_bytes(random_k(0.1, "bfloat16", unbiased=True).client(up, {}, key)[0]) == 17 * 2


def test_a_scaled_random_choice_is_unbiased():
    up, draws = change(1), 4096
    channel = random_k(0.25, "float32", unbiased=True)
    keys = jax.random.split(KEY, draws)
    found = jax.jit(jax.vmap(lambda key: channel.combine(channel.client(up, {}, key)[0])))(keys)
    mean = np.concatenate([np.asarray(leaf, np.float64).mean(axis=0).ravel() for leaf in jax.tree.leaves(found)])
    # Four times the entry with probability a quarter: a variance of three times its square.
    assert np.all(np.abs(mean - flat(up)) <= 5 * np.sqrt(3 / draws) * np.abs(flat(up)))


def test_a_chain_quantises_the_values_that_are_sent():
    up = change(2)
    channel = chain(top_k(0.5, "float32"), quantised("int8", "nearest"))
    message, _ = channel.client(up, ({}, {}), KEY)
    assert channel.name == "topk=0.5+int8"
    assert message_bytes(message) == 88 + 4 * 1 + SIZE // 8
    wanted = flat(up)
    wanted[np.argsort(-np.abs(wanted))[88:]] = 0
    np.testing.assert_allclose(flat(channel.combine(message)), wanted, atol=np.abs(wanted).max() / 127 / 2 * 1.001)


@pytest.mark.parametrize("rank", [1, 2])
def test_low_rank_is_the_nearest_matrix_of_that_rank(rank):
    up = change(3)
    channel = low_rank(rank, "float32")
    message, _ = channel.client(up, {}, KEY)
    found = channel.combine(message)
    for name, leaf in up.items():
        left, singular, right = np.linalg.svd(np.asarray(leaf, np.float64), full_matrices=False)
        nearest = (left[..., :rank] * singular[:, None, :rank]) @ right[:, :rank]
        np.testing.assert_allclose(found[name], nearest, atol=1e-5)
    assert message_bytes(message) == 4 * 2 * rank * (13 + 4 + 4 + 9)


def test_what_low_rank_would_not_shrink_is_sent_as_it_is():
    up = {"matrix": change(3)["b"], "vector": jnp.arange(3.0)}
    channel = low_rank(3, "float32")
    message, _ = channel.client(up, {}, KEY)
    for name, leaf in up.items():
        np.testing.assert_array_equal(channel.combine(message)[name], leaf)
    assert message_bytes(message) == 4 * (72 + 3)

"""Sums that keep messages apart: what comes out is what went in, whatever the weights, the order and the gaps."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.federated.algorithm import Share
from devft_jax.federated.slots import apart, in_slot, side_by_side

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
    found, shares = apart(collected(messages, weights))
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


def test_factors_side_by_side_multiply_to_the_sum_of_products():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 2, 5, 4)), rng.normal(size=(3, 2, 4, 7))
    joined = side_by_side(jnp.asarray(a), jnp.asarray(b))
    assert (joined[0].shape, joined[1].shape) == ((2, 5, 12), (2, 12, 7))
    np.testing.assert_allclose(joined[0] @ joined[1], np.einsum("klir,klro->lio", a, b), atol=1e-5)

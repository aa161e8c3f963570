"""Fewer bits: how far a code may be from its value, that rounding is unbiased, and what a message weighs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.federated.channels.quantisation import BLOCK, LARGEST, packed, quantised, rounded
from devft_jax.federated.messages import message_bytes

# An odd number of entries in three blocks, the last of which is not full.
SHAPE = (3, 23, 5)
SIZE = 345
SEEDS = st.integers(0, 2**32 - 1)
EXPONENTS = st.integers(-30, 30)


def values(seed, exponent, shape=SHAPE):
    """Normal numbers with some zeros, of a magnitude that differs from block to block."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=shape) * 10.0 ** (exponent + rng.integers(-2, 3, shape[:1] + (1,) * (len(shape) - 1)))
    return np.where(rng.random(shape) < 0.1, 0, found).astype(np.float32)


@functools.cache
def through(kind, rounding):
    """(leaf, key) -> the message and what it stands for, compiled once."""
    channel = quantised(kind, rounding)

    def send(leaf, key):
        message, _ = channel.client({"leaf": leaf}, {}, key)
        return message, channel.combine(message)["leaf"]

    return jax.jit(send)


def key_of(seed):
    return jax.random.key(seed % 2**31, impl="threefry2x32")


def steps(leaf, bits):
    """Every entry's step, by a loop over the blocks."""
    flat = leaf.ravel().astype(np.float64)
    largest = [np.abs(flat[first : first + BLOCK]).max() for first in range(0, flat.size, BLOCK)]
    return np.repeat(np.array(largest) / LARGEST[bits], BLOCK)[: flat.size].reshape(leaf.shape)


@pytest.mark.parametrize("bits", [8, 4])
@settings(max_examples=25)
@given(seed=SEEDS, exponent=EXPONENTS)
def test_codes_are_within_half_a_step_or_a_step_of_their_values(bits, seed, exponent):
    leaf = values(seed, exponent)
    for rounding, most in (("nearest", 0.5), ("stochastic", 1.0)):
        found = np.asarray(through(f"int{bits}", rounding)(leaf, key_of(seed))[1], np.float64)
        # float32's own rounding of the scale and of the product is relative to the value.
        assert np.all(np.abs(found - leaf) <= most * steps(leaf, bits) + 1e-5 * np.abs(leaf))


@settings(max_examples=25)
@given(seed=SEEDS, exponent=EXPONENTS)
def test_bfloat16_is_one_of_the_two_neighbours(seed, exponent):
    leaf = values(seed, exponent)
    found = np.asarray(through("bf16", "stochastic")(leaf, key_of(seed))[1])
    below = (leaf.view(np.uint32) & 0xFFFF0000).view(np.float32)
    above = ((leaf.view(np.uint32) & 0xFFFF0000) + np.uint32(0x10000)).view(np.float32)
    assert np.all((found == below) | ((found == above) & (leaf != below)))
    nearest = np.asarray(through("bf16", "nearest")(leaf, key_of(seed))[1])
    assert np.all(np.abs(nearest - leaf) <= np.abs(above - below) / 2)


@settings(max_examples=25)
@given(seed=SEEDS)
def test_rounding_is_unbiased_over_its_uniform_number(seed):
    value = np.random.default_rng(seed).uniform(-7, 7, 50).astype(np.float32)
    uniform = ((np.arange(4096) + 0.5) / 4096).astype(np.float32)
    found = np.asarray(rounded(jnp.asarray(value)[:, None], jnp.asarray(uniform)[None]))
    np.testing.assert_allclose(found.mean(axis=1), value, atol=2 / 4096)


@pytest.mark.parametrize("kind", ["bf16", "int8", "int4"])
def test_messages_are_unbiased_over_their_keys(kind):
    leaf, draws = values(5, 0), 2048
    keys = jax.random.split(key_of(1), draws)
    found = np.asarray(jax.jit(jax.vmap(lambda key: through(kind, "stochastic")(leaf, key)[1]))(keys), np.float64)
    step = np.abs(leaf) * 2.0**-7 if kind == "bf16" else steps(leaf, int(kind[3:]))
    # Two-valued with a distance of one step: the mean's deviation is at most step / 2 / sqrt(draws).
    assert np.all(np.abs(found.mean(axis=0) - leaf) <= 5.5 * step / 2 / np.sqrt(draws) + 1e-6 * np.abs(leaf))
    # A key decides, not the value alone.
    assert np.mean(found.std(axis=0) > 0) > 0.5


def test_bytes_are_codes_and_scales():
    leaf = values(1, 0)
    blocks = -(-SIZE // BLOCK)
    for kind, wanted in (("bf16", 2 * SIZE), ("int8", SIZE + 4 * blocks), ("int4", (SIZE + 1) // 2 + 4 * blocks)):
        message, _ = through(kind, "stochastic")(leaf, key_of(0))
        assert message_bytes(message) == wanted
        assert sum(np.asarray(part).nbytes for part in jax.tree.leaves(message)) == wanted


@pytest.mark.parametrize("kind", ["bf16", "int8", "int4"])
def test_zeros_stay_zero_and_what_is_not_finite_is_seen(kind):
    zeros = np.zeros(SHAPE, np.float32)
    np.testing.assert_array_equal(through(kind, "stochastic")(zeros, key_of(0))[1], zeros)
    for wrong in (np.nan, np.inf):
        broken = values(2, 0)
        broken[1, 2, 3] = wrong
        message, _ = through(kind, "stochastic")(broken, key_of(0))
        assert not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(message))


def test_other_leaves_pass_unchanged():
    message = {"where": jnp.arange(3), "values": jnp.ones(3)}
    found, _ = quantised("int8", "nearest").client(message, {}, key_of(0))
    np.testing.assert_array_equal(found["where"], message["where"])
    assert found["values"].codes.dtype == jnp.int8
    assert packed(jnp.ones(3), 4, None).codes.shape == (2,)

"""Error feedback: what was sent and what is left are all changes, whatever the channel; and chains of channels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.federated.channels.channel import Channel, chain, compressor
from devft_jax.federated.channels.named import channel_of
from devft_jax.federated.channels.options import ChannelOptions
from tests.federated.channels.test_sparsification import KEY, change, flat

NAMES = ("bf16", "int8", "int4", "topk=0.1", "randk=0.2", "lowrank=1", "topk=0.3+int4", "lowrank=2+int8")


@functools.cache
def sent_in_rounds(name, rounding):
    """(changes [T, ...]) -> the terms [T, ...] and the last residual, compiled once."""
    channel = channel_of(ChannelOptions(channel=name, rounding=rounding), "float32")

    def one(residual, step):
        up, key = step
        message, residual = channel.client(up, residual, key)
        return residual, channel.combine(message)

    def run(ups):
        first, _ = channel.init(jax.tree.map(lambda leaf: leaf[0], ups))
        residual, terms = jax.lax.scan(one, first, (ups, jax.random.split(KEY, 6)))
        return terms, residual

    return jax.jit(run)


def changes(seed, rounds=6):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(change([seed, step]) for step in range(rounds)))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_was_sent_and_what_is_left_are_all_changes(name, seed):
    ups = changes(seed)
    terms, residual = sent_in_rounds(name, "stochastic")(ups)
    total = jax.tree.map(lambda term, left: term.sum(axis=0) + left, terms, residual)
    np.testing.assert_allclose(flat(total), flat(jax.tree.map(lambda leaf: leaf.sum(axis=0), ups)), atol=1e-4)
    # It is not the identity that keeps the law.
    assert np.abs(flat(residual)).max() > 1e-5


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_what_is_left_of_codes_stays_below_a_step_of_the_largest(name):
    most = {"int8": 127, "int4": 7}[name]
    for rounding, steps in (("stochastic", 1.0), ("nearest", 0.5)):
        ups = changes(3)
        largest = np.abs(flat(ups)).max()
        _, residual = sent_in_rounds(name, rounding)(ups)
        # e <= s (u + e) / Q, so e <= s u / (Q - s).
        assert np.abs(flat(residual)).max() <= 1.001 * steps * largest / (most - steps)


def test_without_error_feedback_nothing_is_kept():
    channel = channel_of(ChannelOptions(channel="randk=0.5", error_feedback=False), "float32")
    assert not jax.tree.leaves(channel.init(change(0)))
    # The values are scaled then alone.
    with_feedback = channel_of(ChannelOptions(channel="randk=0.5"), "float32")
    up = change(0)
    alone = channel.combine(channel.client(up, channel.init(up)[0], KEY)[0])
    kept = with_feedback.combine(with_feedback.client(up, with_feedback.init(up)[0], KEY)[0])
    np.testing.assert_allclose(flat(alone), 2 * flat(kept), rtol=1e-6)


def test_a_chain_reads_backwards_and_its_server_acts_in_order():
    double = compressor("double", lambda up, key: 2 * up, lambda message: message / 2)
    shift = compressor("shift", lambda up, key: up + 3, lambda message: message - 3)

    def counting(name, step):
        def server(mean, state, key):
            return step(mean), state + 1, {name: mean}

        return Channel(name, client=lambda up, row, key: (up, row), init=lambda up: ({}, jnp.int32(0)), server=server)

    links = double, shift, counting("add", lambda mean: mean + 1), counting("times", lambda mean: 10 * mean)
    channel = chain(*links)
    rows, states = channel.init(jnp.float32(0))
    message, rows = channel.client(jnp.float32(5), rows, KEY)
    assert float(message) == 13
    assert float(channel.combine(message)) == 5
    mean, states, metrics = channel.server(jnp.float32(5), states, KEY)
    assert (float(mean), list(map(int, states[2:]))) == (60, [1, 1])
    assert {name: float(value) for name, value in metrics.items()} == {"add": 5, "times": 6}
    assert chain(double, shift).server is None

"""Chunks of the vocabulary change memory, never the statistics."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.models import loss
from devft_jax.models.llama import Compute, forward

VOCABULARY = 23

token_statistics = jax.jit(loss.token_statistics, static_argnames="chunk")
completion_statistics = jax.jit(loss.completion_statistics, static_argnums=0, static_argnames="compute")
completion_loss = jax.jit(loss.completion_loss, static_argnums=0)


def problem(seed=0, vocabulary=VOCABULARY):
    keys = jax.random.split(jax.random.key(seed), 3)
    hidden = jax.random.normal(keys[0], (2, 5, 8))
    head = 2.0 * jax.random.normal(keys[1], (8, vocabulary))
    return hidden, head, jax.random.randint(keys[2], (2, 5), 0, vocabulary)


def plain_nll(hidden, head, targets):
    log_probabilities = jax.nn.log_softmax(hidden @ head)
    return -jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]


@settings(max_examples=8)
@given(st.sampled_from((1, 2, 7, 11, 22, 23, 24, 100)), st.integers(0, 3))
def test_any_chunk_size_equals_a_plain_log_softmax(chunk, seed):
    hidden, head, targets = problem(seed)
    statistics = token_statistics(hidden, head, targets, chunk=chunk)
    np.testing.assert_allclose(statistics.nll, plain_nll(hidden, head, targets), atol=1e-5)
    np.testing.assert_array_equal(statistics.hit, jnp.argmax(hidden @ head, axis=-1) == targets)


@pytest.mark.parametrize("chunk", [1, 5, 23])
def test_gradients_equal_those_of_a_plain_log_softmax(chunk):
    hidden, head, targets = problem()
    weights = jnp.arange(10.0).reshape(2, 5)

    def chunked(hidden, head):
        return jnp.sum(weights * token_statistics(hidden, head, targets, chunk=chunk).nll)

    def plain(hidden, head):
        return jnp.sum(weights * plain_nll(hidden, head, targets))

    expected = jax.grad(plain, argnums=(0, 1))(hidden, head)
    chex.assert_trees_all_close(jax.jit(jax.grad(chunked, argnums=(0, 1)))(hidden, head), expected, atol=1e-4)


@pytest.mark.parametrize("chunk", [2, 4, 6])
def test_the_first_of_equally_likely_tokens_is_the_hit(chunk):
    head = jnp.array([[0.0, 3.0, 1.0, 3.0, 3.0, 0.0]])
    hit = token_statistics(jnp.ones((6, 1)), head, jnp.arange(6), chunk=chunk).hit
    np.testing.assert_array_equal(hit, [False, True, False, False, False, False])


@pytest.mark.parametrize("chunk", [3, 8])
def test_large_logits_stay_finite(chunk):
    hidden, head, targets = problem(vocabulary=8)
    statistics = token_statistics(1e4 * hidden, head, targets, chunk=chunk)
    gradient = jax.grad(lambda x: jnp.sum(token_statistics(x, head, targets, chunk=chunk).nll))(1e4 * hidden)
    np.testing.assert_allclose(statistics.nll, plain_nll(1e4 * hidden, head, targets), rtol=1e-5)
    assert jnp.isfinite(gradient).all()


def test_neither_pass_holds_all_logits():
    tokens, vocabulary, chunk = 128, 4096, 64
    hidden, head = jnp.ones((tokens, 8)), jnp.ones((8, vocabulary))
    targets = jnp.zeros(tokens, dtype=jnp.int32)

    def total(hidden):
        return jnp.sum(loss.token_statistics(hidden, head, targets, chunk=chunk).nll)

    all_logits = tokens * vocabulary * 4
    memory = jax.jit(jax.grad(total)).lower(hidden).compile().memory_analysis()
    assert memory.temp_size_in_bytes < all_logits / 4


@pytest.fixture
def mask():
    return jnp.array([[1, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1]], dtype=bool)


def test_completion_statistics_score_each_token_from_its_predecessor(config, base, adapter, tokens, mask):
    logits = forward(config, base, adapter, tokens)
    expected = -np.asarray(jax.nn.log_softmax(logits))
    statistics = completion_statistics(config, base, adapter, tokens, mask, compute=Compute(vocabulary_chunk=10))
    assert statistics.nll.shape == (2, 6)
    for row in range(2):
        for position in range(1, 7):
            nll, hit = statistics.nll[row, position - 1], statistics.hit[row, position - 1]
            if mask[row, position]:
                np.testing.assert_allclose(nll, expected[row, position - 1, tokens[row, position]], rtol=1e-4)
                assert hit == (jnp.argmax(logits[row, position - 1]) == tokens[row, position])
            else:
                assert nll == 0
                assert hit


def test_completion_loss_is_the_mean_over_completion_tokens(config, base, adapter, tokens, mask):
    nll = completion_statistics(config, base, adapter, tokens, mask).nll
    counted = np.asarray(mask[:, 1:])
    mean = completion_loss(config, base, adapter, tokens, mask)
    np.testing.assert_allclose(mean, np.asarray(nll)[counted].mean(), rtol=1e-6)


def test_tokens_outside_the_completion_do_not_matter_after_it(config, base, adapter, tokens, mask):
    mask = mask.at[:, 5:].set(False)
    changed = tokens.at[:, 5:].set(0)
    expected = completion_loss(config, base, adapter, tokens, mask)
    np.testing.assert_allclose(completion_loss(config, base, adapter, changed, mask), expected, rtol=1e-6)


def test_a_batch_without_completion_tokens_has_no_loss_and_no_gradient(config, base, adapter, tokens):
    empty = jnp.zeros(tokens.shape, dtype=bool)

    def empty_loss(lora):
        return loss.completion_loss(config, base, adapter.replace(lora=lora), tokens, empty)

    value, gradient = jax.jit(jax.value_and_grad(empty_loss))(adapter.lora)
    assert value == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))

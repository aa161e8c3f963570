"""Blocks of tokens change memory, never the statistics; what does not count is not looked at."""

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

token_statistics = jax.jit(loss.token_statistics, static_argnames=("rows", "axis"))
completion_statistics = jax.jit(loss.completion_statistics, static_argnums=0, static_argnames="compute")
completion_loss = jax.jit(loss.completion_loss, static_argnums=0)


def problem(seed=0, vocabulary=VOCABULARY):
    keys = jax.random.split(jax.random.key(seed), 4)
    hidden = jax.random.normal(keys[0], (2, 5, 8))
    head = 2.0 * jax.random.normal(keys[1], (8, vocabulary))
    targets = jax.random.randint(keys[2], (2, 5), 0, vocabulary)
    return hidden, head, targets, jax.random.bernoulli(keys[3], 0.6, (2, 5))


def plain_nll(hidden, head, targets, counted):
    log_probabilities = jax.nn.log_softmax(hidden @ head)
    return jnp.where(counted, -jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0], 0.0)


@settings(max_examples=8)
@given(st.sampled_from((1, 2, 3, 7, 10, 100)), st.integers(0, 3))
def test_any_block_size_equals_a_plain_log_softmax(rows, seed):
    hidden, head, targets, counted = problem(seed)
    statistics = token_statistics(hidden, head, targets, counted, rows=rows)
    np.testing.assert_allclose(statistics.nll, plain_nll(hidden, head, targets, counted), atol=1e-5)
    np.testing.assert_array_equal(statistics.hit, (jnp.argmax(hidden @ head, axis=-1) == targets) | ~counted)


@pytest.mark.parametrize("rows", [1, 4, 10])
def test_gradients_equal_those_of_a_plain_log_softmax(rows):
    hidden, head, targets, counted = problem()
    weights = jnp.arange(10.0).reshape(2, 5)

    def blocks(hidden, head):
        return jnp.sum(weights * token_statistics(hidden, head, targets, counted, rows=rows).nll)

    def plain(hidden, head):
        return jnp.sum(weights * plain_nll(hidden, head, targets, counted))

    expected = jax.grad(plain, argnums=(0, 1))(hidden, head)
    chex.assert_trees_all_close(jax.jit(jax.grad(blocks, argnums=(0, 1)))(hidden, head), expected, atol=1e-4)


def test_where_nothing_counts_nothing_is_lost_and_nothing_learned():
    hidden, head, targets, counted = problem()

    def total(hidden):
        statistics = token_statistics(hidden, head, targets, jnp.zeros_like(counted), rows=3)
        return jnp.sum(statistics.nll), statistics.hit

    (value, hit), gradient = jax.value_and_grad(total, has_aux=True)(hidden)
    assert value == 0
    assert hit.all()
    np.testing.assert_array_equal(gradient, 0)


def test_what_does_not_count_is_not_looked_at():
    hidden, head, targets, counted = problem()
    broken = jnp.where(counted[..., None], hidden, jnp.nan)
    clean, blind = (token_statistics(each, head, targets, counted, rows=4) for each in (hidden, broken))
    chex.assert_trees_all_equal(blind, clean)


def test_clients_under_a_vmap_share_the_number_of_blocks():
    hidden, head, targets, counted = problem()
    masks = jnp.stack([counted, jnp.ones_like(counted), jnp.zeros_like(counted)])

    def gradient(mask, axis):
        return jax.grad(lambda x: jnp.sum(token_statistics(x, head, targets, mask, rows=3, axis=axis).nll))(hidden)

    together = jax.vmap(lambda mask: gradient(mask, "clients"), axis_name="clients")(masks)
    for mask, found in zip(masks, together, strict=True):
        np.testing.assert_allclose(found, gradient(mask, None), atol=1e-6)


def test_the_first_of_equally_likely_tokens_is_the_hit():
    head = jnp.array([[0.0, 3.0, 1.0, 3.0, 3.0, 0.0]])
    hit = token_statistics(jnp.ones((6, 1)), head, jnp.arange(6), jnp.ones(6, bool), rows=4).hit
    np.testing.assert_array_equal(hit, [False, True, False, False, False, False])


def test_large_logits_stay_finite():
    hidden, head, targets, counted = problem(vocabulary=8)
    statistics = token_statistics(1e4 * hidden, head, targets, counted, rows=3)
    gradient = jax.grad(lambda x: jnp.sum(token_statistics(x, head, targets, counted, rows=3).nll))(1e4 * hidden)
    np.testing.assert_allclose(statistics.nll, plain_nll(1e4 * hidden, head, targets, counted), rtol=1e-5)
    assert jnp.isfinite(gradient).all()


def test_neither_pass_holds_all_logits():
    tokens, vocabulary, rows = 1024, 512, 32
    hidden, head = jnp.ones((tokens, 8)), jnp.ones((8, vocabulary))
    targets, counted = jnp.zeros(tokens, dtype=jnp.int32), jnp.ones(tokens, bool)

    def total(hidden):
        return jnp.sum(loss.token_statistics(hidden, head, targets, counted, rows=rows).nll)

    all_logits = tokens * vocabulary * 4
    memory = jax.jit(jax.grad(total)).lower(hidden).compile().memory_analysis()
    assert memory.temp_size_in_bytes < all_logits / 4


@pytest.fixture
def mask():
    return jnp.array([[1, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1]], dtype=bool)


def test_completion_statistics_score_each_token_from_its_predecessor(config, base, adapter, tokens, mask):
    logits = forward(config, base, adapter, tokens)
    expected = -np.asarray(jax.nn.log_softmax(logits))
    statistics = completion_statistics(config, base, adapter, tokens, mask, compute=Compute(head_rows=3))
    chex.assert_shape(statistics.nll, (2, 6))
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

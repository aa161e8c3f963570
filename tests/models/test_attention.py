"""The blocked and the splash kernel are JAX's attention, in values and gradients; which kernel a platform gets."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.models import attention
from devft_jax.models.attention import causal, kernel_for


def inputs(length, *, batch=2, heads=4, kv_heads=2, size=8, dtype="float32"):
    keys = jax.random.split(jax.random.key(length), 4)
    shapes = [(batch, length, count, size) for count in (heads, kv_heads, kv_heads, heads)]
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def values_and_gradients(kernel, window, queries, keys, values, weights):
    attend = kernel if callable(kernel) else causal(kernel, length=queries.shape[1], window=window)

    def total(queries, keys, values):
        mixed, nothing = attend(queries, keys, values, None)
        assert nothing is None
        return jnp.sum(weights.astype("float32") * mixed), mixed

    (_, mixed), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(queries, keys, values)
    return mixed, gradients


# Within a block, at its border, over several blocks whose last is cut; a window inside a block, across blocks, and beyond.
@pytest.mark.parametrize(
    ("length", "window"), [(1, None), (5, 2), (8, None), (20, None), (20, 3), (20, 11), (20, 20), (33, 9)]
)
def test_blocked_attention_is_jaxs(monkeypatch, length, window):
    monkeypatch.setattr(attention, "SMALLEST_BLOCK", 8)
    given = inputs(length)
    chex.assert_trees_all_close(
        values_and_gradients("blocked", window, *given), values_and_gradients("xla", window, *given), atol=1e-5
    )


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_any_number_of_key_heads(monkeypatch, kv_heads):
    monkeypatch.setattr(attention, "SMALLEST_BLOCK", 8)
    given = inputs(19, kv_heads=kv_heads)
    chex.assert_trees_all_close(
        values_and_gradients("blocked", None, *given), values_and_gradients("xla", None, *given), atol=1e-5
    )


# Less than a tile, a whole one, and two of which the last is cut; a window across their border.
@pytest.mark.parametrize(("length", "window"), [(20, None), (128, None), (140, None), (140, 30)])
def test_splash_attention_is_jaxs(length, window):
    given = inputs(length, batch=1)

    def attend(queries, keys, values, memory):
        return attention.splash_attention(window, queries, keys, values, interpret=True), memory

    chex.assert_trees_all_close(
        values_and_gradients(attend, window, *given), values_and_gradients("xla", window, *given), atol=2e-5
    )


def test_splash_attention_compiles_for_tpus_under_the_vmap_of_a_chunk():
    queries, keys, values, _ = (jnp.stack([leaf, leaf]) for leaf in inputs(300, dtype="bfloat16"))

    def total(queries, keys, values):
        mixed, _ = jax.vmap(functools.partial(causal("splash", length=300), cache=None))(queries, keys, values)
        return jnp.sum(mixed.astype("float32"))

    exported = jax.export.export(jax.jit(jax.grad(total)), platforms=["tpu"])(queries, keys, values)
    assert "tpu_custom_call" in exported.mlir_module()


def test_half_precision_stays_half_and_accumulates_in_float32():
    given = inputs(70, dtype="bfloat16")
    mixed, gradients = values_and_gradients("blocked", None, *given)
    assert mixed.dtype == gradients[0].dtype == gradients[1].dtype == jnp.bfloat16
    exact = values_and_gradients("xla", None, *(leaf.astype("float32") for leaf in given))
    for found, wanted in zip(jax.tree.leaves((mixed, gradients)), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(found.astype("float32"), wanted, atol=0.02 * float(jnp.abs(wanted).max()))


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_inner_products_are_sums_of_products(monkeypatch, backend):
    a, b = (jax.random.normal(jax.random.key(seed), (2, 3, 5)) for seed in range(2))
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    np.testing.assert_allclose(
        attention.inner_products(a, b), np.sum(np.asarray(a) * np.asarray(b), -1, keepdims=True), rtol=1e-5
    )


def test_scores_of_any_size_stay_finite():
    queries, keys, values, weights = inputs(12)
    mixed, gradients = values_and_gradients("blocked", None, 1e4 * queries, 1e4 * keys, values, weights)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((mixed, gradients)))


def test_nothing_of_the_size_of_the_square_is_kept_and_half_of_it_is_not_computed(monkeypatch):
    monkeypatch.setattr(attention, "SMALLEST_BLOCK", 8)
    length, size = 64, 4
    given = inputs(length, batch=1, heads=1, kv_heads=1, size=size)[:3]
    _, backward = jax.vjp(lambda *given: attention.blocked_attention(None, *given), *given)
    # Queries, keys, values, output, and one number for each query.
    assert sum(leaf.size for leaf in jax.tree.leaves(backward)) == length * (4 * size + 1)
    program = jax.make_jaxpr(lambda *given: attention.blocked_attention(None, *given))(*given)
    text = str(program)
    assert f"[1,{length},{length}]" not in text
    assert f"[1,8,{length}]" in text
    assert "[1,8,8]" in text


def test_few_blocks_are_compiled_for_any_length():
    for length in (1, 64, 65, 512, 513, 4096, 5000):
        blocks = list(attention._blocks(length, None))
        assert len(blocks) <= attention.MOST_BLOCKS
        covered = np.concatenate([np.arange(block.start, block.stop) for block, _, _ in blocks])
        np.testing.assert_array_equal(covered, np.arange(length))


@pytest.mark.parametrize(
    ("backend", "dtype", "head_size", "length", "asked", "expected"),
    [
        ("gpu", "bfloat16", 64, 512, "auto", "cudnn"),
        ("gpu", "float32", 64, 512, "auto", "xla"),
        ("gpu", "bfloat16", 60, 512, "auto", "xla"),
        ("gpu", "bfloat16", 64, 512, "xla", "xla"),
        ("cpu", "bfloat16", 64, 512, "auto", "blocked"),
        ("tpu", "bfloat16", 64, 128, "auto", "splash"),
        ("tpu", "bfloat16", 64, 120, "auto", "xla"),
        ("tpu", "bfloat16", 64, 512, "blocked", "blocked"),
        ("cpu", "float32", 64, 512, "cudnn", "cudnn"),
    ],
)
def test_attention_follows_the_platform(monkeypatch, backend, dtype, head_size, length, asked, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert kernel_for(asked, dtype=dtype, head_size=head_size, length=length) == expected

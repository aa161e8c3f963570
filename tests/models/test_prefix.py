"""A pass that starts above the layers without an adapter is the pass that runs them (invariant I35)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.models.llama import Compute, forward, prefix_states
from devft_jax.models.loss import completion_loss
from devft_jax.models.quantization import quantize_base
from tests.models.conftest import CONFIG, random_adapter, random_base

DEPTH, BARE = 5, 3
DEEP = dataclasses.replace(CONFIG, layers=DEPTH, head_size=8)


@pytest.fixture(scope="module")
def parts():
    tokens = jnp.asarray(np.random.default_rng(0).integers(1, DEEP.vocabulary, (3, 9)), jnp.int32)
    mask = jnp.arange(9) >= jnp.array([[2], [4], [5]])
    top = random_adapter(dataclasses.replace(DEEP, layers=DEPTH - BARE), dropout=0.3)
    return random_base(DEEP), top, tokens, mask


def loss_and_gradient(compute, base, adapter, tokens, mask, prefix):
    def loss(lora):
        given = adapter.replace(lora=lora)
        return completion_loss(DEEP, base, given, tokens, mask, compute=compute, key=jax.random.key(3), prefix=prefix)

    return jax.value_and_grad(loss)(adapter.lora)


@pytest.mark.parametrize(
    ("kind", "compute", "tolerance"),
    [
        ("none", Compute(), 1e-5),
        ("none", Compute(remat="dots", frozen_layers=1), 1e-5),
        ("int8", Compute(), 1e-5),
        ("none", Compute(dtype="bfloat16"), 2e-2),
    ],
)
def test_loss_and_gradients_are_those_without_a_prefix(parts, kind, compute, tolerance):
    base, adapter, tokens, mask = parts
    if kind != "none":
        base = quantize_base(base, kind)
    prefix = jax.jit(prefix_states, static_argnums=(0, 3), static_argnames="compute")(
        DEEP, base, tokens, BARE, compute=compute
    )
    assert prefix.dtype == compute.dtype
    run = jax.jit(loss_and_gradient, static_argnums=0)
    (plain, whole), (cached, above) = (run(compute, base, adapter, tokens, mask, given) for given in (None, prefix))
    np.testing.assert_allclose(cached, plain, rtol=tolerance)
    for left, right in zip(jax.tree.leaves(above), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(left, right, rtol=10 * tolerance, atol=tolerance * float(np.abs(right).max()))


def test_logits_are_those_without_a_prefix(parts):
    base, adapter, tokens, _ = parts
    prefix = prefix_states(DEEP, base, tokens, BARE)
    plain, cached = (forward(DEEP, base, adapter, tokens, prefix=given) for given in (None, prefix))
    np.testing.assert_allclose(cached, plain, rtol=1e-5, atol=1e-5 * float(np.abs(plain).max()))


def test_padding_and_what_it_holds_do_not_matter(parts):
    base, adapter, tokens, mask = parts
    short = prefix_states(DEEP, base, tokens[:, :6], BARE)
    long = prefix_states(DEEP, base, tokens.at[:, 6:].set(0), BARE)
    np.testing.assert_allclose(long[:, :6], short, rtol=1e-5, atol=1e-5)
    counted = mask & (jnp.arange(9) < 6)
    losses = [
        completion_loss(DEEP, base, adapter, tokens, counted, prefix=prefix)
        for prefix in (long, long.at[:, 6:].set(0.0), long.at[:, 6:].set(7.0))
    ]
    np.testing.assert_array_equal(losses[1:], losses[0])


def test_an_adapter_of_all_layers_has_nothing_below_it(parts):
    base, _, tokens, _ = parts
    with pytest.raises(ValueError, match="no layer runs below it"):
        forward(DEEP, base, random_adapter(DEEP), tokens, prefix=prefix_states(DEEP, base, tokens, BARE))

"""FeDeRA: principal factors of the frozen weights, the base at the start, and the learned part alone at a stage's end."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.developmental import LayerMap, fuse
from devft_jax.errors import InputError
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.federa import federa
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.messages import message_bytes
from devft_jax.federated.principal import principal_factors
from devft_jax.models.llama import forward
from devft_jax.models.quantization import quantize_base
from tests.federated.harness import BASE, aggregated, assert_close, init, participant, trained_messages
from tests.tiny import CONFIG

OPTIONS = MethodConfig(rank=3, alpha=4.5, dropout=0.0, targets=("v", "down"))
SCALE = 1.5
IDENTITY = LayerMap.identity(4)
FUSED = LayerMap(
    jnp.array([[0.8, 0.1, 0.1, 0], [0, 0, 0, 1]], jnp.float32), jnp.array([0, 0, 0, 1], jnp.int32), jnp.ones(2, bool)
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, CONFIG.vocabulary - 1, (2, 7)), jnp.int32)

made = functools.cache(federa)


def entered(algorithm, layers=IDENTITY, base=BASE, full=None):
    """The first state of a stage and its base."""
    stage_base = base.replace(blocks=fuse(layers, base.blocks))
    return algorithm.enter(algorithm.submodel(init(algorithm) if full is None else full, layers), stage_base), stage_base


def noisy(seed):
    return lambda who, leaf: (
        leaf + jnp.asarray(0.1 * np.random.default_rng([seed, who, leaf.size]).normal(size=leaf.shape), "float32")
    )


def update(adapter):
    """delta + scale a b of every projection, f64."""
    return {
        name: np.asarray(adapter.delta[name], np.float64)
        + float(adapter.scale) * np.asarray(factors.a, np.float64) @ np.asarray(factors.b, np.float64)
        for name, factors in adapter.lora.items()
    }


def test_the_factors_are_the_first_singular_triplets():
    server, _ = entered(made(OPTIONS))
    for name, factors in server.initial.items():
        for layer in range(4):
            weight = np.asarray(getattr(BASE.blocks, name)[layer], np.float64)
            left, values, right = np.linalg.svd(weight)
            truncated = left[:, :3] * values[:3] @ right[:3]
            a, b = (np.asarray(leaf[layer], np.float64) for leaf in (factors.a, factors.b))
            np.testing.assert_allclose(SCALE * a @ b, truncated, atol=1e-5)
            # The singular values are shared out evenly, and the largest entry of every u is positive.
            np.testing.assert_allclose(a.T @ a, np.diag(values[:3] / SCALE), atol=1e-5)
            np.testing.assert_allclose(b @ b.T, np.diag(values[:3] / SCALE), atol=1e-5)
            assert np.all(a[np.abs(a).argmax(axis=0), range(3)] > 0)


def test_what_is_frozen_and_the_factors_make_up_the_weight():
    server, _ = entered(made(OPTIONS))
    for name, delta in server.delta.items():
        weight = np.asarray(getattr(BASE.blocks, name), np.float64)
        residual = weight + np.asarray(delta, np.float64)
        factors = server.initial[name]
        product = np.asarray(factors.a, np.float64) @ np.asarray(factors.b, np.float64)
        np.testing.assert_allclose(residual + SCALE * product, weight, atol=1e-6)
        # The principal part is really gone.
        assert np.linalg.norm(residual) < 0.9 * np.linalg.norm(weight)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["none", "nf4"])
@pytest.mark.parametrize("layers", [IDENTITY, FUSED], ids=["identity", "fused"])
def test_a_client_starts_at_the_base(layers, kind, dtype):
    algorithm = made(dataclasses.replace(OPTIONS, message_dtype=dtype))
    base = BASE if kind == "none" else quantize_base(BASE, kind)
    server, stage_base = entered(algorithm, layers, base)
    train, frozen = algorithm.start(participant(algorithm, server))
    assert float(jnp.abs(train["v"].b).max()) > 0.1
    config = CONFIG.with_layers(layers.num_groups)
    found = forward(config, stage_base, algorithm.adapter(train, frozen), TOKENS)
    np.testing.assert_allclose(found, forward(config, stage_base, None, TOKENS), atol=2e-4)


def test_a_packed_weight_is_decomposed_as_it_is_used():
    packed = quantize_base(BASE, "int8")
    delta = jnp.zeros((4, 16, 8))
    found = principal_factors(packed.blocks.v, delta, 3, SCALE)
    expected = principal_factors(packed.blocks.v.dequantize("float32"), delta, 3, SCALE)
    assert_close(found, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_server_takes_the_weighted_mean_of_the_factors(dtype):
    algorithm, weights = made(dataclasses.replace(OPTIONS, message_dtype=dtype)), [3.0, 11.0, 0.5]
    server, _ = entered(algorithm)
    ups, _ = trained_messages(algorithm, server, [{}] * 3, move=noisy(1))
    after, metrics = aggregated(algorithm, server, ups, weights)
    own = []
    for who in range(3):
        train, _ = algorithm.start(participant(algorithm, server))
        own.append(jax.tree.map(lambda leaf, who=who: noisy(1)(who, leaf), train))
    mean = jax.tree.map(lambda *leaves: np.average(np.stack(leaves), axis=0, weights=weights), *own)
    assert_close(after.lora, mean, atol=1e-5 if dtype == "float32" else 2e-3)
    assert message_bytes(ups[0]) == message_bytes(
        fedit(dataclasses.replace(OPTIONS, message_dtype=dtype)).broadcast(init(fedit(OPTIONS)))
    )
    error = learned = 0.0
    for name, factors in server.initial.items():
        a, b = (np.stack([np.asarray(getattr(each[name], leaf), np.float64) for each in own]) for leaf in ("a", "b"))
        products = np.tensordot(np.array(weights) / np.sum(weights), a @ b, 1)
        error += np.sum((products - np.asarray(mean[name].a) @ np.asarray(mean[name].b)) ** 2)
        learned += np.sum((products - np.asarray(factors.a, np.float64) @ np.asarray(factors.b, np.float64)) ** 2)
    assert metrics["aggregation_error"] == pytest.approx((error / learned) ** 0.5, rel=0.35)


def test_every_layer_of_a_group_gets_what_was_learned_and_no_principal_part():
    algorithm = made(OPTIONS)
    full = init(algorithm)
    rng = np.random.default_rng(3)
    full = full.replace(
        delta=jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape), "float32"), full.delta)
    )
    began, _ = entered(algorithm, FUSED, full=full)
    for name, leaf in update(algorithm.view(began)).items():
        np.testing.assert_allclose(leaf, np.tensordot(np.asarray(FUSED.fuse), full.delta[name], 1), atol=1e-5)
    ups, _ = trained_messages(algorithm, began, [{}] * 2, move=noisy(1))
    ended, _ = aggregated(algorithm, began, ups, [1.0, 3.0])
    after = algorithm.transfer(full, ended, FUSED, "copy")
    for name, leaf in update(algorithm.view(after)).items():
        now, first = ended.lora[name], began.initial[name]
        learned = SCALE * (np.asarray(now.a) @ np.asarray(now.b) - np.asarray(first.a) @ np.asarray(first.b))
        np.testing.assert_allclose(leaf, np.asarray(full.delta[name]) + learned[[0, 0, 0, 1]], atol=1e-5)
        assert np.abs(learned).max() > 0.05
    # The next stage decomposes the weights with it in them, and begins where this one ended.
    again, _ = entered(algorithm, full=after)
    np.testing.assert_allclose(update(algorithm.view(again))["v"], update(algorithm.view(after))["v"], atol=1e-5)
    weight = np.asarray(BASE.blocks.v[0]) + np.asarray(after.delta["v"][0])
    factors = again.initial["v"]
    values = np.linalg.svd(weight, compute_uv=False)[:3]
    np.testing.assert_allclose(np.linalg.norm(factors.a[0], axis=0) ** 2 * SCALE, values, atol=1e-5)


def test_more_directions_than_a_weight_has_are_refused():
    with pytest.raises(InputError, match=r"rank 9 exceeds the 8 singular values of projection 'v'.*lower the rank"):
        init(federa(dataclasses.replace(OPTIONS, rank=9)))

"""FFA-LoRA: a is frozen and follows from the seed, so that the mean of b gives the mean of the products."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.developmental import LayerMap
from devft_jax.errors import InputError
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.algorithms.ffa_lora import ffa_lora
from tests.federated.harness import (
    FIVE,
    SGD,
    aggregated,
    assert_identical,
    engine,
    init,
    largest_change,
    participant,
    run_round,
    trained_messages,
)

OPTIONS = MethodConfig(rank=3, alpha=4.5, dropout=0.0, targets=("v", "down"))


def factor(server, name):
    return {projection: getattr(factors, name) for projection, factors in server.lora.items()}


@pytest.mark.parametrize("initialisation", ["uniform", "orthonormal"])
def test_the_aggregate_is_the_mean_of_the_products(initialisation):
    algorithm = ffa_lora(dataclasses.replace(OPTIONS, ffa_initialisation=initialisation))
    server, weights = init(algorithm), np.array([3.0, 11.0, 0.5])
    rng = np.random.default_rng(0)
    moves = [jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), factor(server, "b")) for _ in weights]
    ups = [jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), move) for move in moves]
    after, _ = aggregated(algorithm, server, ups, weights)
    for name, factors in after.lora.items():
        a = np.asarray(server.lora[name].a, np.float64)
        products = np.stack([a @ move[name] for move in moves])
        found = np.asarray(factors.a, np.float64) @ np.asarray(factors.b, np.float64)
        np.testing.assert_allclose(found, np.average(products, axis=0, weights=weights), atol=1e-5)


def test_a_stays_bit_for_bit_and_does_not_travel():
    algorithm = ffa_lora(OPTIONS)
    server = init(algorithm)
    result = run_round(engine(algorithm, SGD, 1, 5), server, FIVE)
    assert_identical(factor(result.server, "a"), factor(server, "a"))
    assert largest_change(factor(result.server, "b"), factor(server, "b")) > 1e-3
    size = sum(4 * leaf.size for leaf in factor(server, "b").values())
    assert (result.bytes_up, result.bytes_down) == (5 * size, 5 * size)


def test_everyone_draws_fedits_a_from_the_same_seed():
    server = init(ffa_lora(OPTIONS), seed=8)
    assert_identical(server, init(fedit(OPTIONS), seed=8))
    at_start = participant(ffa_lora(OPTIONS), server)
    assert_identical(at_start.known, factor(server, "a"))


def test_orthonormal_columns_span_those_of_the_uniform_draw():
    uniform = init(ffa_lora(OPTIONS))
    server = init(ffa_lora(dataclasses.replace(OPTIONS, ffa_initialisation="orthonormal")))
    for name, factors in server.lora.items():
        gram = np.einsum("lir,lis->lrs", factors.a, factors.a)
        np.testing.assert_allclose(gram, np.broadcast_to(np.eye(3), gram.shape), atol=1e-5)
        old = np.asarray(uniform.lora[name].a)
        np.testing.assert_allclose(np.asarray(factors.a) @ np.einsum("lir,lis->lrs", factors.a, old), old, atol=1e-5)


def test_more_directions_than_inputs_cannot_be_orthonormal():
    wide = dataclasses.replace(OPTIONS, rank=17, ffa_initialisation="orthonormal")
    with pytest.raises(InputError, match=r"rank 17 exceeds the 16 inputs of projection 'v'.*ffa_initialisation to uniform"):
        init(ffa_lora(wide))


def test_a_is_fused_with_b_without_a_look_at_b():
    algorithm = ffa_lora(OPTIONS)
    server = init(algorithm)
    moved = server.replace(lora={name: each.replace(b=each.b + 1.0) for name, each in server.lora.items()})
    layers = LayerMap(
        jnp.array([[0.7, 0.3, 0, 0], [0, 0, 0.5, 0.5]], jnp.float32), jnp.array([0, 0, 1, 1], jnp.int32), align=True
    )
    stage, other = algorithm.submodel(server, layers), algorithm.submodel(moved, layers)
    assert_identical(factor(stage, "a"), factor(other, "a"))
    after = algorithm.transfer(moved, other, layers, "copy")
    assert_identical(after.lora["v"].a[0], after.lora["v"].a[1])


def test_messages_in_half_precision_accumulate_in_float32():
    algorithm = ffa_lora(dataclasses.replace(OPTIONS, message_dtype="bfloat16"))
    server = init(algorithm)
    ups, _ = trained_messages(algorithm, server, [{}] * 3, move=lambda who, leaf: leaf + [1.0, 1.0078125, 1.0][who])
    assert {leaf.dtype for leaf in jax.tree.leaves(ups)} == {jnp.dtype("bfloat16")}
    after, _ = aggregated(algorithm, server, ups, [1.0, 1.0, 1.0])
    # The mean is no bfloat16 number.
    for leaf in factor(after, "b").values():
        np.testing.assert_allclose(leaf, 1.0 + 0.0078125 / 3, rtol=1e-6)

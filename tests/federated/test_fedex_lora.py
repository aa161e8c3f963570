"""FedEx-LoRA: means of the factors plus a residual that makes the aggregation exact, added alike by server and clients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.accounting.communication import round_messages
from devft_jax.developmental import LayerMap
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.fedex_lora import covariance, fedex_lora
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.messages import message_bytes, ranks_of
from devft_jax.models.adapter import LoraFactors
from devft_jax.models.architecture import ARCHITECTURES
from tests.federated.harness import (
    FIVE,
    SGD,
    aggregated,
    assert_close,
    assert_identical,
    engine,
    init,
    participant,
    run_round,
    trained_messages,
)
from tests.tiny import CONFIG, random_adapter

# At rank 2, v's residual is smaller as factors with two participants and dense with four.
OPTIONS = MethodConfig(rank=2, alpha=3.0, dropout=0.0, targets=("v", "down"))
SCALE = 1.5

made = functools.cache(fedex_lora)


def with_participants(count, **changes):
    return made(dataclasses.replace(OPTIONS, clients_per_round=count, **changes))


def started(algorithm):
    """A state in the middle of training, with a correction and a residual that has not been sent."""
    server = init(algorithm)
    rng = np.random.default_rng(2)
    moved = jax.tree.map(lambda leaf: leaf + jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), server.correction)
    return server.replace(adapter=random_adapter(OPTIONS), correction=moved)


def noisy(seed):
    return lambda who, leaf: (
        leaf + jnp.asarray(np.random.default_rng([seed, who, leaf.size]).normal(size=leaf.shape), "float32")
    )


def update(adapter):
    """delta + scale a b of every projection, f64."""
    return {
        name: np.asarray(adapter.delta[name], np.float64)
        + float(adapter.scale) * np.asarray(factors.a, np.float64) @ np.asarray(factors.b, np.float64)
        for name, factors in adapter.lora.items()
    }


@pytest.mark.parametrize(("participants", "weights"), [(1, [7.0]), (2, [3.0, 11.0]), (4, [3.0, 11.0, 0.5, 2.0])])
def test_the_model_becomes_the_mean_of_the_clients_models(participants, weights):
    algorithm = with_participants(participants)
    server = started(algorithm)
    before = algorithm.view(server).delta
    ups, _ = trained_messages(algorithm, server, [{}] * participants, move=noisy(1))
    after, metrics = aggregated(algorithm, server, ups, weights)
    found = update(algorithm.view(after))
    for name, leaf in found.items():
        old = server.adapter.lora[name]
        own = [SCALE * np.asarray(old.a + up[name].a, "f8") @ np.asarray(old.b + up[name].b, "f8") for up in ups]
        wanted = np.asarray(before[name], np.float64) + np.average(own, axis=0, weights=weights)
        np.testing.assert_allclose(leaf, wanted, atol=2e-5)
    averaging = fedit(OPTIONS)
    assert_close(after.adapter.lora, aggregated(averaging, server.adapter, ups, weights)[0].lora, atol=1e-5)
    # And the mean of factors alone would not have done.
    assert (metrics["residual_norm"] > 1) == (participants > 1)


def test_the_residual_has_the_rank_of_the_explicit_factors():
    trees = [random_adapter(OPTIONS, seed=seed).lora["v"] for seed in range(3)]
    factors = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    shares = np.array([0.2, 0.5, 0.3])
    found = covariance(factors, jnp.asarray(shares, jnp.float32))
    assert (found.a.shape, found.b.shape) == ((4, 16, 4), (4, 4, 8))
    a, b = np.asarray(factors.a, np.float64), np.asarray(factors.b, np.float64)
    mean_a, mean_b = np.tensordot(shares, a, 1), np.tensordot(shares, b, 1)
    wanted = np.einsum("k,klir,klro->lio", shares, a - mean_a, b - mean_b)
    np.testing.assert_allclose(np.asarray(found.a) @ np.asarray(found.b), wanted, atol=1e-5)
    assert np.linalg.matrix_rank(wanted, tol=1e-9).tolist() == [4] * 4


@pytest.mark.parametrize("empty", [0, 2])
def test_an_empty_slot_leaves_the_residual_exact(empty):
    algorithm = with_participants(3)
    server = started(algorithm)
    ups, _ = trained_messages(algorithm, server, [{}] * 3, move=noisy(1))
    weights = [3.0, 11.0, 0.5]
    weights[empty] = 0.0
    after, _ = aggregated(algorithm, server, ups, weights)
    before = algorithm.view(server).delta
    for name, leaf in update(algorithm.view(after)).items():
        old = server.adapter.lora[name]
        own = [SCALE * np.asarray(old.a + up[name].a, "f8") @ np.asarray(old.b + up[name].b, "f8") for up in ups]
        wanted = np.asarray(before[name], np.float64) + np.average(own, axis=0, weights=weights)
        np.testing.assert_allclose(leaf, wanted, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("participants", [1, 2, 4])
def test_clients_add_the_residual_that_the_server_adds(participants, dtype):
    algorithm = with_participants(participants, message_dtype=dtype)
    server = started(algorithm)
    ups, _ = trained_messages(algorithm, server, [{}] * participants, move=noisy(1))
    after, _ = aggregated(algorithm, server, ups, [1.0] * participants)
    at_start = participant(algorithm, after)
    lora, residual = at_start.down
    assert {leaf.dtype for leaf in jax.tree.leaves((lora, residual.value))} == {jnp.dtype(dtype)}
    _, frozen = algorithm.start(at_start)
    assert_identical(frozen, algorithm.view(after).delta)


def test_the_residual_travels_as_factors_or_dense_whichever_is_smaller():
    forms = {}
    for participants in (2, 4):
        increment = init(with_participants(participants)).correction.increment
        forms[participants] = {name: isinstance(leaf, LoraFactors) for name, leaf in increment.items()}
        for name, leaf in increment.items():
            fan_in, fan_out = CONFIG.projection_shape(name)
            directions = (participants - 1) * OPTIONS.rank
            assert message_bytes(leaf) == 4 * 4 * min(fan_in * fan_out, directions * (fan_in + fan_out))
    assert forms == {2: {"v": True, "down": True}, 4: {"v": False, "down": True}}
    assert init(with_participants(1)).correction.increment == {}


def test_a_message_is_no_larger_than_a_dense_residual():
    config = ARCHITECTURES["meta-llama/Llama-2-7b-hf"]
    a = b = 8_388_608
    for participants, residual in ((2, a + b), (10, 9 * (a + b)), (200, 2 * 32 * 4096**2)):
        algorithm = fedex_lora(MethodConfig(clients_per_round=participants, message_dtype="bfloat16"))
        messages = round_messages(algorithm, config, 32)
        assert (messages.bytes_down, messages.bytes_up) == (2 * (a + b + residual), 2 * (a + b))


def test_a_residual_that_does_not_exist_is_not_charged():
    """What travels in the first rounds: the factors alone, and from the second round on the residual beside them."""
    algorithm = with_participants(3)
    full = init(algorithm)
    fused = LayerMap(jnp.array([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], jnp.float32), jnp.array([0, 0, 1, 1], jnp.int32))

    def down_of(server):
        down = participant(algorithm, server).down
        return message_bytes(down, [int(part) for part in ranks_of(down)]), message_bytes(down[0])

    def after_a_round(server):
        ups, _ = trained_messages(algorithm, server, [{}] * 3, move=noisy(1))
        return aggregated(algorithm, server, ups, [1.0] * 3)[0]

    for layer_map in (fused, LayerMap.identity(4)):
        stage = algorithm.submodel(full, layer_map)
        charged, factors = down_of(stage)
        # At full depth the last residual of the stage before has not travelled yet.
        assert (charged == factors) == (layer_map is fused)
        stage = after_a_round(stage)
        charged, factors = down_of(stage)
        assert charged > factors
        full = algorithm.transfer(full, stage, layer_map, "copy")
    assert down_of(init(algorithm)) == (message_bytes(init(algorithm).adapter.lora),) * 2


def test_rounds_charge_and_owe_what_travels():
    algorithm = with_participants(5)
    first = run_round(engine(algorithm, SGD, 1, 5), init(algorithm), FIVE)
    second = run_round(engine(algorithm, SGD, 1, 5), first.server, FIVE)
    factors = message_bytes(init(algorithm).adapter.lora)
    assert (first.bytes_down, first.bytes_cumulative) == (5 * factors, 0)
    assert second.bytes_down == 5 * (factors + second.bytes_cumulative) > 5 * factors


def test_it_charges_those_who_were_away_and_weighs_all_alike():
    algorithm = with_participants(2)
    down = algorithm.broadcast(init(algorithm))
    # The factors are sent anew in every round; what adds up is the residual.
    assert message_bytes(algorithm.cumulative(down)) == message_bytes(down) - message_bytes(down[0]) > 0
    assert with_participants(2).weighting == "uniform"

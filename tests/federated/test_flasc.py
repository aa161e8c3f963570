"""FLASC: what sparse messages keep and weigh, where clients begin, and AdamW on the mean of what they send."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.accounting.communication import message_elements, round_messages
from devft_jax.developmental import LayerMap
from devft_jax.federated.algorithm import Share
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.flasc import flasc
from devft_jax.federated.messages import message_bytes
from devft_jax.federated.sparse import entries_sent, sparse
from tests.federated.harness import (
    FIVE,
    SEVEN,
    SGD,
    TWO,
    aggregated,
    assert_close,
    assert_identical,
    changed_to,
    contributed,
    engine,
    fedit_with,
    init,
    largest_change,
    participant,
    plain_client,
    plain_sgd,
    run_round,
    server_with,
    trained_messages,
)
from tests.federated.test_fedit import LLAMA2_7B, LLAMA2_13B, LLAMA31_8B
from tests.tiny import random_adapter

ETA, BETA1, BETA2 = 0.02, 0.8, 0.95


def made(options=SEVEN, **changes):
    values = {"server_learning_rate": ETA, "server_beta1": BETA1, "server_beta2": BETA2, **changes}
    return flasc(dataclasses.replace(options, **values))


def begun(algorithm, options=SEVEN):
    """The first state, with an adapter in the middle of training."""
    return init(algorithm).replace(adapter=server_with(options))


def entries(tree):
    """All entries f64[P] in the order of the leaves."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def largest(tree, density):
    """The pytree's entries with all but the largest floor(density P) zero, by a stable sort."""
    vector = entries(tree)
    kept = np.argsort(-np.abs(vector), kind="stable")[: entries_sent(density, len(vector))]
    result = np.zeros_like(vector)
    result[kept] = vector[kept]
    return result


@pytest.mark.parametrize(
    ("density", "size", "count"), [(0.07, 100, 7), (0.29, 100, 29), (0.5, 3, 1), (0.001, 100, 1), (1.0, 7, 7)]
)
def test_the_number_of_entries_is_that_of_the_density_as_written(density, size, count):
    assert entries_sent(density, size) == count
    assert sparse(jnp.arange(1.0, size + 1), density, "float32").values.size == count


@pytest.mark.parametrize("density", [0.01, 0.03, 0.25, 0.9, 1.0])
def test_the_largest_entries_of_all_leaves_together_travel(density):
    lora = random_adapter(SEVEN, seed=3).lora
    size = len(entries(lora))
    message = sparse(lora, density, "float32")
    np.testing.assert_array_equal(entries(message.dense()), largest(lora, density))
    assert jax.tree.structure(message.dense()) == jax.tree.structure(lora)
    assert np.count_nonzero(entries(message.dense())) == message.values.size == entries_sent(density, size)


@pytest.mark.parametrize(
    ("density", "position_bytes"),
    [(0.02, lambda k, size: 4 * k), (0.04, lambda k, size: -(-size // 8)), (1.0, lambda k, size: 0)],
)
@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
def test_positions_travel_in_the_smaller_form(density, position_bytes, dtype, width):
    lora = random_adapter(SEVEN, seed=3).lora
    size = len(entries(lora))
    count = entries_sent(density, size)
    message = sparse(lora, density, dtype)
    assert message_bytes(message) == width * count + position_bytes(count, size)
    assert position_bytes(count, size) <= min(4 * count, -(-size // 8))
    rounded = [jnp.asarray(leaf, dtype).astype("float32") for leaf in jax.tree.leaves(lora)]
    kept = largest(lora, density) != 0
    np.testing.assert_array_equal(entries(message.dense()), np.where(kept, entries(rounded), 0))


@given(
    values=st.lists(st.sampled_from([0.0, -1.0, 1.0, 2.0, -2.0, 0.5]), min_size=37, max_size=37),
    density=st.sampled_from([0.01, 0.3, 0.77, 1.0]),
)
def test_ties_go_to_the_first_entries(values, density):
    tree = {"a": jnp.array(values, jnp.float32), "b": jnp.ones((2, 3))}
    message = jax.jit(sparse, static_argnums=(1, 2))(tree, density, "float32")
    np.testing.assert_array_equal(entries(message.dense()), largest(tree, density))


def test_clients_begin_at_the_sparse_point_and_train_all_entries():
    algorithm = made(TWO, density_up=1.0)
    server = begun(algorithm, TWO)
    start, _ = algorithm.start(participant(algorithm, server))
    np.testing.assert_allclose(entries(start), largest(server.adapter.lora, 0.25), atol=1e-7)
    member = FIVE[0]
    trained, losses = plain_client(member, start, plain_sgd())
    found = run_round(engine(algorithm, SGD, 1, 1), server, [member])
    np.testing.assert_allclose(found.losses[0], losses, atol=1e-5)
    moved = entries(trained) != entries(start)
    assert moved.mean() > 0.9
    # Adam's first step is eta in the direction of the update, wherever that is not tiny.
    update = entries(trained) - entries(start)
    step = entries(found.server.adapter.lora) - entries(server.adapter.lora)
    large = np.abs(update) > 1e-4
    np.testing.assert_allclose(step[large], ETA * np.sign(update)[large], rtol=1e-2)


def test_clients_send_the_largest_entries_of_their_update():
    algorithm = made()
    server = begun(algorithm)
    at_start = participant(algorithm, server)
    start, _ = algorithm.start(at_start)
    trained = random_adapter(SEVEN, seed=8).lora
    up, _ = algorithm.finish(at_start, trained)
    np.testing.assert_allclose(entries(up.dense()), largest(optax.tree.sub(trained, start), 0.25), atol=1e-6)


def test_dense_messages_average_as_fedit_does_with_equal_weights():
    algorithm = made(density_down=1.0, density_up=1.0)
    server = begun(algorithm)
    assert_identical(algorithm.view(server), server.adapter)
    start, _ = algorithm.start(participant(algorithm, server))
    assert_identical(start, server.adapter.lora)
    trees = [random_adapter(SEVEN, seed=index).lora for index in range(4)]
    ups = [algorithm.finish(participant(algorithm, server), tree)[0] for tree in trees]
    sums = contributed(algorithm, ups, [1.0] * 4)
    # A server that took its pseudo-gradient in one step of size 1 would stand at the plain mean.
    stepped = jax.tree.map(lambda x, total: x + total / sums.weight, server.adapter.lora, sums.total)
    ups = changed_to(trees, server_with(SEVEN).lora)
    federated, _ = aggregated(fedit_with(SEVEN), server_with(SEVEN), ups, [1.0] * 4)
    assert_close(stepped, federated.lora)
    assert algorithm.weighting == "uniform"


def test_rounds_are_steps_of_adam_on_the_mean_update():
    algorithm = made()
    server = begun(algorithm)
    x = entries(server.adapter.lora)
    m, v = np.zeros_like(x), np.zeros_like(x)
    for age in range(1, 4):
        ups, _ = trained_messages(
            algorithm, server, [{}] * 3, move=lambda who, leaf, by=age: leaf + 0.1 * by * jnp.sin((who + 1) * 50 * leaf + by)
        )
        gradient = -sum(entries(up.dense()) for up in ups) / 3
        m = BETA1 * m + (1 - BETA1) * gradient
        v = BETA2 * v + (1 - BETA2) * gradient**2
        step = -ETA * m / (1 - BETA1**age) / (np.sqrt(v / (1 - BETA2**age)) + 1e-8)
        server, metrics = aggregated(algorithm, server, ups, [1.0] * 3)
        x = x + step
        np.testing.assert_allclose(entries(server.adapter.lora), x, atol=1e-5)
        assert metrics["update_norm"] == pytest.approx(np.linalg.norm(step), rel=1e-4)


def test_what_is_judged_is_the_adapter_as_it_is_sent():
    algorithm = made(density_down=0.1)
    server = begun(algorithm)
    np.testing.assert_allclose(entries(algorithm.view(server).lora), largest(server.adapter.lora, 0.1), atol=1e-7)
    assert_identical(participant(algorithm, server).down.dense(), algorithm.view(server).lora)


def test_masking_loses_nothing_of_layers_that_do_not_learn():
    algorithm = made(TWO)
    server = begun(algorithm, TWO)
    rows = np.array([True, False, True, False])
    found = run_round(engine(algorithm), server, FIVE, train_rows=rows)
    for new, old in zip(*map(jax.tree.leaves, (found.server.adapter.lora, server.adapter.lora)), strict=True):
        assert_identical(new[~rows], old[~rows])
        assert largest_change(new[rows], old[rows]) > 1e-3
    layers = LayerMap.identity(4)
    frozen = dataclasses.replace(layers, train=jnp.asarray(rows))
    back = algorithm.transfer(server, found.server, frozen, "copy")
    for new, old in zip(*map(jax.tree.leaves, (back.adapter.lora, server.adapter.lora)), strict=True):
        assert_identical(new[~rows], old[~rows])


def test_a_stage_has_a_mask_of_its_own_and_begins_anew():
    algorithm = made()
    full = begun(algorithm)
    ups, _ = trained_messages(algorithm, full, [{}], move=lambda who, leaf: leaf + 0.1)
    trained, _ = aggregated(algorithm, full, ups, [1.0])
    layers = LayerMap(
        fuse=jnp.array([[0.9, 0.1, 0, 0], [0, 0, 0.5, 0.5]], jnp.float32), assign=jnp.array([0, 0, 1, 1], jnp.int32)
    )
    stage = algorithm.submodel(trained, layers)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(stage.moments))
    down = algorithm.broadcast(stage)
    assert down.values.size == math.floor(0.25 * len(entries(stage.adapter.lora)))
    assert down.values.size < algorithm.broadcast(full).values.size
    back = algorithm.transfer(full, stage, layers, "copy")
    assert_identical(back.moments, full.moments)
    assert largest_change(back.adapter.lora, full.adapter.lora) > 0.1


def test_padding_adds_nothing_and_sums_are_float32():
    algorithm = made(message_dtype="bfloat16")
    server = begun(algorithm)
    ups, _ = trained_messages(algorithm, server, [{}], move=lambda who, leaf: leaf + 0.1)
    assert ups[0].values.dtype == jnp.bfloat16
    sums = algorithm.contribution(ups[0], Share(jnp.float32(2.0), jnp.int32(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(sums)} == {jnp.dtype("float32")}
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(contributed(algorithm, ups, [0.0])))


@pytest.mark.parametrize("model", [LLAMA2_7B, LLAMA31_8B, LLAMA2_13B], ids=["llama2-7b", "llama3.1-8b", "llama2-13b"])
@pytest.mark.parametrize("layers", [1, 4])
def test_bytes_of_the_papers_models(model, layers):
    options = MethodConfig(
        rank=32, alpha=64.0, targets=("q", "v"), message_dtype="bfloat16", density_down=0.25, density_up=1 / 64
    )
    depth = model.layers // layers
    ours, fedits = (round_messages(make, model, depth) for make in (flasc(options), fedit_with(options, "bfloat16")))
    size = message_elements(fedits.up)
    # A quarter with a bit for each entry, a 64th with an int32 for each sent.
    assert ours.bytes_down == 2 * size // 4 + size // 8
    assert ours.bytes_up == (2 + 4) * size // 64

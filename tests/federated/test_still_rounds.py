"""Directions that no client holds, and those of weights of low rank, can learn; see `devft_jax.testing` for the law."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.developmental import LayerMap, fuse
from devft_jax.models.architecture import PROJECTIONS
from tests.federated.harness import BASE, aggregated, participant, trained_messages
from tests.federated.records import OPTIONS, WEIGHTS, K, assert_same_model, first, made, still
from tests.tiny import CONFIG


@pytest.fixture(autouse=True)
def said_broadcasts():
    """What the server computes broadcasts nothing silently."""
    with jax.numpy_rank_promotion("raise"):
        yield


def gradients(algorithm, server, row):
    """Of a linear function of what a client's adapter adds, by what the client trains; all at its start."""
    train, frozen = algorithm.start(participant(algorithm, server, row))

    def added(train):
        adapter, total = algorithm.adapter(train, frozen), 0.0
        for name, factors in adapter.lora.items():
            weights = np.random.default_rng(len(name)).normal(size=(factors.a.shape[-2], factors.b.shape[-1]))
            total += jnp.einsum("lir,lro,io->", factors.a, factors.b, weights)
        return total

    return algorithm.adapter(train, frozen).lora, algorithm.adapter(jax.grad(added)(train), frozen).lora


def assert_learns(algorithm, server, row, *, rank=OPTIONS.rank):
    """Every one of the client's directions has a gradient, in a or in b, in every layer and projection."""
    lora, slopes = gradients(algorithm, server, row)
    assert set(slopes) == set(OPTIONS.targets)
    for name, slope in slopes.items():
        sizes = np.zeros((slope.a.shape[0], slope.a.shape[-1]))
        # What a client does not train has no gradient, whatever the factor of the other side is.
        for factor, axis in (("a", 1), ("b", 2)):
            if not np.array_equal(getattr(slope, factor), getattr(lora[name], factor)):
                sizes += np.linalg.norm(getattr(slope, factor), axis=axis)
        assert np.all(sizes[:, :rank] > 1e-4), name


def after_a_still_round(algorithm, server, rows):
    """The state and the rows when no client has moved anything."""
    ups, rows = trained_messages(algorithm, server, rows, move=still)
    after, metrics = aggregated(algorithm, server, ups, WEIGHTS[: len(rows)])
    assert all(np.isfinite(value) for value in metrics.values())
    return after, rows


def test_directions_that_no_participant_holds_stay():
    algorithm = made("hetlora", client_ranks=(2, 4))
    server = algorithm.init_server(jax.random.key(0), CONFIG, None)
    small, large = ({"rank": jnp.int32(rank)} for rank in (2, 4))
    after, _ = after_a_still_round(algorithm, server, [small] * K)
    for name, factors in after.lora.items():
        np.testing.assert_allclose(factors.a, server.lora[name].a, atol=1e-7)
    assert_learns(algorithm, after, large)


def test_a_weight_of_low_rank_begins_with_directions_that_learn():
    algorithm = made("federa")
    blocks = fuse(LayerMap.identity(CONFIG.layers), BASE.blocks)
    # One layer of zeros, and one of rank 1.
    for name in PROJECTIONS:
        leaf = getattr(blocks, name)
        leaf = leaf.at[0].set(0.0).at[1].set(jnp.outer(leaf[1, :, 0], leaf[1, 0]))
        blocks = dataclasses.replace(blocks, **{name: leaf})
    full, rows = first(algorithm)
    server = algorithm.enter(algorithm.submodel(full, LayerMap.identity(CONFIG.layers)), BASE.replace(blocks=blocks))
    assert_learns(algorithm, server, rows[0])
    # Beside the base the model is what it was.
    assert_same_model(algorithm.view(server), algorithm.view(full), atol=1e-5)

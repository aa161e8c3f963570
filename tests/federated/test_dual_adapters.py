"""A shared and a personal adapter: what is averaged, what stays with a client, and what a client's model is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.developmental import LayerMap, fuse
from devft_jax.federated.algorithm import Clients
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.dual_adapters import dual_adapters
from tests.federated.harness import (
    BASE,
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
from tests.federated.records import noise, still, update

OPTIONS = MethodConfig(rank=2, alpha=3.0, dropout=0.0, targets=("v", "down"), own_share=0.7)
SCALE = 1.5
WEIGHTS = np.array([7.0, 1.0, 3.0])
FUSED = LayerMap(jnp.array([[0.7, 0.3, 0, 0], [0, 0, 0.5, 0.5]], jnp.float32), jnp.array([0, 0, 1, 1], jnp.int32))

made = functools.cache(dual_adapters)


def moved(seed, who, leaf):
    """A leaf after a client's training, in float64."""
    return np.asarray(noise(seed)(who, np.float32(leaf)), "f8")


def after_rounds(cohorts):
    """The server, the rows, and in float64 the shared factors and every client's own, after rounds of these clients."""
    algorithm = made(OPTIONS)
    server = init(algorithm)
    rows = [algorithm.init_row(server, {}) for _ in range(4)]
    shared = jax.tree.map(lambda leaf: np.asarray(leaf, "f8"), server.adapter.lora)
    own = {who: jax.tree.map(lambda leaf: np.asarray(leaf, "f8"), server.own) for who in range(4)}
    for seed, cohort in enumerate(cohorts):
        weights = WEIGHTS[: len(cohort)]
        ups, new = trained_messages(
            algorithm,
            server,
            [rows[who] for who in cohort],
            move=lambda place, leaf, seed=seed, cohort=cohort: noise(seed)(cohort[place], leaf),
        )
        for who, row in zip(cohort, new, strict=True):
            rows[who] = row
            own[who] = jax.tree.map(functools.partial(moved, seed, who), own[who])
        trained = [jax.tree.map(functools.partial(moved, seed, who), shared) for who in cohort]
        shared = jax.tree.map(
            lambda *leaves, weights=weights: np.average(np.stack(leaves), axis=0, weights=weights), *trained
        )
        server, _ = aggregated(algorithm, server, ups, weights)
    return algorithm, server, rows, shared, own


@pytest.mark.parametrize("cohorts", [[[0]], [[3, 2, 1], [0], [2, 0]]])
def test_a_model_is_the_clients_own_adapter_beside_the_mean_of_the_shared_one(cohorts):
    algorithm, server, rows, shared, own = after_rounds(cohorts)
    for who in range(4):
        found = update(algorithm.personal(server, rows[who]))
        for name, factors in own[who].items():
            wanted = 0.7 * factors.a @ factors.b + 0.3 * shared[name].a @ shared[name].b
            np.testing.assert_allclose(found[name], SCALE * wanted, atol=1e-5)
    # Who has never taken part has never moved its own.
    absent = set(range(4)) - {who for cohort in cohorts for who in cohort}
    for who in absent:
        assert_identical(rows[who], server.own)


def test_it_begins_as_the_base_with_two_different_pairs():
    algorithm = made(OPTIONS)
    server = init(algorithm)
    for added in update(algorithm.personal(server, algorithm.init_row(server, {}))).values():
        np.testing.assert_array_equal(added, 0.0)
    for name, factors in server.own.items():
        assert np.abs(factors.a - server.adapter.lora[name].a).max() > 0.1


def test_clients_train_both_pairs_and_send_the_shared_one():
    algorithm = made(OPTIONS)
    server = init(algorithm)
    bank = jax.device_get(algorithm.init_bank(Clients(5), server))
    first = run_round(engine(algorithm, SGD), server, FIVE, bank=bank)
    second = run_round(engine(algorithm, SGD), first.server, FIVE, bank=first.bank_rows)
    assert second.losses.mean() < first.losses.mean()
    size = sum(4 * leaf.size for leaf in jax.tree.leaves(server.adapter.lora))
    assert (first.bytes_up, first.bytes_down) == (5 * size, 5 * size)
    for name, factors in first.bank_rows.items():
        # Rows of different clients, and both pairs of one, have learned different things.
        assert np.abs(factors.b[0] - factors.b[1]).max() > 1e-4
        assert np.abs(first.server.adapter.lora[name].b).max() > 1e-4
    assert_identical(first.server.own, server.own)


def test_a_stage_maps_both_pairs_like_any_factors():
    algorithm, server, rows, _, _ = after_rounds([[0, 1], [1, 2]])
    stage = algorithm.submodel(server, FUSED)
    assert_close(stage.adapter.lora, fuse(FUSED, server.adapter.lora))
    for mode in ("copy", "delta"):
        small = [algorithm.submodel_row(row, FUSED) for row in rows]
        ups, after = trained_messages(algorithm, algorithm.enter(stage, BASE), small, move=still)
        still_there, _ = aggregated(algorithm, stage, ups, np.ones(4))
        assert_close(still_there.adapter.lora, stage.adapter.lora)
        deep = algorithm.transfer(server, still_there, FUSED, mode)
        kept = algorithm.transfer_row(rows[1], after[1], FUSED, mode)
        for old, new in ((server.adapter.lora, deep.adapter.lora), (rows[1], kept)):
            # A stage that learns nothing changes nothing, or leaves its fused factors in every layer of a group.
            wanted = old if mode == "delta" else jax.tree.map(lambda leaf: leaf[np.array([0, 0, 1, 1])], fuse(FUSED, old))
            assert_close(new, wanted)
        assert_identical(deep.own, server.own)


def test_own_share_one_uses_nothing_shared():
    algorithm = made(MethodConfig(rank=2, alpha=3.0, dropout=0.0, targets=("v", "down"), own_share=1.0))
    server = init(algorithm)
    train, frozen = algorithm.start(participant(algorithm, server, algorithm.init_row(server, {})))
    alone = train.replace(shared=jax.tree.map(jnp.ones_like, train.shared))
    for name, added in update(algorithm.adapter(alone, frozen)).items():
        own = train.own[name]
        np.testing.assert_allclose(added, SCALE * np.asarray(own.a, "f8") @ np.asarray(own.b, "f8"), atol=1e-6)

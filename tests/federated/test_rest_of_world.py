"""Personal adapters beside the mean of the others': who is in the mean, whatever part of the clients takes part."""

import functools

import jax
import numpy as np
import pytest

from devft_jax.developmental import LayerMap
from devft_jax.federated.algorithm import Clients
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.rest_of_world import rest_of_world
from tests.federated.harness import FIVE, SGD, aggregated, assert_identical, engine, init, run_round, trained_messages
from tests.federated.records import noise, update

OPTIONS = MethodConfig(rank=2, alpha=3.0, dropout=0.0, targets=("v", "down"), own_share=0.7)
SCALE = 1.5

made = functools.cache(rest_of_world)


def after_rounds(cohorts):
    """The server, the rows, and every client's own factors in float64, after rounds of these clients."""
    algorithm = made(OPTIONS)
    server = init(algorithm)
    rows = [algorithm.init_row(server, {}) for _ in range(4)]
    own = {who: jax.tree.map(lambda leaf: np.asarray(leaf, "f8"), server.initial) for who in range(4)}
    for seed, cohort in enumerate(cohorts):

        def move(place, leaf, seed=seed, cohort=cohort):
            return noise(seed)(cohort[place], leaf)

        ups, new = trained_messages(algorithm, server, [rows[who] for who in cohort], move=move)
        for who, row in zip(cohort, new, strict=True):
            rows[who] = row
            own[who] = jax.tree.map(
                lambda leaf, seed=seed, who=who: np.asarray(noise(seed)(who, np.float32(leaf)), "f8"), own[who]
            )
        # Their weights have no effect.
        server, _ = aggregated(algorithm, server, ups, [7.0, 1.0, 3.0][: len(cohort)])
    return algorithm, server, rows, own


@pytest.mark.parametrize("cohorts", [[[0]], [[0, 1], [1, 2]], [[3, 2, 1], [0], [2, 0]]])
def test_a_model_is_the_clients_own_adapter_beside_the_mean_of_the_others(cohorts):
    algorithm, server, rows, own = after_rounds(cohorts)
    seen = {who for cohort in cohorts for who in cohort}
    assert int(server.seen) == len(seen)
    for who in range(4):
        found = update(algorithm.personal(server, rows[who]))
        others = sorted(seen - {who})
        for name, factors in own[who].items():
            rest = [np.mean([getattr(own[each][name], part) for each in others], axis=0) if others else 0.0 for part in "ab"]
            wanted = 0.7 * factors.a @ factors.b
            if others:
                wanted = wanted + 0.3 * rest[0] @ rest[1]
            np.testing.assert_allclose(found[name], SCALE * wanted, atol=1e-5)


def test_clients_train_their_own_factors_alone_from_where_they_left_off():
    algorithm = made(OPTIONS)
    server = init(algorithm)
    bank = jax.device_get(algorithm.init_bank(Clients(5), server))
    first = run_round(engine(algorithm, SGD), server, FIVE, bank=bank)
    second = run_round(engine(algorithm, SGD), first.server, FIVE, bank=first.bank_rows)
    assert_identical(second.server.initial, server.initial)
    sums = jax.tree.map(lambda leaf: leaf.sum(axis=0), second.bank_rows.change)
    for total, wanted in zip(jax.tree.leaves(second.server.total), jax.tree.leaves(sums), strict=True):
        np.testing.assert_allclose(total, wanted, atol=1e-5)
    assert second.losses.mean() < first.losses.mean()
    size = sum(4 * leaf.size for leaf in jax.tree.leaves(server.initial))
    assert (first.bytes_up, first.bytes_down) == (5 * size, 5 * (size + 4))


def test_a_stage_maps_sums_and_own_factors_alike():
    algorithm, server, rows, _ = after_rounds([[0, 1], [1, 2]])
    matrix = np.array([[0.7, 0.3, 0, 0], [0, 0, 0.5, 0.5]], np.float32)
    layers = LayerMap(jax.numpy.asarray(matrix), jax.numpy.array([0, 0, 1, 1], "int32"))
    for mode in ("copy", "delta"):
        stage = algorithm.submodel(server, layers)
        deep = algorithm.transfer(server, stage, layers, mode)
        kept = [algorithm.transfer_row(row, algorithm.submodel_row(row, layers), layers, mode) for row in rows]
        for leaves in zip(jax.tree.leaves(deep.total), *(jax.tree.leaves(row.change) for row in kept), strict=True):
            np.testing.assert_allclose(leaves[0], sum(leaves[1:]), atol=1e-5)

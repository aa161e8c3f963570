"""FedSA-LoRA: a is common, every b a client's own, and their consensus is the mean of the personal models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.developmental import LayerMap
from devft_jax.federated.algorithm import Clients
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.fedsa_lora import Row, fedsa_lora
from tests.federated.harness import (
    SGD,
    aggregated,
    assert_close,
    assert_identical,
    client,
    engine,
    init,
    participant,
    run_round,
    trained_messages,
)
from tests.tiny import random_adapter

OPTIONS = MethodConfig(rank=3, alpha=4.5, dropout=0.0, targets=("v", "down"))
POPULATION = 6

algorithm = functools.cache(lambda: fedsa_lora(OPTIONS))


def server_in_training():
    """A common a in the middle of training."""
    server = init(algorithm())
    lora = {name: each.replace(b=jnp.zeros_like(each.b)) for name, each in random_adapter(OPTIONS).lora.items()}
    return server.replace(lora=lora)


def row_of(seed, *, seen=True):
    b = {name: factors.b for name, factors in random_adapter(OPTIONS, seed=seed).lora.items()}
    return Row(b=b, seen=jnp.asarray(seen))


def bank_of(*rows):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def weight_of(adapter):
    """scale a b of every projection."""
    return {
        name: float(adapter.scale) * np.asarray(factors.a, np.float64) @ np.asarray(factors.b, np.float64)
        for name, factors in adapter.lora.items()
    }


def test_the_server_takes_the_weighted_mean_of_a_and_never_sees_b():
    server, rows, weights = server_in_training(), [row_of(seed) for seed in (1, 2, 3)], [3.0, 11.0, 0.5]
    moves = np.random.default_rng(0).normal(size=3)
    ups, new_rows = trained_messages(algorithm(), server, rows, move=lambda who, leaf: leaf + moves[who])
    assert all(set(up) == {"v", "down"} and up["v"].shape == server.lora["v"].a.shape for up in ups)
    after, _ = aggregated(algorithm(), server, ups, weights)
    shift = np.average(moves, weights=weights)
    for name, factors in after.lora.items():
        np.testing.assert_allclose(factors.a, server.lora[name].a + shift, atol=1e-5)
        assert not np.any(factors.b)
    for row, old, move in zip(new_rows, rows, moves, strict=True):
        assert_close(row.b, jax.tree.map(lambda leaf, by=move: leaf + by, old.b), atol=1e-6)
        assert row.seen


def test_training_starts_from_the_common_a_and_the_clients_own_b():
    server, row = server_in_training(), row_of(5)
    train, frozen = algorithm().start(participant(algorithm(), server, row))
    adapter = algorithm().adapter(train, frozen)
    assert_identical({name: factors.a for name, factors in adapter.lora.items()}, {n: f.a for n, f in server.lora.items()})
    assert_identical({name: factors.b for name, factors in adapter.lora.items()}, row.b)


def test_training_one_client_leaves_the_others_rows_bit_for_bit():
    server = server_in_training()
    bank = bank_of(*(row_of(seed, seen=False) for seed in range(POPULATION)))
    before = jax.tree.map(np.copy, bank)
    cohort = engine(algorithm(), SGD, 1, 2)
    alone = run_round(cohort, server, [client(1)], bank=bank)
    assert_identical(bank, before)
    assert alone.bank_rows.seen.tolist() == [True]
    # Nor does it matter who trains beside it, or in which order: a shared b would be handed from client to client.
    straight = run_round(cohort, server, [client(1), client(4)], bank=bank)
    turned = run_round(cohort, server, [client(4), client(1)], bank=bank)
    assert_close(jax.tree.map(lambda leaf: leaf[0], straight.bank_rows), jax.tree.map(lambda leaf: leaf[0], alone.bank_rows))
    assert_close(jax.tree.map(lambda leaf: leaf[::-1], turned.bank_rows), straight.bank_rows)
    assert_close(turned.server, straight.server)


def test_the_consensus_is_the_mean_of_the_models_of_those_who_have_trained():
    server = server_in_training()
    rows = [row_of(1), row_of(2, seen=False), row_of(3), row_of(4)]
    found = weight_of(algorithm().consensus(server, bank_of(*rows)))
    for name, weight in found.items():
        own = [weight_of(algorithm().personal(server, row))[name] for row in rows if row.seen]
        np.testing.assert_allclose(weight, np.mean(own, axis=0), atol=1e-5)


def test_before_anyone_has_trained_the_consensus_is_the_base():
    server = init(algorithm())
    bank = jax.device_get(algorithm().init_bank(Clients(4), server))
    assert bank.seen.tolist() == [False] * 4
    for weight in weight_of(algorithm().consensus(server, bank)).values():
        assert not np.any(weight)


def test_rows_are_mapped_over_layers_and_remember_that_they_trained():
    row = row_of(7)
    layers = LayerMap(jnp.array([[0.7, 0.3, 0, 0], [0, 0, 0.5, 0.5]], jnp.float32), jnp.array([0, 0, 1, 1], jnp.int32))
    stage = algorithm().submodel_row(row, layers)
    np.testing.assert_allclose(stage.b["v"][0], 0.7 * row.b["v"][0] + 0.3 * row.b["v"][1], atol=1e-6)
    back = algorithm().transfer_row(row, stage, layers, "copy")
    assert_identical(back.b["v"][1], stage.b["v"][0])
    assert (bool(stage.seen), bool(back.seen)) == (True, True)


@pytest.mark.parametrize("align", [False, True])
def test_a_is_fused_as_the_clients_fuse_their_b(align):
    # Rotated for itself, a would no longer fit the clients' b.
    server = server_in_training()
    layers = LayerMap(
        jnp.array([[0.7, 0.3, 0, 0], [0, 0, 0.5, 0.5]], jnp.float32), jnp.array([0, 0, 1, 1], jnp.int32), align=align
    )
    stage = algorithm().submodel(server, layers)
    a = server.lora["v"].a
    np.testing.assert_allclose(stage.lora["v"].a[0], 0.7 * a[0] + 0.3 * a[1], atol=1e-6)

"""Local-only training: every client by itself, as if there were no other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.developmental import LayerMap
from devft_jax.federated.algorithm import Clients
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.algorithms.local_only import local_only
from tests.federated.harness import (
    DROPOUT,
    LONG,
    SGD,
    assert_close,
    assert_identical,
    client,
    engine,
    largest_change,
    plain_client,
    plain_sgd,
    run_round,
    server_with,
)

POPULATION = 6
# Two rounds: clients 4 and 1 take part in both, with draws of their own; 0 and 3 in none.
ROUNDS = ([client(4), client(1), client(2, pool=LONG)], [client(1, steps=4), client(4, steps=4), client(5, steps=4)])


@functools.cache
def alone():
    """Each client's factors after the two rounds, in a plain loop over its own draws."""
    factors = dict.fromkeys(range(POPULATION), server_with(DROPOUT).lora)
    for members in ROUNDS:
        for member in members:
            factors[member.position], _ = plain_client(member, factors[member.position], plain_sgd(), DROPOUT)
    return factors


algorithm = functools.cache(lambda: local_only(DROPOUT))


def two_rounds(devices, clients_per_step):
    """The bank after both rounds, the server, and the rounds' results."""
    server = server_with(DROPOUT)
    bank = jax.device_get(algorithm().init_bank(Clients(POPULATION), server))
    results = []
    for members in ROUNDS:
        result = run_round(engine(algorithm(), SGD, devices, clients_per_step), server, members, bank=bank)
        bank = jax.tree.map(np.array, bank)
        for leaf, rows in zip(jax.tree.leaves(bank), jax.tree.leaves(result.bank_rows), strict=True):
            leaf[[member.position for member in members]] = rows
        server = result.server
        results.append(result)
    return bank, server, results


@pytest.mark.parametrize(("devices", "clients_per_step"), [(1, 2), (2, 2)])
def test_every_client_is_trained_as_if_alone(devices, clients_per_step):
    bank, _, _ = two_rounds(devices, clients_per_step)
    for position, factors in alone().items():
        row = jax.tree.map(lambda leaf, where=position: leaf[where], bank)
        assert_close(row, factors)
        changed = largest_change(row, server_with(DROPOUT).lora)
        assert changed == 0 if position in (0, 3) else changed > 1e-2


def test_nothing_is_sent_and_the_server_learns_nothing():
    _, server, results = two_rounds(1, 2)
    assert [(result.bytes_up, result.bytes_down) for result in results] == [(0, 0), (0, 0)]
    assert all(result.metrics == {} for result in results)
    assert_identical(server, server_with(DROPOUT))


def test_a_clients_model_is_its_own_factors():
    server = server_with(DROPOUT)
    row = jax.tree.map(lambda leaf: leaf + 1, server.lora)
    own = algorithm().personal(server, row)
    assert_identical(own.lora, row)
    assert (own.scale, own.dropout) == (server.scale, server.dropout)


@pytest.mark.parametrize("align", [False, True])
def test_a_clients_factors_enter_a_stage_as_fedits_do(align):
    server = server_with(DROPOUT)
    fuse = jnp.array([[0.7, 0.3, 0, 0], [0, 0, 0.5, 0.5]], jnp.float32)
    layers = LayerMap(fuse, jnp.array([0, 0, 1, 1], jnp.int32), align=align)
    assert_identical(algorithm().submodel_row(server.lora, layers), fedit(DROPOUT).submodel(server, layers).lora)

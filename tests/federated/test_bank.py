"""The client bank gives everyone the row that a bank of all clients, mapped at every stage, would give."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.developmental import LayerMap
from devft_jax.federated.algorithm import Clients
from devft_jax.federated.algorithms.fedsa_lora import fedsa_lora
from devft_jax.federated.algorithms.hetlora import hetlora
from devft_jax.federated.algorithms.local_only import local_only
from devft_jax.federated.bank import ClientBank
from tests.federated.harness import TWO, init
from tests.tiny import CONFIG

CLIENTS = 7
L = CONFIG.layers
STAGES = [
    LayerMap(jnp.full((1, L), 1 / L), jnp.zeros(L, jnp.int32)),
    LayerMap(jnp.repeat(jnp.eye(2), L // 2, axis=1) * 2 / L, jnp.repeat(jnp.arange(2), L // 2)),
    LayerMap.identity(L),
]
# Who takes part in each stage, the last two in two rounds.
PARTS = [[(1, 4)], [(4, 5), (0,)], [(6,), (4, 0)]]


def algorithm_of(make):
    return make(dataclasses.replace(TWO, message_dtype="float32"))


def bank_of(algorithm, folder=None, in_memory=2**30, mode="delta"):
    server = init(algorithm, clients=CLIENTS)
    traits = jax.device_get(algorithm.traits(Clients(CLIENTS)))
    return ClientBank(algorithm, lambda: server, traits, clients=CLIENTS, mode=mode, in_memory=in_memory, folder=folder)


class EveryRow:
    """All clients' rows, one by one, mapped at every border of stages."""

    def __init__(self, algorithm, mode="delta"):
        self.algorithm, self.mode = algorithm, mode
        bank = algorithm.init_bank(Clients(CLIENTS), init(algorithm, clients=CLIENTS))
        self.full = [jax.tree.map(lambda leaf, where=where: leaf[where], bank) for where in range(CLIENTS)]

    def enter(self, layer_map):
        self.map = layer_map
        self.rows = [self.algorithm.submodel_row(row, layer_map) for row in self.full]

    def returned(self):
        pairs = zip(self.full, self.rows, strict=True)
        return [self.algorithm.transfer_row(full, row, self.map, self.mode) for full, row in pairs]

    def leave(self):
        self.full = self.returned()


def moved(row, number):
    """A row after some training."""
    return jax.tree.map(lambda leaf: leaf + number if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, row)


def assert_rows(found, wanted):
    for where, row in enumerate(wanted):
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(row), strict=True):
            np.testing.assert_allclose(one[where], other, atol=1e-5)


@pytest.mark.parametrize("make", [fedsa_lora, local_only, hetlora])
@pytest.mark.parametrize("in_memory", [0, 2**30], ids=["file", "memory"])
def test_rows_are_those_of_a_bank_of_all_clients(make, in_memory, tmp_path):
    algorithm = algorithm_of(make)
    bank, every = bank_of(algorithm, tmp_path, in_memory), EveryRow(algorithm)
    everyone = np.arange(CLIENTS)
    for layer_map, rounds in zip(STAGES, PARTS, strict=True):
        bank.enter(layer_map)
        every.enter(layer_map)
        for number, members in enumerate(rounds):
            positions = np.array(members)
            rows = bank.take(positions)
            assert_rows(rows, [every.rows[member] for member in members])
            new = moved(rows, number + 1)
            bank.put(positions, new)
            for place, member in enumerate(members):
                every.rows[member] = jax.tree.map(lambda leaf, where=place: leaf[where], new)
        # Asking changes nothing.
        assert_rows(bank.view(full=False).take(everyone), every.rows)
        assert_rows(bank.view(full=True).take(everyone), every.returned())
        bank.leave()
        every.leave()
        assert_rows(bank.view(full=True).take(everyone), every.full)


def test_a_saved_bank_goes_on_bit_for_bit(tmp_path):
    algorithm = algorithm_of(fedsa_lora)
    bank = bank_of(algorithm)
    for layer_map, rounds in zip(STAGES[:2], PARTS, strict=False):
        if bank.maps:
            bank.leave()
        bank.enter(layer_map)
        for members in rounds:
            bank.put(np.array(members), moved(bank.take(np.array(members)), 0.3))
    bank.save(tmp_path / "rows")
    # What comes after the checkpoint is undone by going on from it.
    bank.put(np.array([2]), moved(bank.take(np.array([2])), 5.0))
    again = bank_of(algorithm)
    again.restore([tmp_path / "rows"], bank.maps)
    for full in (False, True):
        view, other = again.view(full=full), bank.view(full=full)
        assert view.trained.tolist() == [0, 1, 4, 5]
        kept = np.array([0, 1, 3, 4, 5, 6])
        for one, two in zip(jax.tree.leaves(view.take(kept)), jax.tree.leaves(other.take(kept)), strict=True):
            assert one.tobytes() == two.tobytes()


def test_clients_that_never_took_part_are_told_apart_by_their_traits():
    bank = bank_of(hetlora(dataclasses.replace(TWO, message_dtype="float32", client_ranks=(1, 2))))
    bank.enter(STAGES[-1])
    bank.put(np.array([2]), bank.take(np.array([2])))
    view = bank.view(full=False)
    assert view.trained.tolist() == [2]
    assert [kind.tolist() for kind in view.kinds()] == [[0, 4, 6], [1, 3, 5]]


def test_rows_do_not_depend_on_who_is_asked_for_together():
    bank = bank_of(algorithm_of(local_only))
    bank.enter(STAGES[0])
    bank.leave()
    bank.enter(STAGES[1])
    together = bank.take(np.arange(CLIENTS))
    alone = [bank.take(np.array([client])) for client in range(CLIENTS)]
    for where, row in enumerate(alone):
        for one, other in zip(jax.tree.leaves(together), jax.tree.leaves(row), strict=True):
            assert one[where].tobytes() == other[0].tobytes()

"""A round of clients with different layers equals the plain aggregation of what each returned."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.developmental import LayerMap
from devft_jax.federated.holders import cut
from devft_jax.federated.round.classes import ClassGroup, run_classes
from devft_jax.federated.round.results import Group
from devft_jax.federated.sampling import client_keys
from devft_jax.models.llama import Compute, forward
from devft_jax.models.lora import init_lora
from tests.federated.harness import BASE, EXAMPLES, FIVE, RATE, ROUND, SEED, TWO, engine, fedit_with, server_with
from tests.tiny import CONFIG

LAYERS = CONFIG.layers
KEYS = partial(client_keys, SEED, np.uint32(ROUND))


class NoRows:
    """A bank of clients that keep nothing."""

    @property
    def row(self):
        return {}

    def take(self, positions):
        return {}

    def put(self, positions, rows):
        pass


def group(layer_map, places, ranks=None, frozen=0):
    base = (
        BASE
        if layer_map.runs_base
        else BASE.replace(blocks=jax.tree.map(lambda leaf: leaf[layer_map.selected()], BASE.blocks))
    )
    cohort = [FIVE[place] for place in places]
    return ClassGroup(0, base, layer_map, ranks, np.ones(LAYERS), frozen, True, np.array(places), cohort, 1)


SOME = [
    group(LayerMap.of_layers(LAYERS, [0, 2]), [0, 3]),
    group(LayerMap.of_layers(LAYERS, [1, 2]), [4], ranks=(1, 2)),
    group(dataclasses.replace(LayerMap.identity(LAYERS), train=jnp.array([False, True, False, False])), [1]),
    group(LayerMap.top(LAYERS, 2), [2], ranks=(1, 1)),
]


@pytest.fixture(scope="module")
def cohort():
    return engine(fedit_with())


def test_a_round_is_the_plain_mean_over_the_holders_of_each_layer(cohort):
    """FedRA's rows, Fed-HeLLo's mask and top layers of smaller rank in one round, against NumPy; I31: a row that nobody
    trains stays as it was, bit for bit."""
    server = server_with()
    result, costs = run_classes(cohort, server, NoRows(), SOME, lr=RATE, keys=KEYS, rule="active", mode="copy")
    total = {name: (np.zeros(f.a.shape, np.float32), np.zeros(f.b.shape, np.float32)) for name, f in server.lora.items()}
    weight = np.zeros((LAYERS, TWO.rank), np.float32)
    for each in SOME:
        own = cut(fedit_with().submodel(server, each.layer_map), each.ranks)
        part = cohort.part(
            each.base,
            NoRows(),
            Group(own, each.cohort, RATE, KEYS),
            train_rows=np.asarray(each.layer_map.train),
            frozen=0,
            clients_per_step=1,
        )
        sums, ranks = part.sums.total[0], each.ranks or (TWO.rank,) * each.layer_map.num_groups
        for layer, row in enumerate(np.asarray(each.layer_map.assign).tolist()):
            if row < 0 or not each.layer_map.train[row]:
                continue
            weight[layer, : ranks[row]] += np.float32(part.sums.weight)
            for name, (a, b) in total.items():
                a[layer, :, : ranks[row]] += np.asarray(sums[name].a)[row, :, : ranks[row]]
                b[layer, : ranks[row]] += np.asarray(sums[name].b)[row, : ranks[row]]
    held = weight > 0
    divisor = np.where(held, weight, np.float32(1))
    for name, (a, b) in total.items():
        old, new = server.lora[name], result.server.lora[name]
        np.testing.assert_allclose(new.a, np.asarray(old.a) + a / divisor[:, None, :], rtol=2e-6, atol=1e-7)
        np.testing.assert_allclose(new.b, np.asarray(old.b) + b / divisor[:, :, None], rtol=2e-6, atol=1e-7)
        np.testing.assert_array_equal(np.asarray(new.b)[~held], np.asarray(old.b)[~held])
    assert held.tolist() == [[True, True], [True, True], [True, True], [True, False]]
    # Losses are in the cohort's order.
    alone, _ = run_classes(
        cohort, server, NoRows(), [group(SOME[0].layer_map, [0])], lr=RATE, keys=KEYS, rule="all", mode="copy"
    )
    np.testing.assert_array_equal(alone.losses[0], result.losses[0])
    row = 4 * TWO.rank * sum(sum(CONFIG.projection_shape(name)) for name in TWO.targets)
    assert [cost.bytes_up for cost in costs] == [2 * row + 8, row * 3 // 2 + 8, row + 4, row + 8]
    assert [cost.bytes_down for cost in costs] == [2 * row + 8, row * 3 // 2 + 8, 4 * row + 16, row + 8]


def test_a_selected_model_is_the_model_without_the_other_layers():
    """I36: a layer that is left out does nothing, as if its branches were gated by zero."""
    kept = np.array([0, 1, 3])
    adapter = init_lora(jax.random.key(0), CONFIG, rank=2, alpha=3.0, targets=("v", "down"), dropout=0.0)
    adapter = adapter.replace(lora=jax.tree.map(lambda leaf: leaf + 0.1, adapter.lora))
    some = jax.tree.map(lambda leaf: leaf[kept], (BASE.blocks, adapter.lora))
    gate = jnp.array([1.0, 1.0, 0.0, 1.0])[:, None, None]
    closed = BASE.blocks.replace(o=BASE.blocks.o * gate, down=BASE.blocks.down * gate)
    shut = adapter.replace(
        lora={name: factors.replace(b=factors.b * gate) for name, factors in adapter.lora.items()},
    )
    tokens = jnp.asarray(EXAMPLES.row(0)[None])
    own = forward(
        CONFIG, BASE.replace(blocks=some[0]), adapter.replace(lora=some[1]), tokens, compute=Compute(dtype="float32")
    )
    gated = forward(CONFIG, BASE.replace(blocks=closed), shut, tokens, compute=Compute(dtype="float32"))
    np.testing.assert_allclose(own, gated, rtol=1e-4, atol=1e-5)

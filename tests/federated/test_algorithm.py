"""What every algorithm of the registry does beside the laws of `devft_jax.testing`: in the engine, and as a method for
low-rank adapters.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.developmental import LayerMap
from devft_jax.federated.algorithm import Clients, as_float32, empty
from devft_jax.federated.algorithms import ALGORITHMS
from devft_jax.federated.round.chunk import zero_sums
from tests.federated.harness import (
    FIVE,
    SGD,
    assert_close,
    assert_identical,
    client,
    contributed,
    engine,
    init,
    participant,
    run_round,
    trained_messages,
)
from tests.federated.records import (
    K,
    assert_same_model,
    first,
    made,
    noise,
    stage_of,
    started,
    trained,
    update,
)
from tests.tiny import CONFIG

EVERY = pytest.mark.parametrize("name", ALGORITHMS)
# One whose clients remember nothing, one with rows, one with slots of the cohort, one with messages of different rank.
STREAMED = ("fedit", "scaffold", "fedex-lora", "hetlora")
IDENTITY = LayerMap.identity(CONFIG.layers)


@EVERY
def test_the_record_names_itself(name):
    algorithm = made(name)
    assert algorithm.name == name
    assert algorithm.reference
    assert algorithm.message
    assert algorithm.state


@EVERY
def test_the_first_round_begins_at_the_untuned_base(name):
    algorithm, server, rows = started(name)
    for index, row in enumerate(rows):
        train, frozen = algorithm.start(participant(algorithm, server, row, seed=index))
        for added in update(algorithm.adapter(train, frozen)).values():
            np.testing.assert_allclose(added, 0.0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if jax.tree.leaves(started(name)[2])])
def test_rows_of_clients_that_sit_out_stay_bit_for_bit(name):
    algorithm, server, _ = started(name)
    bank = jax.device_get(algorithm.init_bank(Clients(8), init(algorithm, clients=8)))
    before = jax.tree.map(np.copy, bank)
    members = [client(6), client(1), client(3)]
    result = run_round(engine(algorithm, SGD, 1, K), server, members, bank=bank)
    assert_identical(bank, before)
    assert all(len(leaf) == K for leaf in jax.tree.leaves(result.bank_rows))


@pytest.mark.parametrize(
    "name", [name if name in STREAMED else pytest.param(name, marks=pytest.mark.slow) for name in ALGORITHMS]
)
def test_a_cohort_streams_in_any_chunks(name):
    algorithm, server, _ = started(name)
    bank = jax.device_get(algorithm.init_bank(Clients(5), init(algorithm, clients=5)))
    results = [
        run_round(engine(algorithm, SGD, devices, at_once), server, FIVE[:K], bank=bank)
        for devices, at_once in ((1, K), (2, 2))
    ]
    assert_same_model(*(algorithm.view(result.server) for result in results))
    assert_close(results[0].bank_rows, results[1].bank_rows, atol=1e-5)
    np.testing.assert_allclose(results[0].losses, results[1].losses, rtol=1e-4)
    assert (results[0].bytes_up, results[0].bytes_down) == (results[1].bytes_up, results[1].bytes_down)


@EVERY
def test_zero_sums_are_the_neutral_element(name):
    algorithm, server, rows = started(name)
    ups, _ = trained_messages(algorithm, server, rows[:1], move=noise(1))
    contribution = contributed(algorithm, ups, [2.0])
    zeros = zero_sums(algorithm, ups[0], devices=3)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(zeros)} <= {3}
    assert_identical(jax.tree.map(lambda zero, leaf: zero[0] + leaf, zeros, contribution), contribution)


@EVERY
def test_a_state_constant_over_layers_is_a_fixed_point_of_a_stage(name):
    algorithm, server, rows = started(name)
    full, rows = first(algorithm)
    axis = 1 if name == "dofit" else 0

    def constant(leaf):
        layered = leaf.ndim > axis and leaf.shape[axis] == CONFIG.layers
        return jnp.broadcast_to(jnp.take(leaf, jnp.array([0]), axis), leaf.shape) if layered else leaf

    deep = jax.tree.map(constant, algorithm.transfer(full, trained(algorithm, server, rows), IDENTITY, "copy"))
    matrix = jnp.array([[0.8, 0.1, 0.1, 0], [0, 0, 0, 1]], jnp.float32)
    layer_map = LayerMap(matrix, jnp.array([0, 0, 0, 1], jnp.int32))
    # Nothing is learned in between.
    after = algorithm.transfer(deep, stage_of(algorithm, deep, rows, layer_map)[0], layer_map, "copy")
    assert_same_model(algorithm.view(after), algorithm.view(deep))


def test_as_float32_widens_every_leaf():
    tree = {"a": jnp.array([1.5, -2], "bfloat16"), "b": jnp.array([0.25], "float16")}
    wide = as_float32(tree)
    assert_identical(wide, {"a": np.array([1.5, -2], "f4"), "b": np.array([0.25], "f4")})


def test_no_bank_is_empty():
    assert empty(Clients(5), {"a": jnp.zeros(3)}) == {}

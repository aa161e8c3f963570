"""Laws that every algorithm of the registry obeys, whatever else it promises.

They are stated on what a model computes and not on the leaves of a state, which differ between methods.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.developmental import LayerMap
from devft_jax.federated.algorithm import Clients, as_float32, empty
from devft_jax.federated.algorithms import ALGORITHMS
from devft_jax.federated.messages import travelling_parts
from devft_jax.federated.round.chunk import zero_sums
from devft_jax.models.adapter import Adapter
from tests.federated.harness import (
    FIVE,
    SGD,
    aggregated,
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
    WEIGHTS,
    K,
    assert_same_model,
    first,
    made,
    noise,
    stage_of,
    started,
    still,
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
def test_clients_that_learn_nothing_leave_the_model_as_it_was(name):
    algorithm, server, rows = started(name)
    ups, _ = trained_messages(algorithm, server, rows, move=still)
    after, metrics = aggregated(algorithm, server, ups, WEIGHTS)
    assert_same_model(algorithm.view(after), algorithm.view(server))
    assert all(np.isfinite(value) and value.shape == () for value in metrics.values())


@EVERY
def test_the_first_round_begins_at_the_untuned_base(name):
    algorithm, server, rows = started(name)
    for index, row in enumerate(rows):
        train, frozen = algorithm.start(participant(algorithm, server, row, seed=index))
        for added in update(algorithm.adapter(train, frozen)).values():
            np.testing.assert_allclose(added, 0.0, atol=1e-5)


@EVERY
def test_the_order_of_clients_is_irrelevant(name):
    algorithm, server, rows = started(name)
    ups, _ = trained_messages(algorithm, server, rows, move=noise(1))
    straight, _ = aggregated(algorithm, server, ups, WEIGHTS)
    turned, _ = aggregated(algorithm, server, ups[::-1], [2.5, 1.0, 5.0])
    assert_same_model(algorithm.view(straight), algorithm.view(turned))


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if made(name).has_global_model])
def test_updates_reach_the_global_model(name):
    algorithm, server, rows = started(name)
    # Two rounds: where b begins at zero and a alone is shared, the first moves no product.
    for seed in (1, 2):
        ups, _ = trained_messages(algorithm, server, rows, move=noise(seed))
        server, _ = aggregated(algorithm, server, ups, WEIGHTS)
    _, untrained, _ = started(name)
    changes = [
        np.abs(np.asarray(new, np.float64) - np.asarray(old, np.float64)).max()
        for new, old in zip(jax.tree.leaves(algorithm.view(server)), jax.tree.leaves(algorithm.view(untrained)), strict=True)
    ]
    assert max(changes) > 1e-4


@EVERY
def test_contributions_are_float32_and_nothing_at_weight_zero(name):
    algorithm, server, rows = started(name, message_dtype="bfloat16")
    ups, _ = trained_messages(algorithm, server, rows, move=noise(1))
    floats = [leaf for leaf in jax.tree.leaves(travelling_parts(ups)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    # Where all examples lie in one place nothing travels, and what the server hands itself is not rounded.
    assert {leaf.dtype for leaf in floats} <= {jnp.dtype("float32" if algorithm.pools else "bfloat16")}
    sums = contributed(algorithm, ups, WEIGHTS)
    assert {leaf.dtype for leaf in jax.tree.leaves(sums)} <= {jnp.dtype("float32")}
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(contributed(algorithm, ups, [0.0] * K)))


@EVERY
def test_a_round_does_not_depend_on_the_scale_of_the_weights(name):
    algorithm, server, rows = started(name)
    ups, _ = trained_messages(algorithm, server, rows, move=noise(1))
    one, _ = aggregated(algorithm, server, ups, WEIGHTS)
    thousand, _ = aggregated(algorithm, server, ups, [5000.0, 1000.0, 2500.0])
    assert_same_model(algorithm.view(one), algorithm.view(thousand))


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
def test_the_view_is_an_adapter_of_the_models_depth(name):
    algorithm = made(name)
    full, rows = first(algorithm)
    for layers in (CONFIG.layers, 2):
        layer_map = IDENTITY if layers == CONFIG.layers else LayerMap(jnp.eye(2, 4), jnp.array([0, 1, -1, -1], jnp.int32))
        server, _ = stage_of(algorithm, full, rows, layer_map)
        view = algorithm.view(server)
        assert isinstance(view, Adapter)
        assert view.depth(otherwise=layers) == layers
        for projection, added in update(view).items():
            assert added.shape == (layers, *CONFIG.projection_shape(projection))


@EVERY
def test_a_stage_at_full_depth_brings_back_what_it_learned(name):
    algorithm, server, rows = started(name)
    full, _ = first(algorithm)
    server = trained(algorithm, server, rows)
    for mode in ("delta", "copy"):
        deep = algorithm.transfer(full, server, IDENTITY, mode)
        assert_same_model(algorithm.view(deep), algorithm.view(server))
    # And the next stage at full depth begins where this one ended.
    again, _ = stage_of(algorithm, deep, rows, IDENTITY)
    assert_same_model(algorithm.view(again), algorithm.view(server), atol=1e-4)


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if made(name).layered])
def test_layers_that_are_absent_or_do_not_learn_keep_what_they_had(name):
    algorithm, server, rows = started(name)
    full, _ = first(algorithm)
    deep = algorithm.transfer(full, trained(algorithm, server, rows), IDENTITY, "copy")
    # Layers 0 and 1 form a group that learns, layer 2 one that does not, layer 3 is absent.
    matrix = jnp.array([[0.9, 0.1, 0, 0], [0, 0, 1, 0]], jnp.float32)
    layer_map = LayerMap(matrix, jnp.array([0, 0, 1, -1], jnp.int32), jnp.array([True, False]))
    stage, rows = stage_of(algorithm, deep, rows, layer_map)
    stage = trained(algorithm, stage, rows, learn=np.array([True, False]))
    views = [algorithm.view(state) for state in (deep, algorithm.transfer(deep, stage, layer_map, "copy"))]
    before, after = map(update, views)
    for projection, old in before.items():
        np.testing.assert_array_equal(after[projection][2:], old[2:])
    if algorithm.has_global_model:
        # The leaves: where clients keep b themselves, the server's own view computes nothing.
        leaves = zip(*(jax.tree.leaves((view.lora, view.delta)) for view in views), strict=True)
        changes = [np.abs(new - old)[:2].max(axis=(1, 2)) for old, new in leaves]
        assert (np.max(changes, axis=0) > 1e-5).all()


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


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if made(name).personal])
def test_a_clients_own_model_follows_the_stages(name):
    algorithm = made(name)
    full, rows = first(algorithm)
    layer_map = LayerMap(jnp.array([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]), jnp.array([0, 0, 1, 1], jnp.int32))
    server, stage_rows = stage_of(algorithm, full, rows, layer_map)
    assert algorithm.personal(server, stage_rows[0]).depth(otherwise=0) == 2
    _, moved = trained_messages(algorithm, server, stage_rows, move=noise(4))
    assert jax.tree.structure(moved) == jax.tree.structure(stage_rows)
    deep = algorithm.transfer(full, server, layer_map, "copy")
    own = update(algorithm.personal(deep, algorithm.transfer_row(rows[0], moved[0], layer_map, "copy")))
    for projection, added in update(algorithm.personal(server, moved[0])).items():
        np.testing.assert_allclose(own[projection], added[[0, 0, 1, 1]], atol=1e-6)


def test_as_float32_widens_every_leaf():
    tree = {"a": jnp.array([1.5, -2], "bfloat16"), "b": jnp.array([0.25], "float16")}
    wide = as_float32(tree)
    assert_identical(wide, {"a": np.array([1.5, -2], "f4"), "b": np.array([0.25], "f4")})


def test_no_bank_is_empty():
    assert empty(Clients(5), {"a": jnp.zeros(3)}) == {}

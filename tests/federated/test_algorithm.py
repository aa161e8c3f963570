"""Laws that every algorithm of the registry obeys, each in its own words of one table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.developmental import LayerMap
from devft_jax.federated.algorithm import Clients, as_float32, empty
from devft_jax.federated.algorithms import ALGORITHMS
from devft_jax.federated.cohort import zero_sums
from devft_jax.federated.messages import message_bytes
from devft_jax.models.llama import PROJECTIONS, Adapter
from tests.federated.harness import (
    SEVEN,
    aggregated,
    assert_close,
    assert_identical,
    contributed,
    init,
    largest_change,
    participant,
)
from tests.tiny import CONFIG

PERSONAL = [name for name, make in ALGORITHMS.items() if make(SEVEN).personal]
GLOBAL = [name for name, make in ALGORITHMS.items() if make(SEVEN).has_global_model]


def kept(state):
    """What stages hand on of a state: its adapter, where it holds the server's moments or controls beside one."""
    return getattr(state, "adapter", state)


def with_kept(state, value):
    """The state with that of it changed."""
    return state.replace(adapter=value) if hasattr(state, "adapter") else value


def built(name):
    """The algorithm, its state somewhere in training at a stage's start, and one bank row."""
    # Steps of the server's own size are large enough to be seen, and rounding is small against tau.
    algorithm = ALGORITHMS[name](dataclasses.replace(SEVEN, server_learning_rate=0.5, server_tau=0.1))
    initial = init(algorithm)
    rng = np.random.default_rng(4)
    # Every per-layer leaf, which leads with L; scalars such as an adapter's scale stay.
    server = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype) if leaf.ndim else leaf,
        kept(initial),
    )
    server = with_kept(initial, server)
    row = jax.tree.map(lambda leaf: leaf[0], algorithm.init_bank(Clients(3), server))
    return algorithm, server, row


def message_of(algorithm, server, row, seed=None):
    """What a client sends: trained by nothing, or moved at random."""
    at_start = participant(algorithm, server, row)
    train, _ = algorithm.start(at_start)
    if seed is not None:
        rng = np.random.default_rng(seed)
        train = jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape), train)
    return algorithm.finish(at_start, train)


def per_layer(tree):
    """The leaves that lead with the layer axis."""
    return [leaf for leaf in jax.tree.leaves(kept(tree)) if leaf.ndim]


def partial_map():
    """Layers 0 and 1 form a group that learns, layer 2 one that does not, layer 3 is absent; and the matrix."""
    matrix = np.array([[0.9, 0.1, 0, 0], [0, 0, 1, 0]], np.float32)
    assign, train = jnp.array([0, 0, 1, -1], jnp.int32), jnp.array([True, False])
    return LayerMap(fuse=jnp.asarray(matrix), assign=assign, train=train), matrix


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_record_names_itself(name):
    algorithm, _, _ = built(name)
    assert algorithm.name == name
    assert algorithm.reference
    assert algorithm.message
    assert algorithm.state


@pytest.mark.parametrize("name", ALGORITHMS)
def test_clients_that_learn_nothing_change_nothing(name):
    algorithm, server, row = built(name)
    up, new_row = message_of(algorithm, server, row)
    assert jax.tree.structure(new_row) == jax.tree.structure(row)
    after, metrics = aggregated(algorithm, server, [up, up], [3.0, 8.0])
    assert_close(kept(after), kept(server), atol=1e-6)
    assert all(np.isfinite(value) and value.shape == () for value in metrics.values())


# SCAFFOLD's controls are summed over clients that are all alike.
@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "scaffold"])
def test_contributions_are_linear_in_the_weight_and_float32(name):
    algorithm, server, row = built(name)
    up, _ = message_of(algorithm, server, row, seed=5)
    one, seven = (contributed(algorithm, [up], [weight]) for weight in (1.0, 7.0))
    assert_close(seven, jax.tree.map(lambda leaf: 7 * leaf, one), atol=1e-4)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(contributed(algorithm, [up], [0.0])))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(one))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_zero_sums_are_the_neutral_element(name):
    algorithm, server, row = built(name)
    up, _ = message_of(algorithm, server, row, seed=6)
    contribution = contributed(algorithm, [up], [2.0])
    zeros = zero_sums(algorithm, up, devices=3)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(zeros)} <= {3}
    first = jax.tree.map(lambda leaf: leaf[0], zeros)
    assert_identical(jax.tree.map(jnp.add, first, contribution), contribution)


@pytest.mark.parametrize("name", GLOBAL)
def test_one_client_moves_the_server_to_where_it_went(name):
    algorithm, server, row = built(name)
    up, _ = message_of(algorithm, server, row, seed=7)
    after, _ = aggregated(algorithm, server, [up], [5.0])
    again, _ = aggregated(algorithm, server, [up], [0.25])
    assert_close(after, again, atol=1e-6)
    assert largest_change(after, server) > 0.05


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_view_is_an_adapter_of_the_models_shapes(name):
    algorithm, server, _ = built(name)
    view = algorithm.view(server)
    assert isinstance(view, Adapter)
    assert set(view.lora) == set(PROJECTIONS)
    for projection, factors in view.lora.items():
        fan_in, fan_out = CONFIG.projection_shape(projection)
        assert factors.a.shape == (CONFIG.layers, fan_in, SEVEN.rank)
        assert factors.b.shape == (CONFIG.layers, SEVEN.rank, fan_out)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_identity_stage_is_the_full_model(name):
    algorithm, server, _ = built(name)
    identity = LayerMap.identity(CONFIG.layers)
    stage = algorithm.submodel(server, identity)
    assert_identical(stage, server)
    moved = jax.tree.map(lambda leaf: leaf + 1 if leaf.ndim else leaf, stage)
    assert_identical(algorithm.transfer(server, moved, identity, "copy"), with_kept(server, kept(moved)))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_layers_that_are_absent_or_do_not_learn_keep_their_state(name):
    algorithm, server, _ = built(name)
    layers, matrix = partial_map()
    stage = algorithm.submodel(server, layers)
    for fused, full in zip(per_layer(stage), per_layer(server), strict=True):
        np.testing.assert_allclose(fused, np.tensordot(matrix, full, 1), atol=1e-6)
    moved = jax.tree.map(lambda leaf: leaf + 1 if leaf.ndim else leaf, stage)
    after = algorithm.transfer(server, moved, layers, "copy")
    for new, old, trained in zip(per_layer(after), per_layer(server), per_layer(moved), strict=True):
        assert_identical(new[2:], old[2:])
        assert_identical(new[:2], jnp.stack([trained[0]] * 2))


@pytest.mark.parametrize("name", PERSONAL)
def test_rows_follow_the_stages_as_the_server_does(name):
    algorithm, server, row = built(name)
    identity = LayerMap.identity(CONFIG.layers)
    assert_identical(algorithm.submodel_row(row, identity), row)
    layers, matrix = partial_map()
    stage = algorithm.submodel_row(row, layers)
    assert isinstance(algorithm.personal(algorithm.submodel(server, layers), stage), Adapter)
    moved = jax.tree.map(lambda leaf: leaf + 1 if leaf.ndim else leaf, stage)
    after = algorithm.transfer_row(row, moved, layers, "copy")
    assert isinstance(algorithm.personal(server, after), Adapter)
    for fused, trained, new, old in zip(*map(per_layer, (stage, moved, after, row)), strict=True):
        np.testing.assert_allclose(fused, np.tensordot(matrix, old, 1), atol=1e-6)
        assert_identical(new[2:], old[2:])
        assert_identical(new[:2], jnp.stack([trained[0]] * 2))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_state_constant_over_layers_is_a_fixed_point_of_a_stage(name):
    algorithm, server, _ = built(name)
    constant = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape) if leaf.ndim else leaf, server)
    matrix = jnp.array([[0.8, 0.1, 0.1, 0], [0, 0, 0, 1]], jnp.float32)
    layers = LayerMap(fuse=matrix, assign=jnp.array([0, 0, 0, 1], jnp.int32), train=jnp.ones(2, bool))
    stage = algorithm.submodel(constant, layers)
    assert_close(algorithm.transfer(constant, stage, layers, "copy"), constant, atol=1e-6)


def test_message_bytes_are_counted_in_the_dtype_that_travels():
    message = {"a": jnp.zeros((3, 5), "bfloat16"), "b": [jnp.zeros(7), jnp.zeros((), "int8")]}
    assert message_bytes(message) == 3 * 5 * 2 + 7 * 4 + 1
    assert message_bytes(jax.eval_shape(lambda: message)) == message_bytes(message)
    assert message_bytes({}) == 0


def test_as_float32_widens_every_leaf():
    tree = {"a": jnp.array([1.5, -2], "bfloat16"), "b": jnp.array([0.25], "float16")}
    wide = as_float32(tree)
    assert_identical(wide, {"a": np.array([1.5, -2], "f4"), "b": np.array([0.25], "f4")})


def test_no_bank_is_empty():
    assert empty(Clients(5), {"a": jnp.zeros(3)}) == {}

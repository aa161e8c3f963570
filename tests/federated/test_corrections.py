"""Corrections that grow by increments: their sum, and what a stage does to both parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.developmental import LayerMap
from devft_jax.federated.corrections import Correction, no_delta, returned_correction, stage_correction
from devft_jax.models.adapter import LoraFactors
from tests.federated.harness import assert_identical
from tests.tiny import CONFIG

LAYERS = CONFIG.layers
FUSED = LayerMap(
    jnp.array([[0.8, 0.1, 0.1, 0], [0, 0, 0, 1]], jnp.float32), jnp.array([0, 0, 0, 1], jnp.int32), jnp.ones(2, bool)
)
PICKED = LayerMap(jnp.eye(2, 4, dtype=jnp.float32), jnp.array([0, 1, -1, -1], jnp.int32))
PARTLY = LayerMap(jnp.eye(4, dtype=jnp.float32), jnp.arange(4, dtype=jnp.int32), jnp.array([False, False, True, True]))
IDENTITY = LayerMap.identity(LAYERS)


def normal(*shape, seed, dtype="float32"):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), dtype)


def correction(layers=LAYERS, seed=0, dtype="float32"):
    """One projection with factors, one with a dense increment, one with none."""
    delta = {name: normal(layers, *CONFIG.projection_shape(name), seed=seed) for name in ("q", "v", "down")}
    factors = LoraFactors(a=normal(layers, 16, 3, seed=seed, dtype=dtype), b=normal(layers, 3, 8, seed=seed, dtype=dtype))
    return Correction(delta=delta, increment={"v": factors, "down": normal(layers, 24, 16, seed=seed + 1, dtype=dtype)})


def total(of):
    """The sum written out."""
    found = {name: np.asarray(leaf, np.float64) for name, leaf in of.delta.items()}
    factors = of.increment["v"]
    found["v"] = found["v"] + np.asarray(factors.a, np.float64) @ np.asarray(factors.b, np.float64)
    found["down"] = found["down"] + np.asarray(of.increment["down"], np.float64)
    return found


def assert_totals(found, expected, atol=1e-5):
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, atol=atol)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_total_is_the_sum_in_float32(dtype):
    one = correction(dtype=dtype)
    assert_totals(one.total(), total(one))
    assert {leaf.dtype for leaf in one.total().values()} == {jnp.dtype("float32")}
    other = correction(seed=5).increment
    assert_totals(one.followed_by(other).total(), total(Correction(one.total(), other)))


def test_it_begins_at_zero():
    nothing = no_delta(CONFIG, ("v", "down"))
    assert {name: leaf.shape for name, leaf in nothing.items()} == {"v": (4, 16, 8), "down": (4, 24, 16)}
    assert not any(np.any(leaf) for leaf in nothing.values())
    assert_identical(Correction(nothing, {}).total(), nothing)


def test_a_fused_stage_has_all_of_it_in_its_layers():
    full = correction()
    stage = stage_correction(full, FUSED)
    matrix = np.asarray(FUSED.fuse, np.float64)
    assert_totals(stage.delta, {name: np.tensordot(matrix, leaf, 1) for name, leaf in total(full).items()})
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(stage.increment))


@pytest.mark.parametrize("layers", [IDENTITY, PICKED])
def test_where_layers_are_the_models_own_an_increment_travels_on(layers):
    full = correction(dtype="bfloat16")
    stage = stage_correction(full, layers)
    count = layers.num_groups
    assert_identical(stage, jax.tree.map(lambda leaf: leaf[:count], full))


@pytest.mark.parametrize("layers", [IDENTITY, FUSED, PICKED, PARTLY], ids=["identity", "fused", "picked", "partly"])
def test_every_layer_gets_the_change_of_its_group(layers):
    full = correction()
    began = stage_correction(full, layers)
    # Rows that do not train get no increment.
    rows = np.asarray(layers.train, np.float32)
    masked = jax.tree.map(
        lambda leaf: leaf * rows.reshape(-1, *[1] * (leaf.ndim - 1)), correction(layers.num_groups, seed=7).increment
    )
    ended = began.followed_by(masked)
    change = {name: leaf - total(began)[name] for name, leaf in total(ended).items()}
    expected = {}
    for name, leaf in total(full).items():
        expected[name] = leaf.copy()
        for layer, group in enumerate(np.asarray(layers.assign)):
            if group >= 0:
                expected[name][layer] += change[name][group]
    after = returned_correction(full, ended, layers)
    assert_totals(after.total(), expected)
    # The last increment is still known apart.
    trained = [layer for layer, group in enumerate(np.asarray(layers.assign)) if group >= 0 and rows[group]]
    group = np.asarray(layers.assign)[trained]
    assert_identical(after.increment["down"][np.array(trained)], masked["down"][group])


@pytest.mark.parametrize("layers", [IDENTITY, FUSED, PICKED, PARTLY], ids=["identity", "fused", "picked", "partly"])
def test_a_stage_without_rounds_changes_nothing(layers):
    full = correction()
    assert_totals(returned_correction(full, stage_correction(full, layers), layers).total(), total(full))


def test_shapes_of_a_stage_do_not_depend_on_what_the_map_holds():
    full = correction(dtype="bfloat16")
    traced = jax.eval_shape(stage_correction, full, LayerMap.shapes(2, 4))
    for layers in (FUSED, PICKED):
        found = stage_correction(full, layers)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), found) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), traced
        )

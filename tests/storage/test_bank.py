"""The client bank: rows are mapped and replaced one client at a time, and an empty bank stays empty."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.storage import map_rows, mapped_shapes, scatter_rows


def bank(clients, seed=0):
    generator = np.random.default_rng(seed)
    return {"a": generator.normal(size=(clients, 3, 2)), "b": (generator.integers(0, 9, (clients, 4)),)}


def halved(row, factor=2):
    return {"a": row["a"][:2] / factor, "c": row["b"][0].sum(keepdims=True)}


@given(st.integers(1, 6))
def test_mapping_is_the_function_of_every_row_and_its_shapes_are_foretold(clients):
    rows = bank(clients)
    mapped = map_rows(halved, rows)
    for client in range(clients):
        expected = halved(jax.tree.map(lambda leaf, where=client: leaf[where], rows))
        jax.tree.map(lambda leaf, own, where=client: np.testing.assert_array_equal(leaf[where], own), mapped, expected)
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, rows))
    foretold = mapped_shapes(halved, shapes, jax.ShapeDtypeStruct((), jnp.float32))
    assert jax.tree.map(np.shape, mapped) == jax.tree.map(lambda leaf: leaf.shape, foretold)


def test_two_banks_are_mapped_together():
    rows, other = bank(3), bank(3, seed=1)
    summed = map_rows(lambda one, two: jax.tree.map(np.add, one, two), rows, other)
    jax.tree.map(lambda leaf, one, two: np.testing.assert_array_equal(leaf, one + two), summed, rows, other)


def test_an_empty_bank_stays_empty():
    assert map_rows(halved, {}) == {}
    assert mapped_shapes(lambda row: row, {}) == {}
    assert scatter_rows({}, np.array([0]), {}) == {}


def test_new_rows_go_to_their_clients_and_nobody_elses_change():
    rows = bank(5)
    before = jax.tree.map(np.copy, rows)
    new = bank(2, seed=1)
    after = scatter_rows(rows, np.array([3, 1]), new)
    for place, client in enumerate((3, 1)):
        jax.tree.map(lambda leaf, own, a=client, b=place: np.testing.assert_array_equal(leaf[a], own[b]), after, new)
    for client in (0, 2, 4):
        jax.tree.map(lambda leaf, own, a=client: np.testing.assert_array_equal(leaf[a], own[a]), after, before)
    jax.tree.map(np.testing.assert_array_equal, rows, before)

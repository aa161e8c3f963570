"""A weight that can expand itself is used like the float array that it stands for."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from devft_jax.models.quantization import quantize
from devft_jax.models.sharding import sharded
from devft_jax.models.weights import ShardedWeight, StackedWeight, Weight, dense_weight, divisions_of, frozen_product


class Halves(struct.PyTreeNode):
    """A weight of our own: stored as twice its value in bytes."""

    codes: jax.Array
    divisions = ((-1,),)

    def dequantize(self, dtype):
        return self.codes.astype(dtype) / 2


CODES = jnp.arange(-6, 6, dtype=jnp.int8).reshape(4, 3)
X = jax.random.normal(jax.random.key(0), (2, 4), jnp.float32)


def test_what_expands_itself_is_a_weight_and_arrays_are_none():
    dense = jnp.ones((64, 3), jnp.float32)
    for weight in (Halves(CODES), quantize(dense, "int8"), StackedWeight(dense[None], 0), ShardedWeight(dense, (-2,), "x")):
        assert isinstance(weight, Weight)
    for array in (dense, np.ones(3), jax.ShapeDtypeStruct((3,), jnp.float32), None):
        assert not isinstance(array, Weight)


def test_a_weight_of_ones_own_is_divided_as_it_says():
    weight = Halves(jnp.ones((4, 8), jnp.int8))
    assert sharded(weight, 2, "x", *divisions_of(weight)).dimensions == (-1,)
    assert sharded(weight, 3, "x", *divisions_of(weight)) is weight
    for taken in (StackedWeight(weight, 0), ShardedWeight(weight, (-1,), "x")):
        assert sharded(taken, 2, "x", *divisions_of(taken)) is taken


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_weight_of_ones_own_multiplies_as_the_array_does(dtype):
    x, dense = X.astype(dtype), (CODES / 2).astype("float32")

    def total(x, weight):
        return jnp.sum(frozen_product(x, weight) ** 2)

    chex.assert_trees_all_equal(dense_weight(Halves(CODES), dtype), dense.astype(dtype))
    chex.assert_trees_all_equal(jax.value_and_grad(total)(x, Halves(CODES)), jax.value_and_grad(total)(x, dense))


def test_a_stacked_weight_is_its_layer():
    stack = Halves(jnp.stack([CODES, 2 * CODES]))
    product = jax.jit(lambda x, index: frozen_product(x, StackedWeight(stack, index)))
    for layer in range(2):
        np.testing.assert_allclose(product(X, layer), X @ ((layer + 1) * CODES / 2), rtol=1e-6)

"""Trees of stacked layers, plain and quantised, and the dense formulas they are checked against."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockQuantised:
    """8-bit weight [L, K * block, out] with one scale per layer, block of inputs and output."""

    code: jax.Array  # i8[L, K, block, out]
    scale: jax.Array  # f32[L, K, out]

    def dequantize(self, dtype):
        weight = self.code.astype(dtype) * self.scale[:, :, None].astype(dtype)
        return weight.reshape(weight.shape[0], -1, weight.shape[-1])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerQuantised:
    """8-bit weight [L, in, out] with one scale per layer, which cannot be cut along its second axis."""

    code: jax.Array  # i8[L, in, out]
    scale: jax.Array  # f32[L]

    def dequantize(self, dtype):
        return self.code.astype(dtype) * self.scale[:, None, None].astype(dtype)


def block_quantised(seed: int, layers: int) -> BlockQuantised:
    draw = np.random.default_rng(seed)
    code = draw.integers(-127, 128, (layers, 6, 4, 5), dtype=np.int8)
    return BlockQuantised(jnp.asarray(code), jnp.asarray(draw.random((layers, 6, 5), np.float32)))


def layer_quantised(seed: int, layers: int) -> LayerQuantised:
    draw = np.random.default_rng(seed)
    code = draw.integers(-127, 128, (layers, 7, 3), dtype=np.int8)
    return LayerQuantised(jnp.asarray(code), jnp.asarray(draw.random(layers, np.float32)))


def stack(seed: int, layers: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    """A numpy tree with a large, an odd, a flat and a scalar-per-layer leaf, all [L, ...]."""
    draw = np.random.default_rng(seed)
    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    shapes = {"large": (layers, 24, 10), "odd": (layers, 3, 7, 5), "flat": (layers, 13), "gain": (layers,)}
    return {name: draw.standard_normal(shape).astype(kind) for name, shape in shapes.items()}


def on_device(tree):
    return jax.tree.map(jnp.asarray, tree)


def rows(tree) -> np.ndarray:
    """Every layer as one float64 vector: [L, P]."""
    leaves = [np.asarray(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)


def assert_trees_equal(left, right):
    """Same structure, dtypes and bits."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def assert_trees_close(left, right, tolerance: float = 1e-5):
    """Same structure, dtypes and values up to `tolerance`."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a).astype(np.float64), np.asarray(b).astype(np.float64)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)

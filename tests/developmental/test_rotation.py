"""Nearest orthogonal matrices and rotations against numpy's singular value decomposition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.developmental import nearest_orthogonal, nearest_rotation
from devft_jax.developmental.rotation import diagonalised

SIZES = (1, 2, 5, 32)


def drawn(kind: str, size: int, count: int = 4) -> np.ndarray:
    """Matrices f32[count, size, size] of a kind."""
    rng = np.random.default_rng([size, len(kind)])
    matrices = rng.normal(size=(count, size, size))
    left, _, right = np.linalg.svd(matrices)
    if kind == "orthogonal":
        matrices = left
    elif kind == "ill-conditioned":
        matrices = (left * np.logspace(0, -4, size)) @ right
    elif kind == "singular":
        matrices = (left * (np.arange(size) < (size + 1) // 2)) @ right
    elif kind == "symmetric":
        matrices = matrices + np.swapaxes(matrices, 1, 2)
    elif kind in ("small", "large", "largest"):
        matrices *= {"small": 1e-25, "large": 1e25, "largest": 3e38 / np.abs(matrices).max()}[kind]
    return matrices.astype(np.float32)


def by_svd(matrix: np.ndarray, *, rotation: bool) -> np.ndarray:
    """The nearest orthogonal matrix, or the nearest of determinant +1."""
    left, _, right = np.linalg.svd(matrix.astype(np.float64))
    if rotation and np.linalg.det(left @ right) < 0:
        left[:, -1] *= -1
    return left @ right


def closeness(found: np.ndarray, matrix: np.ndarray) -> float:
    """trace(R^T M), which the nearest R makes largest, as a share of the sum of the singular values."""
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    return float(np.sum(found * matrix) / values.sum())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "kind", ["any", "orthogonal", "ill-conditioned", "singular", "symmetric", "small", "large", "largest"]
)
def test_they_are_as_near_as_numpys(kind, size):
    for matrix, rotation, orthogonal in zip(
        drawn(kind, size),
        np.asarray(nearest_rotation(drawn(kind, size)), np.float64),
        np.asarray(nearest_orthogonal(drawn(kind, size)), np.float64),
        strict=True,
    ):
        for found in (rotation, orthogonal):
            np.testing.assert_allclose(found @ found.T, np.eye(size), atol=2e-6)
        assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-4)
        assert closeness(rotation, matrix) == pytest.approx(closeness(by_svd(matrix, rotation=True), matrix), abs=1e-6)
        assert closeness(orthogonal, matrix) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("size", SIZES[1:])
def test_they_are_numpys_where_there_is_one(size):
    matrices, reflections = drawn("any", size, count=8), 0
    for matrix, rotation, orthogonal in zip(matrices, nearest_rotation(matrices), nearest_orthogonal(matrices), strict=True):
        np.testing.assert_allclose(orthogonal, by_svd(matrix, rotation=False), atol=1e-4)
        np.testing.assert_allclose(rotation, by_svd(matrix, rotation=True), atol=1e-4)
        reflections += np.linalg.det(by_svd(matrix, rotation=False)) < 0
    assert reflections > 0


@pytest.mark.parametrize("size", SIZES)
def test_the_decomposition_is_of_the_matrix_and_in_rotations(size):
    matrices = drawn("any", size)
    left, values, right = (np.asarray(each, np.float64) for each in diagonalised(matrices))
    np.testing.assert_allclose((left * values[:, None]) @ np.swapaxes(right, 1, 2), matrices, atol=2e-5)
    for each in (left, right):
        np.testing.assert_allclose(np.linalg.det(each), 1, atol=1e-4)
    wanted = np.linalg.svd(matrices.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(np.sort(np.abs(values))[:, ::-1], wanted, atol=2e-5)
    negative = np.sum(values < 0, axis=1)
    assert np.all(negative <= 1)
    least = np.argmin(np.abs(values), axis=1)
    assert all(values[row, least[row]] < 0 for row in np.flatnonzero(negative))


def test_nothing_to_turn_to_turns_nothing():
    for find in (nearest_rotation, nearest_orthogonal):
        np.testing.assert_array_equal(find(jnp.zeros((2, 5, 5))), np.broadcast_to(np.eye(5), (2, 5, 5)))


def test_a_matrix_is_not_changed_by_its_neighbours():
    matrices = np.concatenate([drawn("any", 6), drawn("ill-conditioned", 6), np.eye(6, dtype=np.float32)[None]])
    together = jax.jit(nearest_rotation)(matrices)
    for matrix, found in zip(matrices, together, strict=True):
        np.testing.assert_allclose(jax.jit(nearest_rotation)(matrix), found, atol=1e-6)


def test_what_is_not_finite_ends_and_turns_nothing():
    for broken in (jnp.full((4, 4), jnp.nan), jnp.eye(4).at[0, 1].set(jnp.inf), jnp.full((4, 4), 1e30)):
        found = np.asarray(nearest_rotation(broken))
        np.testing.assert_allclose(found @ found.T, np.eye(4), atol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_it_lowers_to_products_alone(platform):
    def both(matrix):
        return nearest_rotation(matrix), nearest_orthogonal(matrix)

    exported = jax.export.export(jax.jit(both), platforms=[platform])(jax.ShapeDtypeStruct((3, 8, 8), "float32"))
    assert "custom_call" not in exported.mlir_module()

"""The orthogonal matrix nearest to a square one, by rotations of pairs; it uses no LAPACK, so that many devices can run it.

A batched decomposition on a CPU splits its batch over the threads that the host devices share, and waits for them. Two
devices that do this at once can hold all threads and deadlock, and an accelerator has no LAPACK at all.

Kogbetliantz (1955), in the parallel order of Brent, Luk and Van Loan (1985): rotations of two rows and two columns at a time
make M diagonal, with each pair processed once per sweep,

    U^T M V = D,    det U = det V = 1.

Of the two ways to make a 2 x 2 block diagonal without exchanging its entries, up to their signs, the one with
d_i + d_j >= 0 is taken. In the end no two entries of D have a negative sum, so at most one is negative, the one of least
magnitude. Hence

    U V^T            is the rotation nearest to M: if the nearest orthogonal matrix is a reflection, its least direction
        is reversed,
    U sign(D) V^T    is the orthogonal matrix nearest to M.

Both are orthogonal also if M is singular, and the identity if M is zero.

On a CPU with two cores, rank 32 takes about ten times as long as LAPACK's singular value decomposition.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Relative norm of the off-diagonal part, near the precision of float32; one more sweep squares it, down to rounding.
TOLERANCE = 1e-6
# Six to nine sweeps are usual for up to 64 rows.
MOST_SWEEPS = 30

Factors = tuple[jax.Array, jax.Array, jax.Array]
"""U^T M V, U and V, [r, r] each."""

_matmul = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


@jax.jit
def nearest_rotation(matrix: jax.Array) -> jax.Array:
    """The orthogonal matrix of determinant +1 nearest to each of f32[..., r, r]; traceable.

    Args:
      matrix: f32[..., r, r].
    """
    left, _, right = diagonalised(matrix)
    return _orthonormal(_matmul(left, right.mT))


@jax.jit
def nearest_orthogonal(matrix: jax.Array) -> jax.Array:
    """The orthogonal matrix nearest to each of f32[..., r, r]; traceable.

    Args:
      matrix: f32[..., r, r].
    """
    left, values, right = diagonalised(matrix)
    signs = jnp.where(values < 0, -1.0, 1.0)
    return _orthonormal(_matmul(left * signs[..., None, :], right.mT))


@jax.jit
def diagonalised(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rotations U, V f32[..., r, r] and d f32[..., r] with M = U diag(d) V^T; d is unordered, at most its least is negative.

    Args:
      matrix: f32[..., r, r].
    """
    size = matrix.shape[-1]
    one = partial(_diagonalised, size=size)
    for _ in range(matrix.ndim - 2):
        one = jax.vmap(one)
    return one(matrix.astype(jnp.float32))


def _diagonalised(matrix: jax.Array, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    even = size + size % 2
    # Scaled by the largest entry, whose square, and whose reciprocal, may be outside float32: in two steps. Values that are
    # not finite give no rotation.
    norm = jnp.max(jnp.abs(matrix))
    scaled = matrix * jnp.where(norm > 1, 2.0**-64, 2.0**64)
    largest = jnp.max(jnp.abs(scaled))
    scaled = scaled / jnp.where(largest > 0, largest, 1.0)
    scaled = jnp.where(jnp.all(jnp.isfinite(scaled)), scaled, 0.0)
    # An odd size gets one more row and column, with an entry larger than all others, which no rotation changes.
    if even > size:
        scaled = jnp.pad(scaled, (0, 1)).at[size, size].set(2.0 * size)
    eye = jnp.eye(even, dtype=jnp.float32)
    order = jnp.asarray(_next_pairs(even))

    def one_round(_: jax.Array, carry: Factors) -> Factors:
        middle, left, right = carry
        rows, columns = _pair_rotations(middle)
        middle = _rotate_columns(_rotate_columns(middle.mT, rows).mT, columns)
        left, right = _rotate_columns(left, rows), _rotate_columns(right, columns)
        return middle[order][:, order], left[:, order], right[:, order]

    def sweep(state: tuple[jax.Array, Factors]) -> tuple[jax.Array, Factors]:
        count, carry = state
        return count + 1, lax.fori_loop(0, max(even - 1, 1), one_round, carry)

    def unfinished(state: tuple[jax.Array, Factors]) -> jax.Array:
        count, (middle, _, _) = state
        return (count < MOST_SWEEPS) & (_off_diagonal(middle) > TOLERANCE * jnp.linalg.norm(scaled[:size, :size]))

    # A sweep ends with the order with which it began, so that places have the same meaning before and after it.
    _, (middle, left, right) = lax.while_loop(unfinished, sweep, (jnp.int32(0), (scaled, eye, eye)))
    values = jnp.diagonal(middle)[:size] * norm
    return left[:size, :size], values, right[:size, :size]


def _off_diagonal(matrix: jax.Array) -> jax.Array:
    """The larger of the norm of the off-diagonal part and the amount by which two neighbours' sum is below zero."""
    diagonal = jnp.diagonal(matrix)
    off = jnp.linalg.norm(matrix - jnp.diag(diagonal))
    least = jnp.sort(diagonal)[:2]
    return jnp.maximum(off, -jnp.sum(least)) if len(diagonal) > 1 else off


def _next_pairs(size: int) -> np.ndarray:
    """The order of columns in which neighbours 0-1, 2-3, ... have all met after size - 1 rounds: a round-robin."""
    upper, lower = list(range(0, size, 2)), list(range(1, size, 2))
    if len(upper) > 1:
        upper, lower = [upper[0], lower[0], *upper[1:-1]], [*lower[1:], upper[-1]]
    return np.array([upper, lower]).T.ravel()


def _pair_rotations(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [2, r / 2] of the rotations of rows and of columns that make each 2 x 2 block diagonal."""
    half = matrix.shape[-1] // 2
    each = jnp.arange(half)
    block = matrix.reshape(half, 2, half, 2)[each, :, each, :]
    (p, q), (s, t) = (block[:, 0, 0], block[:, 0, 1]), (block[:, 1, 0], block[:, 1, 1])
    symmetric = jnp.arctan2(s - q, p + t)
    keeps_order = jnp.where(p < t, -1.0, 1.0)
    diagonal = jnp.arctan2(keeps_order * (s + q), keeps_order * (p - t))
    rows, columns = (diagonal + symmetric) / 2, (diagonal - symmetric) / 2
    return jnp.stack([jnp.cos(rows), jnp.sin(rows)]), jnp.stack([jnp.cos(columns), jnp.sin(columns)])


def _rotate_columns(matrix: jax.Array, rotation: jax.Array) -> jax.Array:
    """Neighbouring columns (x, y) become (c x + s y, c y - s x)."""
    cosine, sine = rotation[:, None]
    x, y = matrix[:, 0::2], matrix[:, 1::2]
    return jnp.stack([cosine * x + sine * y, cosine * y - sine * x], axis=-1).reshape(matrix.shape)


def _orthonormal(matrix: jax.Array) -> jax.Array:
    """One Newton-Schulz step, which corrects the rounding of hundreds of rotations."""
    return 1.5 * matrix - 0.5 * _matmul(matrix, _matmul(matrix.mT, matrix))

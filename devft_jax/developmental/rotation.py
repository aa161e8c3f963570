"""The orthogonal matrix nearest to a square one, by rotations of pairs: no LAPACK, so that any number of devices may run it.

A batched decomposition on a CPU splits its batch over the threads that the host devices share, and waits for them. Two
devices that do so at once can hold all threads and wait for each other for ever, and an accelerator has no LAPACK at all.

Kogbetliantz (1955), in the parallel order of Brent, Luk and Van Loan (1985): rotations of two rows and of two columns at a
time make M diagonal, each pair meeting every other once in a sweep,

    U^T M V = D,    det U = det V = 1.

Of the two ways to make a 2 x 2 block diagonal without exchanging its entries, up to their signs the one with d_i + d_j >= 0
is taken. In the end no two entries of D have a negative sum, so that at most one is negative, the least in size. Hence

    U V^T            is the rotation nearest to M: where the nearest orthogonal matrix is a reflection, its least direction
                     is turned round,
    U sign(D) V^T    is the orthogonal matrix nearest to M.

Both are orthogonal also where M is singular, and the identity where M is zero.

On a CPU with two cores a rank of 32 takes some ten times as long as LAPACK's singular value decomposition does.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Of the off-diagonal's norm in M's, near what float32 reaches; a sweep more squares it, until rounding.
TOLERANCE = 1e-6
# Six to nine sweeps are usual for up to 64 rows.
MOST_SWEEPS = 30

Factors = tuple[jax.Array, jax.Array, jax.Array]
"""U^T M V, U and V, [r, r] each."""

_matmul = partial(jnp.matmul, precision=lax.Precision.HIGHEST)


@jax.jit
def nearest_rotation(matrix: jax.Array) -> jax.Array:
    """Of all orthogonal matrices of determinant +1 the one nearest to each of f32[..., r, r]; traceable.

    Args:
      matrix: f32[..., r, r].
    """
    left, _, right = diagonalised(matrix)
    return _orthonormal(_matmul(left, right.mT))


@jax.jit
def nearest_orthogonal(matrix: jax.Array) -> jax.Array:
    """Of all orthogonal matrices the one nearest to each of f32[..., r, r]; traceable.

    Args:
      matrix: f32[..., r, r].
    """
    left, values, right = diagonalised(matrix)
    signs = jnp.where(values < 0, -1.0, 1.0)
    return _orthonormal(_matmul(left * signs[..., None, :], right.mT))


@jax.jit
def diagonalised(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rotations U, V f32[..., r, r] and d f32[..., r] with M = U diag(d) V^T; d in no order, at most its least negative.

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
    # By the largest entry, whose square may be too large or too small for float32, and so may its reciprocal be: in two
    # steps. What is not finite turns nothing.
    norm = jnp.max(jnp.abs(matrix))
    scaled = matrix * jnp.where(norm > 1, 2.0**-64, 2.0**64)
    largest = jnp.max(jnp.abs(scaled))
    scaled = scaled / jnp.where(largest > 0, largest, 1.0)
    scaled = jnp.where(jnp.all(jnp.isfinite(scaled)), scaled, 0.0)
    # A row and a column more make the number even: with an entry larger than all others, which no rotation ever touches.
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

    # Rounds end where the order began, so that places mean the same before and after a sweep.
    _, (middle, left, right) = lax.while_loop(unfinished, sweep, (jnp.int32(0), (scaled, eye, eye)))
    values = jnp.diagonal(middle)[:size] * norm
    return left[:size, :size], values, right[:size, :size]


def _off_diagonal(matrix: jax.Array) -> jax.Array:
    """The larger of the off-diagonal's norm and of how far two neighbours' sum is below zero."""
    diagonal = jnp.diagonal(matrix)
    off = jnp.linalg.norm(matrix - jnp.diag(diagonal))
    least = jnp.sort(diagonal)[:2]
    return jnp.maximum(off, -jnp.sum(least)) if len(diagonal) > 1 else off


def _next_pairs(size: int) -> np.ndarray:
    """Which column comes where, that neighbours 0-1, 2-3, ... have all met after size - 1 rounds: a round-robin."""
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
    """A step of Newton and Schulz: what hundreds of rotations lost by rounding."""
    return 1.5 * matrix - 0.5 * _matmul(matrix, _matmul(matrix.mT, matrix))
